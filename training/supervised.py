"""One network, one loss: the plain trainer, for the classifier that judges generated pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..core.protocols import Progress, no_progress
from .groupnorm import quicken
from .loop import Job, Settings, Trained, accelerator_for, descend, fit, recipe_of
from .share import Draw, share_of

Loss = Callable[[nn.Module, int, int, Draw], Tensor]
"""`loss(network, first, count, draw)`: the loss on the examples first .. first + count - 1, whose random numbers `draw`
gives."""


def train(
    network: nn.Module,
    loss: Loss,
    settings: Settings,
    folder: str | os.PathLike[str],
    *,
    progress: Progress = no_progress,
    resume: bool = False,
    recipe: dict[str, Any] | None = None,
) -> Trained:
    """Train in place; the outcome's "network" is the averaged one."""
    accelerator = accelerator_for(settings)
    model = quicken(network)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, (0.9, 0.99), weight_decay=settings.weight_decay)
    model, optimizer = accelerator.prepare(model, optimizer)

    share = share_of(accelerator)

    def step(number: int, generator: torch.Generator) -> dict[str, float]:
        first = share.first(number, settings.batch)
        with accelerator.autocast():
            value = loss(model, first, settings.batch, share.draw(settings.batch, generator))
        descend(accelerator, value, model, [optimizer], settings.clip)
        return {"loss": value.item()}

    job = Job({"network": model}, {"network": optimizer}, step, recipe_of(settings, **(recipe or {})))
    return fit(job, settings, folder, accelerator, progress=progress, resume=resume)
