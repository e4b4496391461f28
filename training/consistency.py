"""Latent consistency distillation and fine-tuning (Luo et al. 2023, Algorithms 1 and 4): one trainer.

`f_theta(z_t, omega, c, t)` is asked to give the same z_0 at two neighbouring points of one trajectory,
`d(f_theta(z_t), f_target(z_s))` with s = t - k (LCM, Eq. 16). Distillation makes z_s from z_t with an ODE solver and
the teacher's guided noise; fine-tuning, without a teacher, from the data with the same noise as z_t. The target is an
exponential average of the student.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.consistency import consistency_function
from ..core.guidance import guide_omega
from ..core.protocols import Condition, LatentModel, Progress, no_progress
from ..core.schedule import NoiseSchedule
from ..core.solvers import SOLVERS
from .diffusion import stratified
from .examples import Examples, join
from .loop import Job, Settings, Trained, Watch, accelerator_for, descend, fit, no_watch, recipe_of
from .share import share_of
from .students import Student

Sample = Callable[[Student, Mapping[str, list[float]]], Tensor | None]
"""`sample(student, losses)`: a picture [3, H, W] in 0 .. 1 of how far it is, or None."""

METHODS = ("distill", "finetune")
LOSSES = ("huber", "l2")
WEIGHTINGS = ("none", "signal", "snr")


@dataclass(frozen=True)
class ConsistencySettings(Settings):
    """`method` is "distill" (LCD) or "finetune" (LCF); `skip` the k of the papers, a divisor of the schedule's length;
    `solver` one of core's SOLVERS. omega is uniform in `omega_min` .. `omega_max`. `loss` is "huber" (with constant
    `huber_c`) or "l2"; `mu` the target's memory.

    `weighting` "none" is the paper's; "signal" weighs each sample by sqrt(abar_t), "snr" by the signal-to-noise ratio,
    at most 20. An error of the network's noise is sigma_t / alpha_t times as large in z_0: unweighted, the noisiest
    timesteps have fifty times the gradient of the cleanest, on whose precision all the others rest. "snr" asks the same
    precision of the noise everywhere; in short trainings it brings the cleaner timesteps down several times as fast.
    """

    method: str = "distill"
    skip: int = 20
    solver: str = "ddim"
    omega_min: float = 2.0
    omega_max: float = 14.0
    loss: str = "huber"
    huber_c: float = 0.001
    mu: float = 0.95
    weighting: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (
            ("method", METHODS),
            ("solver", tuple(SOLVERS)),
            ("loss", LOSSES),
            ("weighting", WEIGHTINGS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.skip < 1:
            raise ValueError(f"skip: expected at least 1, got {self.skip}")
        if not 0 <= self.omega_min <= self.omega_max:
            raise ValueError(
                f"omega_min, omega_max: expected 0 <= omega_min <= omega_max, got {self.omega_min}, {self.omega_max}"
            )
        if not 0 <= self.mu < 1:
            raise ValueError(f"mu: expected at least 0 and less than 1, got {self.mu}")
        if self.huber_c <= 0:
            raise ValueError(f"huber_c: expected more than 0, got {self.huber_c}")


def pair_timesteps(count: int, total: int, skip: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`count` pairs t = t_{n+k} and s = t_n, long, t spread evenly over the grid k i - 1, i = 1 .. total / k.

    The paper counts n over the whole schedule; the authors' released code, and this, draw t from the grid that few-step
    sampling walks, and take s = t - k, the last one clamped to 0, where f(x, 0) = x holds exactly.
    """
    if total % skip:
        raise ValueError(f"skip: expected a divisor of the schedule's {total} timesteps, got {skip}")
    t = (stratified(count, total // skip, generator) + 1) * skip - 1
    return t, (t - skip).clamp(min=0)


def guided_noise(
    model: LatentModel, condition: Condition, null: Condition, omega: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """eps of the augmented PF-ODE, (1 + omega) eps(z, c) - omega eps(z, null) (LCM, Eq. 12), for [B] samples in one
    network call of 2 B rows."""
    batch = len(omega)
    both = join([condition, null], [batch, batch])

    def evaluate(x: Tensor, t: Tensor) -> Tensor:
        eps = model.predict_noise(torch.cat([x, x]), torch.cat([t, t]), both)
        with_text, without = eps.chunk(2)
        return guide_omega(with_text, without, omega)

    return evaluate


def distance(a: Tensor, b: Tensor, loss: str, c: float, weight: Tensor | None = None) -> Tensor:
    """d(a, b): squared error, or pseudo-Huber sqrt((a - b)^2 + c^2) - c, a mean over everything (the released code's
    form), each sample with its `weight` [B]."""
    error = (a - b).float().square()
    each = error if loss == "l2" else (error + c**2).sqrt() - c
    return each.mean() if weight is None else (weight.to(each) * each.flatten(1).mean(1)).mean()


def loss_weight(schedule: NoiseSchedule, t: Tensor, weighting: str) -> Tensor | None:
    """One of WEIGHTINGS for each sample, [B]; None for none."""
    if weighting == "none":
        return None
    abar = schedule.alpha_bar(t)
    return abar.sqrt() if weighting == "signal" else (abar / (1 - abar)).clamp(max=20.0)


@dataclass(frozen=True)
class Drawn:
    """One batch's random numbers: timesteps t and s [B] on the CPU, omega [B], and the noise."""

    t: Tensor
    s: Tensor
    omega: Tensor
    eps: Tensor


def drawn(z_0: Tensor, total: int, settings: ConsistencySettings, generator: torch.Generator) -> Drawn:
    """All that is random in a step."""
    t, s = pair_timesteps(len(z_0), total, settings.skip, generator)
    share = torch.rand(len(z_0), generator=generator)
    omega = settings.omega_min + (settings.omega_max - settings.omega_min) * share
    return Drawn(t, s, omega, torch.randn(z_0.shape, generator=generator))


def neighbour(
    model: LatentModel, z_0: Tensor, z_t: Tensor, condition: Condition, null: Condition | None, r: Drawn, solver: str
) -> Tensor:
    """z_s on z_t's trajectory: the teacher's solver step (Algorithm 1, LCM, Eq. 17), or without a `null` text to guide
    with the data under the same noise (Algorithm 4).

    Eq. 17 adds up the solver's increments with and without the text. For DDIM, linear in eps, that is this step of the
    guided noise; of the others this is the one that solves the guided ODE.
    """
    if null is None:
        return model.schedule.add_noise(z_0, r.eps.to(z_0), r.s)
    return SOLVERS[solver](model.schedule, guided_noise(model, condition, null, r.omega), z_t, r.t, r.s)


def predicted(
    schedule: NoiseSchedule, student: nn.Module, model: LatentModel, x: Tensor, t: Tensor, c: Condition, omega: Tensor
) -> Tensor:
    """f_theta(x, omega, c, t) (LCM, Eq. 9)."""
    return consistency_function(schedule, x, student(model, x, t, c, omega).float(), t)


def train(
    model: LatentModel,
    student: Student,
    examples: Examples,
    null: Condition | None,
    settings: ConsistencySettings,
    folder: str | os.PathLike[str],
    *,
    progress: Progress = no_progress,
    resume: bool = False,
    recipe: dict[str, Any] | None = None,
    sample: Sample | None = None,
    watch: Watch = no_watch,
) -> Trained:
    """Train the student in place; the outcome's "student" is its average.

    `model` is the teacher, and the network that a LoRA student changes; it stays as it is. `null`, the condition of the
    empty prompt, is for distillation. `sample` makes the preview after each save, from the
    student as it is. `watch` is told the losses.
    """
    distilled = settings.method == "distill"
    if distilled and null is None:
        raise ValueError("null: distillation needs the condition of the empty prompt, to guide the teacher with")
    pair_timesteps(1, len(model.schedule), settings.skip, torch.Generator())
    with torch.inference_mode(False), model.differentiable():
        accelerator = accelerator_for(settings, cpu=model.device.type == "cpu")
        job = _job(model, student, examples, null if distilled else None, settings, accelerator)
        job.recipe = recipe_of(settings, **(recipe or {}))
        job.preview = None if sample is None else lambda: sample(student, job.history)
        job.watch = watch
        return fit(job, settings, folder, accelerator, progress=progress, resume=resume)


def _job(
    model: LatentModel,
    student: Student,
    examples: Examples,
    null: Condition | None,
    settings: ConsistencySettings,
    accelerator: Any,
) -> Job:
    """The step, and what it changes. Without `null` it is fine-tuning's."""
    schedule = model.schedule
    target = copy.deepcopy(student).requires_grad_(False).to(accelerator.device)
    optimizer: Any = torch.optim.AdamW(student.parameters(), 1e-4, (0.9, 0.99), weight_decay=settings.weight_decay)
    prepared, optimizer = accelerator.prepare(student, optimizer)

    share = share_of(accelerator)

    def step(number: int, generator: torch.Generator) -> dict[str, float]:
        z_0, condition = examples(share.first(number, settings.batch), settings.batch)
        r = share.own(drawn(share.whole(z_0), len(schedule), settings, generator))
        z_0 = z_0.to(model.device)
        z_t = schedule.add_noise(z_0, r.eps.to(z_0), r.t)
        with torch.no_grad(), accelerator.autocast():
            z_s = neighbour(model, z_0, z_t, condition, null, r, settings.solver)
            wanted = predicted(schedule, target, model, z_s, r.s, condition, r.omega)
        with accelerator.autocast():
            found = predicted(schedule, prepared, model, z_t, r.t, condition, r.omega)
        weight = loss_weight(schedule, r.t, settings.weighting)
        loss = distance(found, wanted, settings.loss, settings.huber_c, weight)
        descend(accelerator, loss, prepared, [optimizer], settings.clip)
        follow(target, student, settings.mu)
        return {"loss": loss.item()}

    modules: dict[str, nn.Module] = {"student": prepared, "target": target}
    return Job(modules, {"student": optimizer}, step, {}, unaveraged=frozenset({"target"}))


@torch.no_grad()
def follow(target: nn.Module, student: nn.Module, mu: float) -> None:
    """theta- <- mu theta- + (1 - mu) theta."""
    for mine, theirs in zip(target.parameters(), student.parameters(), strict=True):
        mine.lerp_(theirs.to(mine), 1 - mu)
