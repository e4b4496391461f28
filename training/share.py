"""A batch over several processes: every process draws the random numbers of the whole batch and takes its own rows.

So the numbers of an example, and with them the losses, are the same however many processes share the batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")
Draw = Callable[[Callable[[int, torch.Generator], Tensor]], Tensor]
"""`draw(make)`: this process's rows of what `make(count, generator)` draws, `count` being the examples of all."""


@dataclass(frozen=True)
class Share:
    """The part of process `rank` of `of`. A batch's rows lie rank by rank."""

    rank: int = 0
    of: int = 1

    def first(self, number: int, batch: int) -> int:
        """The first example of this process in batch `number`, of `batch` examples on every process."""
        return (number * self.of + self.rank) * batch

    def whole(self, rows: Tensor) -> Tensor:
        """A stand-in for the rows of all processes: a shape to draw for, without memory."""
        return torch.empty(len(rows) * self.of, *rows.shape[1:], device="meta")

    def own(self, drawn: T) -> T:
        """This process's rows of a tensor, or of each tensor in a dataclass."""
        record: Any = drawn
        if isinstance(record, Tensor):
            return cast(T, record.tensor_split(self.of)[self.rank])
        return type(record)(*(self.own(getattr(record, each.name)) for each in fields(record)))

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """For batches of `count` examples on every process."""
        return lambda make: self.own(make(count * self.of, generator))


def meets_on_cpu() -> bool:
    """Were several processes launched where there are no GPUs? accelerate must be told, or each trains by itself."""
    sizes = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # torchrun's, and those of MPIs
    if all(int(os.environ.get(name, "1")) <= 1 for name in sizes):
        return False
    device: Any = getattr(torch, "accelerator", torch.cuda)
    return not device.is_available() or torch.backends.mps.is_available()


def this_process() -> tuple[int, int, Callable[[], None]]:
    """This process's rank, how many there are, and a barrier."""
    from accelerate import PartialState

    state = PartialState(cpu=meets_on_cpu())
    return state.process_index, state.num_processes, state.wait_for_everyone


def share_of(accelerator: Any) -> Share:
    """This process's share."""
    return Share(accelerator.process_index, accelerator.num_processes)
