"""Step-wise variation regularisation (Smooth Diffusion, Guo et al. 2023, Eq. 9, 10, 14): the trainer of Smooth-LoRAs.

A change of the noise by a fixed size shall change the predicted picture by a fixed size, whatever the sample and the
direction: `L = L_base + lambda E[(sqrt(1 - abar_t) ||J_eps^T u|| - a)^2]`, with x0_hat(eps) the network's prediction,
u a random direction and a the running mean of the norm.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..core.protocols import Condition, LatentModel, Progress, no_progress
from ..core.schedule import NoiseSchedule
from .diffusion import loss_weight
from .examples import Examples
from .loop import Job, Settings, Trained, Watch, accelerator_for, fit, no_watch, recipe_of
from .share import share_of
from .students import Student
from .variation import (
    Drawn,
    Network,
    RunningMean,
    coarsened,
    colour_drift,
    drawn,
    on_path,
    picture_drift,
    picture_weight,
    prediction,
    variation,
    without_prompts,
)

Sample = Callable[[Student, Mapping[str, list[float]]], Tensor | None]
"""`sample(student, losses)`: a picture [3, H, W] in 0 .. 1 of how far it is, or None."""


@dataclass(frozen=True)
class SmoothSettings(Settings):
    """`weight` is the papers' lambda, `memory` the share of the running mean that a step renews. `accumulate` batches
    make one update. `prompt_dropout` is the share of empty prompts, for models used with guidance.

    The rest goes beyond the papers, and is theirs by default. `guidance` is the scale w of the prediction that is
    regularised: guidance multiplies what differs between a prompt's Jacobian and the empty prompt's. `lowest` and
    `highest`, shares of the timesteps counted from the least noise, bound those that are regularised. `plain` rows of
    each batch, of all timesteps, are L_base's own, cheaper by half; where there are any, the `batch` others are the
    regulariser's alone. `one_sided` leaves norms below the running mean alone: none is raised. `min_snr` is the gamma
    by which L_base is weighed (Hang et al. 2023), 0 for not at all. `sampled`: in place of noised examples, what the
    student itself has come to after so many DDIM steps from pure noise, at that guidance, is regularised; 0 for
    examples. A smooth model comes through states between two pictures, of which examples have none. `guard` weighs how
    far the mean colour of the predictions that are regularised leaves the original model's. With `coarse`, directions
    u are the same over areas of so many cells' side: the change of the layout is held even, which is a few directions
    of a thousand where u is of single cells. `power` turns u so many times towards the direction in which the picture
    changes most. With a `ceiling`, the norm is that of the change of x0_hat with x_t / sqrt(abar_t), which is above 1
    where the sampler makes differences grow, and only what is above the ceiling, in place of the running mean, counts:
    calm states are left alone. `distilled` makes the target of the `plain` rows what the student was at its start, in
    place of the true noise, and their error that of x0_hat: nothing of examples is left to chance. `hold` weighs how
    far the predictions of calm states, with a norm that is not too high, leave those at the start: a student's own path
    has states that no example shows.
    """

    weight: float = 1.0
    memory: float = 0.01
    accumulate: int = 1
    prompt_dropout: float = 0.0
    guidance: float = 1.0
    lowest: float = 0.0
    highest: float = 1.0
    plain: int = 0
    one_sided: bool = False
    min_snr: float = 0.0
    sampled: int = 0
    guard: float = 0.0
    coarse: int = 1
    power: int = 0
    ceiling: float = 0.0
    distilled: bool = False
    hold: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight < 0:
            raise ValueError(f"weight: expected 0 or more, got {self.weight}")
        if not 0 < self.memory <= 1:
            raise ValueError(f"memory: expected more than 0 and at most 1, got {self.memory}")
        for name in ("accumulate", "coarse"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not 0 <= self.prompt_dropout < 1:
            raise ValueError(f"prompt_dropout: expected at least 0 and less than 1, got {self.prompt_dropout}")
        if not 0 <= self.lowest < self.highest <= 1:
            raise ValueError(f"lowest, highest: expected 0 <= lowest < highest <= 1, got {self.lowest}, {self.highest}")
        for name in ("guidance", "plain", "min_snr", "sampled", "guard", "power", "ceiling", "hold"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        if self.distilled and not self.plain:
            raise ValueError("plain: expected 1 or more with distilled, which is of those rows")
        if not self.plain and (self.highest - self.lowest < 1 or self.guidance != 1 or self.sampled):
            raise ValueError(
                "plain: expected 1 or more with lowest, highest, guidance or sampled: L_base needs rows of its own"
            )


Rows = tuple[Drawn, Tensor, Condition]


def train(
    model: LatentModel,
    student: Student,
    examples: Examples,
    null: Condition | None,
    settings: SmoothSettings,
    folder: str | os.PathLike[str],
    *,
    progress: Progress = no_progress,
    resume: bool = False,
    recipe: dict[str, Any] | None = None,
    sample: Sample | None = None,
    watch: Watch = no_watch,
    low_memory: bool = False,
) -> Trained:
    """Train the student in place; the outcome's "student" is its average.

    `model` is the network that a LoRA student changes; it stays as it is. `null`, the condition of the empty prompt, is
    for `prompt_dropout`. `sample` makes the preview after each save, from the student as it is. `watch` is told the
    losses. `low_memory` recomputes what gradients need in place of keeping it (gradient checkpointing): the same
    training, slower. It may be chosen anew when a run is resumed.

    ValueError if a part of the network has no second derivative.
    """
    if (settings.prompt_dropout or settings.guidance != 1) and null is None:
        raise ValueError("null: prompt_dropout and guidance need the condition of the empty prompt")
    # Of the attentions only the plain one can be differentiated twice.
    with (
        torch.inference_mode(False),
        model.differentiable(low_memory=low_memory),
        sdpa_kernel(SDPBackend.MATH),
    ):
        accelerator = accelerator_for(settings, cpu=model.device.type == "cpu")
        job = _job(model, student, examples, null, settings, accelerator)
        job.recipe = recipe_of(settings, **(recipe or {}))
        job.preview = None if sample is None else lambda: sample(student, job.history)
        job.watch = watch
        return fit(job, settings, folder, accelerator, progress=progress, resume=resume)


def _job(
    model: LatentModel,
    student: Student,
    examples: Examples,
    null: Condition | None,
    settings: SmoothSettings,
    accelerator: Any,
) -> Job:
    # At a terminal abar of zero x_t has nothing of x_0 in it: x0_hat would be 0 / 0.
    total = int((model.schedule.alphas_cumprod > 0).sum())
    running = RunningMean(settings.memory).to(accelerator.device)
    optimizer: Any = torch.optim.AdamW(student.parameters(), 1e-4, (0.9, 0.99), weight_decay=settings.weight_decay)
    prepared, optimizer = accelerator.prepare(student, optimizer)

    def network(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return prepared(model, x_t, t, condition, torch.zeros(len(x_t))).float()

    def original(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        with torch.no_grad(), accelerator.autocast():
            return model.predict_noise(x_t, t, condition).float()

    modules: dict[str, nn.Module] = {"running": running}
    if settings.distilled or settings.hold:
        modules["start"] = copy.deepcopy(student).requires_grad_(False).to(accelerator.device)

    def start(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        with torch.no_grad(), accelerator.autocast():
            return modules["start"](model, x_t, t, condition, torch.zeros(len(x_t))).float()

    parts = _Parts(network, original, start, model.schedule, total, examples, null, settings, accelerator, running)

    def step(number: int, generator: torch.Generator) -> dict[str, float]:
        seen: dict[str, float] = {}
        for part in range(settings.accumulate):
            last = part == settings.accumulate - 1
            with nullcontext() if last else accelerator.no_sync(prepared):
                found = _losses(parts, number * settings.accumulate + part, generator)
                _backward(accelerator, _weighed(settings, found) / settings.accumulate)
            for name, value in found.items():
                seen[name] = seen.get(name, 0.0) + value.item() / settings.accumulate
        if settings.clip:
            accelerator.clip_grad_norm_(prepared.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad()
        return seen

    unaveraged = frozenset(modules)
    return Job({"student": prepared, **modules}, {"student": optimizer}, step, {}, unaveraged=unaveraged)


@dataclass(frozen=True)
class _Parts:
    """What the losses are made of: the student, the model without it, the student as it started; `total` timesteps can
    be trained."""

    network: Network
    original: Network
    start: Network
    schedule: NoiseSchedule
    total: int
    examples: Examples
    null: Condition | None
    settings: SmoothSettings
    accelerator: Any
    running: RunningMean

    def rows(self, first: int, count: int, among: range, dropout: float, generator: torch.Generator) -> Rows:
        """This process's part of `count` examples of each, from number `first` on, and their random numbers."""
        share = share_of(self.accelerator)
        z_0, condition = self.examples(first + share.rank * count, count)
        r = share.own(drawn(share.whole(z_0), among, dropout, generator))
        if self.null is not None and dropout:
            condition = without_prompts(condition, self.null, r.dropped)
        z_0, eps, u = (value.to(self.accelerator.device) for value in (z_0, r.eps, r.u))
        return replace(r, eps=eps, u=u), z_0, condition


def _losses(p: _Parts, number: int, generator: torch.Generator) -> dict[str, Tensor]:
    """L_base, L_reg (Eq. 9), the norm's mean over a batch of every process, and what is guarded or held."""
    s = p.settings
    of = p.accelerator.num_processes
    first = number * of * (s.batch + s.plain)
    lowest = min(int(s.lowest * p.total), p.total - 1)
    among = range(lowest, max(lowest + 1, round(s.highest * p.total)))
    null = None if s.guidance == 1 else p.null
    r, z_0, condition = p.rows(first, s.batch, among, s.prompt_dropout if null is None else 0.0, generator)
    r = replace(r, u=coarsened(r.u, s.coarse))
    predict = prediction(p.network, condition, null, s.guidance, len(z_0))
    if s.sampled:
        with p.accelerator.autocast():
            z_0, r = on_path(p.schedule, predict, r, p.total - 1, s.sampled)
    with p.accelerator.autocast():
        norms, noise = variation(p.schedule, predict, z_0, r.eps, r.u, r.t, s.power, s.ceiling > 0)
    mean = p.accelerator.reduce(norms.detach().mean(), "mean")
    excess = norms - (s.ceiling or p.running.renew(mean))
    if s.ceiling or s.one_sided:
        excess = excess.clamp(min=0)
    found = {"regulariser": excess.square().mean(), "norm": mean}
    if s.guard or s.hold:
        found |= _drift(p, z_0, r, condition, null, noise, excess.detach() <= 0)
    weights, error = _plain(p, first + of * s.batch, generator) if s.plain else _base(p, noise, r)
    return {"base": (weights.to(error) * error.square().mean((1, 2, 3))).mean(), **found}


def _plain(p: _Parts, first: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The weights [B] and errors [B, C, h, w] of L_base's own rows."""
    s = p.settings
    r, z_0, condition = p.rows(first, s.plain, range(p.total), s.prompt_dropout, generator)
    x_t = p.schedule.add_noise(z_0, r.eps, r.t)
    with p.accelerator.autocast():
        noise = p.network(x_t, r.t, condition)
    if not s.distilled:
        return _base(p, noise, r)
    return picture_weight(p.schedule, r.t), noise - p.start(x_t, r.t, condition)


def _base(p: _Parts, noise: Tensor, r: Drawn) -> tuple[Tensor, Tensor]:
    """The same of any rows, with the true noise."""
    return loss_weight(p.schedule, r.t, p.settings.min_snr), noise - r.eps


def _weighed(s: SmoothSettings, found: Mapping[str, Tensor]) -> Tensor:
    loss = found["base"] + s.weight * found["regulariser"]
    for name, weight in (("drift", s.guard), ("held", s.hold)):
        if weight:
            loss = loss + weight * found[name]
    return loss


def _drift(
    p: _Parts, z_0: Tensor, r: Drawn, condition: Condition, null: Condition | None, noise: Tensor, calm: Tensor
) -> dict[str, Tensor]:
    """How far the regularised predictions are from the original model's there in colours, and in whole pictures from
    the student's at its start, if they are `calm` [B]."""
    x_t = p.schedule.add_noise(z_0, r.eps, r.t).detach()

    def of(network: Network) -> Tensor:
        return prediction(network, condition, null, p.settings.guidance, len(z_0))(x_t, r.t)

    found = {}
    if p.settings.guard:
        found["drift"] = colour_drift(p.schedule, noise, of(p.original), r.t).mean()
    if p.settings.hold:
        found["held"] = (calm * picture_drift(p.schedule, noise, of(p.start), r.t)).mean()
    return found


def _backward(accelerator: Any, loss: Tensor) -> None:
    try:
        accelerator.backward(loss)
    except RuntimeError as error:
        if "once_differentiable" not in str(error):
            raise
        raise ValueError(
            "model: a part of this network has no second derivative, which this training needs; "
            "training.groupnorm.quicken puts in such parts: load the network anew from its files"
        ) from error
