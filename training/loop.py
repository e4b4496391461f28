"""The loop that every trainer runs: learning rate, averaging, checkpoints, progress, cancel.

A step is a pure function of the weights, the optimizer and its own number: whatever is random in it comes from a
generator seeded with (seed, step), for all processes at once (`share.py`). So a run that was killed at any point and
resumed from its last checkpoint ends with the same weights as one that was not, bit for bit on a CPU.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..core.protocols import Progress, no_progress
from . import checkpoint as ckpt
from .share import meets_on_cpu

CHECKPOINT = "checkpoint.safetensors"
HISTORY_EVERY = 10

Watch = Callable[[int, Mapping[str, float]], None]
"""`watch(step, losses)`: called with each step's losses; when a run is resumed, first with those recorded."""


def no_watch(step: int, losses: Mapping[str, float]) -> None:
    """Losses that nobody watches."""


@dataclass(frozen=True)
class Settings:
    """What all trainers share. The rate warms up over `warmup` steps, stays, and falls to a hundredth over the last
    `cooldown` share of the steps: so the steps of a run may be changed when it is resumed."""

    steps: int = 1000
    batch: int = 8
    rate: float = 1e-4
    warmup: int = 100
    cooldown: float = 0.25
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    save_every: int = 500
    precision: str = "no"

    def __post_init__(self) -> None:
        for name, low in (("steps", 1), ("batch", 1), ("warmup", 0), ("save_every", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name}: expected at least {low}, got {getattr(self, name)}")
        for name, low, high in (("rate", 0.0, 1.0), ("cooldown", 0.0, 1.0), ("ema", 0.0, 0.999999), ("clip", 0.0, 1e6)):
            if not low <= getattr(self, name) <= high or (name == "rate" and self.rate == 0):
                raise ValueError(f"{name}: expected {low} .. {high}, got {getattr(self, name)}")
        if self.precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"precision: expected 'no', 'bf16' or 'fp16', got {self.precision!r}")


FREE = frozenset({"steps", "save_every"})
"""Fields that may change when a run is resumed."""


@dataclass
class Job:
    """What a trainer hands to `fit`.

    `modules` are trained and saved under their names, each with an average of its weights unless it is in
    `unaveraged`. `step(number, generator)` does one update with its `optimizers` and returns the losses to record, one
    in HISTORY_EVERY in `history`; `watch` is told all of them. `preview` is called after each save.
    """

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    step: Callable[[int, torch.Generator], Mapping[str, float]]
    recipe: Mapping[str, Any]
    unaveraged: frozenset[str] = frozenset()
    preview: Callable[[], Tensor | None] | None = None
    rates: dict[str, float] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    watch: Watch = no_watch


@dataclass
class Trained:
    """The outcome: averaged modules by name, the losses recorded, the steps done."""

    modules: dict[str, nn.Module]
    history: dict[str, list[float]]
    steps: int


def rate_at(settings: Settings, step: int) -> float:
    """The learning rate of a step: warm-up, constant, linear fall."""
    rise = min(1.0, (step + 1) / (settings.warmup + 1))
    left = (settings.steps - step) / max(1.0, settings.cooldown * settings.steps)
    return settings.rate * rise * max(0.01, min(1.0, left))


def generator_at(seed: int, step: int) -> torch.Generator:
    """The only source of a step's randomness."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 4099)


def accelerator_for(settings: Settings, *, cpu: bool = False) -> Any:
    """accelerate's Accelerator: device, processes and mixed precision are its business. `cpu` keeps off a GPU."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # Its state is the whole process's: an earlier run's precision or device would be held against this one.
    alone = AcceleratorState().num_processes == 1 if AcceleratorState._shared_state else False
    AcceleratorState._reset_state(reset_partial_state=alone)
    return Accelerator(mixed_precision=settings.precision, cpu=cpu or meets_on_cpu())


def descend(accelerator: Any, loss: Tensor, module: nn.Module, optimizers: Iterable[Any], clip: float) -> None:
    """One update: backward, gradient clipping (0 for none), step."""
    accelerator.backward(loss)
    if clip:
        accelerator.clip_grad_norm_(module.parameters(), clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def fit(
    job: Job,
    settings: Settings,
    folder: str | os.PathLike[str],
    accelerator: Any,
    *,
    progress: Progress = no_progress,
    resume: bool = False,
) -> Trained:
    """Run the job's steps, with checkpoints in `folder`.

    `progress` is called after every step and may raise: the run is then saved first, so that it can be resumed.
    CheckpointError if the folder holds a run already (and `resume` is False), has none to resume, or has no room.
    """
    path = Path(folder, CHECKPOINT)
    plain = {name: accelerator.unwrap_model(module) for name, module in job.modules.items()}
    averages = {name: _average(m, settings.ema) for name, m in plain.items() if name not in job.unaveraged}
    history, start = job.history, 0
    if resume:
        start, before = _restore(path, job, plain, averages)
        history.update(before)
        _recall(before, job.watch)
    elif path.exists():
        raise ckpt.CheckpointError(f"{path}: there is a run here; resume it, or name another folder")
    ckpt.need_room(folder, sum(p.numel() * 16 for m in plain.values() for p in m.parameters()))

    def save(step: int) -> None:
        # Nobody is waited for: after a step all have the same weights, and one that was killed never comes.
        if accelerator.is_main_process:
            _save(path, step, job, plain, averages, history)

    for step in range(start, settings.steps):
        for name, optimizer in job.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate_at(settings, step) * job.rates.get(name, 1.0)
        losses = _mean(accelerator, job.step(step, generator_at(settings.seed, step)))
        for name, average in averages.items():
            average.update_parameters(plain[name])
        if not all(math.isfinite(value) for value in losses.values()):
            raise ValueError(
                f"training: the loss is not finite at step {step} ({dict(losses)}); lower `rate` and resume"
            )
        if step % HISTORY_EVERY == 0:
            for name, value in losses.items():
                history.setdefault(name, [float("nan")] * (step // HISTORY_EVERY)).append(value)
        job.watch(step, losses)
        done = step + 1
        saved = done % settings.save_every == 0 or done == settings.steps
        if saved:
            save(done)
        try:
            progress(done, settings.steps, job.preview() if saved and job.preview else None)
        except BaseException:
            if not saved:
                save(done)
            raise
    return Trained({n: averages[n].module if n in averages else m for n, m in plain.items()}, history, settings.steps)


def _mean(accelerator: Any, losses: Mapping[str, float]) -> Mapping[str, float]:
    """The losses of the batch of all processes."""
    if accelerator.num_processes == 1:
        return losses
    values = torch.tensor(list(losses.values()), dtype=torch.float32, device=accelerator.device)
    return dict(zip(losses, accelerator.reduce(values, "mean").tolist(), strict=True))


def _recall(history: Mapping[str, list[float]], watch: Watch) -> None:
    for place in range(max(map(len, history.values()), default=0)):
        known = {name: values[place] for name, values in history.items() if place < len(values)}
        watch(place * HISTORY_EVERY, known)


def _average(module: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average, with a short memory at first so that the random start is forgotten."""

    def update(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
        n = int(count)
        return torch.lerp(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    return AveragedModel(module, avg_fn=update)


def _save(
    path: Path,
    step: int,
    job: Job,
    plain: Mapping[str, nn.Module],
    averages: Mapping[str, AveragedModel],
    history: Mapping[str, list[float]],
) -> None:
    tensors: dict[str, Tensor] = {}
    for name, module in plain.items():
        tensors |= {f"model.{name}.{key}": value for key, value in module.state_dict().items()}
    for name, average in averages.items():
        tensors |= {f"ema.{name}.{key}": value for key, value in average.state_dict().items()}
    for name, optimizer in job.optimizers.items():
        tensors |= ckpt.pack_optimizer(optimizer, f"optimizer.{name}")
    tensors |= {f"history.{name}": torch.tensor(values) for name, values in history.items()}
    ckpt.write_tensors(path, tensors, {"step": step, "recipe": dict(job.recipe)})


def _restore(
    path: Path, job: Job, plain: Mapping[str, nn.Module], averages: Mapping[str, AveragedModel]
) -> tuple[int, dict[str, list[float]]]:
    tensors, note = ckpt.read_tensors(path)
    ckpt.same_recipe(path, note["recipe"], dict(job.recipe), FREE)
    for kind, modules in (("model", plain), ("ema", averages)):
        for name, module in modules.items():
            prefix = f"{kind}.{name}."
            state = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
            try:
                module.load_state_dict(state)
            except RuntimeError as error:
                raise ckpt.CheckpointError(f"{path}: its {name} has another architecture: {error}") from error
    for name, optimizer in job.optimizers.items():
        ckpt.unpack_optimizer(optimizer, tensors, f"optimizer.{name}")
    history = {key[len("history.") :]: value.tolist() for key, value in tensors.items() if key.startswith("history.")}
    return int(note["step"]), history


def recipe_of(settings: Any, **more: Any) -> dict[str, Any]:
    """A recipe as a checkpoint remembers it."""
    return {**asdict(settings), **more}
