"""Noise levels in sigma space: which ones a run visits, by ComfyUI's scheduler names.

A level is the sigma of the variance-exploding form `x_0 + sigma eps`. Arithmetic is in float32 and in the order that
gives the same bits as ComfyUI, because the same seed must give the same image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ...core.schedule import NoiseSchedule

_LEAST_SIGNAL = 4.8973451890853435e-08  # abar at sigma = 4518.8, ComfyUI's stand-in for a level without signal.


def with_signal(schedule: NoiseSchedule) -> NoiseSchedule:
    """The schedule, but a last level of no signal at all (zero terminal SNR) becomes a very high one.

    Without it a v-prediction network's answer there would be lost on the way through eps.
    """
    return NoiseSchedule(schedule.alphas_cumprod.clamp(min=_LEAST_SIGNAL))


@dataclass(frozen=True)
class NoiseLevels:
    """A training schedule's levels, `sigmas` [T] rising, and the map between them and timesteps 0 .. T-1."""

    sigmas: Tensor
    log_sigmas: Tensor = field(repr=False)

    @classmethod
    def of(cls, schedule: NoiseSchedule) -> NoiseLevels:
        """The levels of `schedule`, finite all of them."""
        sigmas = with_signal(schedule).sigmas
        return cls(sigmas.float(), sigmas.log().float())

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep whose log sigma is nearest, long, in sigma's shape."""
        distance = sigma.log().reshape(1, -1).to(self.log_sigmas.device) - self.log_sigmas[:, None]
        return distance.abs().argmin(dim=0).view(sigma.shape).to(sigma.device)

    def sigma(self, t: Tensor) -> Tensor:
        """The level at a timestep, between timesteps linear in log sigma. t is clamped to 0 .. T-1."""
        t = t.float().clamp(0, len(self.sigmas) - 1)
        low, high, weight = t.floor().long(), t.ceil().long(), t.frac()
        return ((1 - weight) * self.log_sigmas[low] + weight * self.log_sigmas[high]).exp()

    def at_percent(self, percent: float) -> float:
        """The level after this share (0 .. 1) of the denoising; infinite at 0, none left at 1."""
        if percent <= 0:
            return math.inf
        return 0.0 if percent >= 1 else float(self.sigma(torch.tensor((1 - percent) * 999.0)))

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        return float(self.sigmas[0]), float(self.sigmas[-1])


def _simple(levels: NoiseLevels, steps: int) -> Tensor:
    stride = len(levels.sigmas) / steps
    chosen = [levels.sigmas[-(1 + int(i * stride))] for i in range(steps)]
    return _ending_at_zero(torch.stack(chosen))


def _normal(levels: NoiseLevels, steps: int, open_end: bool = False) -> Tensor:
    """Evenly spaced timesteps, both ends included; `open_end` leaves the last out (sgm_uniform)."""
    last = len(levels.sigmas) - 1
    timesteps = torch.linspace(last, 0, steps + 1)[:-1] if open_end else torch.linspace(last, 0, steps)
    return _ending_at_zero(levels.sigma(timesteps))


def _karras(levels: NoiseLevels, steps: int, rho: float = 7.0) -> Tensor:
    """Karras et al. 2022, Eq. 5."""
    low, high = (each ** (1 / rho) for each in levels.bounds)
    return _ending_at_zero((high + torch.linspace(0, 1, steps) * (low - high)) ** rho)


def _exponential(levels: NoiseLevels, steps: int) -> Tensor:
    low, high = levels.bounds
    return _ending_at_zero(torch.linspace(math.log(high), math.log(low), steps).exp())


def _ddim_uniform(levels: NoiseLevels, steps: int) -> Tensor:
    """Every T//steps-th timestep counted from 1, as DDIM does: it may give more levels than steps were asked for."""
    return _ending_at_zero(levels.sigmas[1 :: max(len(levels.sigmas) // steps, 1)].flip(0))


def _beta(levels: NoiseLevels, steps: int, alpha: float = 0.6, beta: float = 0.6) -> Tensor:
    """Timesteps at quantiles of a beta distribution (Lee et al. 2024, arXiv:2407.12173); repeated ones are left out."""
    import numpy
    from scipy.stats import beta as distribution

    quantiles = 1 - numpy.linspace(0, 1, steps, endpoint=False)
    timesteps = numpy.rint(distribution.ppf(quantiles, alpha, beta) * (len(levels.sigmas) - 1)).astype(int)
    distinct = [t for i, t in enumerate(timesteps) if i == 0 or t != timesteps[i - 1]]
    return _ending_at_zero(levels.sigmas[distinct])


def _linear_quadratic(levels: NoiseLevels, steps: int, threshold: float = 0.025) -> Tensor:
    """Half of the steps remove `threshold` of the noise evenly, the rest quadratically (Mochi's schedule)."""
    if steps == 1:
        shares = [1.0, 0.0]
    else:
        linear = steps // 2
        excess, rest = linear - threshold * steps, steps - linear
        a = excess / (linear * rest**2)
        b = threshold / linear - 2 * excess / rest**2
        removed = [i * threshold / linear for i in range(linear)]
        removed += [a * i**2 + b * i + a * linear**2 for i in range(linear, steps)]
        shares = [1.0 - x for x in (*removed, 1.0)]
    return torch.tensor(shares, dtype=torch.float32) * levels.sigmas[-1]


def _kl_optimal(levels: NoiseLevels, steps: int) -> Tensor:
    """Evenly spaced in atan(sigma) (Sabour et al. 2024, Align Your Steps, Sec. 3.1)."""
    low, high = levels.bounds
    ramp = torch.arange(steps, dtype=torch.float32) / max(steps - 1, 1)
    return _ending_at_zero((ramp * math.atan(low) + (1 - ramp) * math.atan(high)).tan())


def _ending_at_zero(sigmas: Tensor) -> Tensor:
    return torch.cat([sigmas, sigmas.new_zeros(1)])


SCHEDULES: dict[str, Callable[[NoiseLevels, int], Tensor]] = {
    "simple": _simple,
    "sgm_uniform": partial(_normal, open_end=True),
    "karras": _karras,
    "exponential": _exponential,
    "ddim_uniform": _ddim_uniform,
    "beta": _beta,
    "normal": _normal,
    "linear_quadratic": _linear_quadratic,
    "kl_optimal": _kl_optimal,
}
"""In ComfyUI's order."""


def sigmas_for(
    levels: NoiseLevels, scheduler: str, steps: int, denoise: float = 1.0, *, skip_penultimate: bool = False
) -> Tensor:
    """The levels that `steps` steps visit, float32, falling to 0.

    `denoise` below 1 makes a schedule of steps/denoise steps and keeps its end; at 0 the result is empty.
    `skip_penultimate` makes one step more and leaves the last but one level out: samplers that evaluate between two
    levels want it.
    """
    if scheduler not in SCHEDULES:
        raise ValueError(f"scheduler: expected one of {', '.join(SCHEDULES)}, got {scheduler!r}")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if denoise <= 0:
        return torch.empty(0)
    total = int(steps / denoise) if denoise <= 0.9999 else steps
    sigmas = SCHEDULES[scheduler](levels, total + skip_penultimate)
    if skip_penultimate:
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    return sigmas[-(steps + 1) :] if denoise <= 0.9999 else sigmas
