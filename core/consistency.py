"""Latent consistency models (Luo et al. 2023): few steps, each a jump to x_0 and fresh noise.

`f(x_t, omega, c, t) -> x_0` for every t (LCM, Eq. 9). Sampling alternates f with noising to the next timestep
(LCM, Algorithm 3); trajectory consistency distillation (TCD, Zheng et al. 2024) jumps to a timestep in between instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from .ddim import ddim_transfer
from .protocols import Condition, LatentModel, Progress, no_progress
from .schedule import NoiseSchedule

Grid = Literal["paper", "diffusers"]

Denoise = Callable[[Tensor, Tensor], Tensor]
"""`denoise(x, sigma)`: x_0 from the variance-exploding x = x_0 + sigma eps, prompts and guidance included."""

Steps = Callable[[NoiseSchedule, Denoise, Tensor, Tensor, Callable[[], Tensor], Callable[[int, Tensor], None]], Tensor]
"""`steps(schedule, denoise, x, sigmas, draw, report) -> x`: a sampling loop as hosts run it, in sigma space. x is at
sigmas[0] when it starts and at sigmas[-1] when it returns; `draw()` gives fresh normal noise like x; `report(i, x_0)`
is called once in each step."""


def boundary_scalings(t: Tensor, sigma_data: float = 0.5, timestep_scaling: float = 10.0) -> tuple[Tensor, Tensor]:
    """c_skip(t) and c_out(t), float64, shape of `t`: 1, 0 at t = 0 and nearly 0, 1 after (LCM, Section 3, Appendix D).

    c_skip = sd^2 / (s^2 + sd^2), c_out = s / sqrt(s^2 + sd^2), with s = timestep_scaling * t, as in the released code.
    """
    s = timestep_scaling * t.to(torch.float64)
    return sigma_data**2 / (s**2 + sigma_data**2), s / (s**2 + sigma_data**2).sqrt()


def consistency_function(
    schedule: NoiseSchedule,
    x_t: Tensor,
    eps: Tensor,
    t: Tensor,
    *,
    sigma_data: float = 0.5,
    timestep_scaling: float = 10.0,
) -> Tensor:
    """f = c_skip(t) x_t + c_out(t) x_0, with x_0 = (x_t - sigma_t eps) / alpha_t (LCM, Eq. 9).

    `x_t`, `eps` [B, ...]; `t` scalar or [B]. Networks that predict v or x_0 come here as the eps they imply
    (`NoiseSchedule.to_epsilon`), which is Appendix D's form of f for them.
    """
    return _bounded(x_t, schedule.x0_from_epsilon(x_t, eps, t), t, sigma_data, timestep_scaling)


def _bounded(x_t: Tensor, x_0: Tensor, t: Tensor, sigma_data: float = 0.5, timestep_scaling: float = 10.0) -> Tensor:
    """c_skip(t) x_t + c_out(t) x_0."""
    shape = (-1,) + (1,) * (x_t.ndim - 1)
    c_skip, c_out = (c.to(x_t).reshape(shape) for c in boundary_scalings(t, sigma_data, timestep_scaling))
    return c_skip * x_t + c_out * x_0


def lcm_timesteps(
    steps: int, *, original_steps: int = 50, strength: float = 1.0, count: int = 1000, grid: Grid = "paper"
) -> Tensor:
    """The timesteps of few-step sampling, falling, long [steps], chosen from those the model was distilled on.

    The distillation grid is t = k i - 1 for i = 1 .. original_steps with k = count / original_steps; `strength` below 1
    keeps its lower end, for image to image. "paper" walks down the grid by whole skips, as the authors' code does (four
    steps: 999, 759, 519, 279); "diffusers" spreads the steps evenly (999, 759, 499, 259).

    Raises ValueError unless original_steps divides count, 0 < strength <= 1 and the grid has that many steps.
    """
    if original_steps < 1 or count % original_steps:
        raise ValueError(f"original_steps: expected a divisor of {count}, got {original_steps}")
    if not 0 < strength <= 1:
        raise ValueError(f"strength: expected more than 0 and at most 1, got {strength}")
    origin = torch.arange(1, int(original_steps * strength) + 1) * (count // original_steps) - 1
    if not 1 <= steps <= len(origin):
        raise ValueError(
            f"steps: expected 1 .. {len(origin)} (of {original_steps} at strength {strength:g}), got {steps}"
        )
    if grid == "paper":
        return origin.flip(0)[:: len(origin) // steps][:steps]
    # The quotient first, as there: its rounding decides where a step falls between two of the grid.
    chosen = torch.arange(steps, dtype=torch.float64) * (len(origin) / steps)
    return origin.flip(0)[chosen.floor().long()]


def tcd_step(
    schedule: NoiseSchedule, x_t: Tensor, eps: Tensor, t: Tensor, s: Tensor, gamma: float, noise: Tensor
) -> Tensor:
    """From t to s < t by way of s' = floor((1 - gamma) s): along the ODE to s', then with noise up to s (TCD, strategic
    stochastic sampling).

    gamma = 0 is deterministic, a DDIM step; 1 goes down to t = 0 first, as an LCM does.
    """
    s = torch.as_tensor(s)
    middle = ((1 - gamma) * s).floor().long()
    x_middle = ddim_transfer(schedule, x_t, eps, t, middle)
    ratio = schedule.alpha_bar(s) / schedule.alpha_bar(middle)
    shape = (-1,) + (1,) * (x_t.ndim - 1)
    keep, add = (v.to(x_t).reshape(shape) for v in (ratio.sqrt(), (1 - ratio).clamp(min=0).sqrt()))
    return keep * x_middle + add * noise


def consistency_sample(
    model: LatentModel,
    x: Tensor,
    condition: Condition,
    timesteps: Tensor,
    draw: Callable[[], Tensor],
    *,
    omega: Tensor | None = None,
    gamma: float | None = None,
    known: Tensor | None = None,
    mask: Tensor | None = None,
    progress: Progress = no_progress,
) -> Tensor:
    """Multistep consistency sampling (LCM, Algorithm 3): x_0 [B, C, h, w], one network call for each of `timesteps`.

    `x` is the latent at timesteps[0] (noise, or an image noised to it); `draw()` gives fresh standard normal noise like
    `x`, once between two steps; `omega` [B] or [1] is the guidance of a network that takes it. `gamma` makes the steps
    TCD's. With `known` and `mask` (1 = free, broadcast to x), x_0 keeps `known` where the mask is 0 at every step. The
    progress preview is the predicted x_0.
    """
    if len(timesteps) == 0:
        raise ValueError("timesteps: expected at least one")
    ends = [*timesteps[1:], None]
    x_0 = x
    for step, (t, s) in enumerate(zip(timesteps, ends, strict=True)):
        at = t.expand(x.shape[0]).to(x.device)
        eps = model.predict_noise(x, at, condition, guidance_embedding=omega)
        x_0 = _keep(_clean(x, model.schedule.x0_from_epsilon(x, eps, at), at, gamma), known, mask)
        progress(step + 1, len(timesteps), x_0)
        if s is not None:
            x = _renoised(model.schedule, x, x_0, t, s, gamma, draw())
    return x_0


def consistency_steps(
    schedule: NoiseSchedule,
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    draw: Callable[[], Tensor],
    report: Callable[[int, Tensor], None],
    *,
    gamma: float | None = None,
) -> Tensor:
    """`consistency_sample` as hosts run it: of type `Steps`, in sigma space, one call of `denoise` for each step.

    `sigmas` [n + 1] fall, and normally end in 0; a last level above it leaves noise there. Each stands for the timestep
    that has this sigma, between two of them where it is none's.
    """
    times = _timesteps_of(schedule, sigmas)
    scales = (1 + sigmas.to(torch.float64) ** 2).sqrt().to(x)  # from variance preserving to variance exploding
    for step in range(len(sigmas) - 1):
        x_t = x / scales[step]
        x_0 = _clean(x_t, denoise(x, sigmas[step]), times[step], gamma)
        report(step, x_0)
        if sigmas[step + 1] > 0:
            x = scales[step + 1] * _renoised(schedule, x_t, x_0, times[step], times[step + 1], gamma, draw())
        else:
            x = x_0
    return x


def noise_after_start(x: Tensor, seed: int) -> Callable[[], Tensor]:
    """Fresh normal noise like `x` [B, C, h, w]: what a generator of this seed gives after the start noise, one draw of
    this shape, was taken from it. So it is new noise, and what diffusers' pipelines draw.

    On the CPU, so that a seed means the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        return torch.randn(x.shape, generator=generator).to(x)

    draw()
    return draw


def _timesteps_of(schedule: NoiseSchedule, sigmas: Tensor) -> Tensor:
    """Fractional timesteps, float64 on the CPU; whole ones where a sigma is a timestep's but for float32 rounding."""
    times = schedule.timestep(sigmas.cpu())
    whole = times.round()
    return torch.where((times - whole).abs() < 1e-3, whole, times)


def _clean(x_t: Tensor, x_0: Tensor, t: Tensor, gamma: float | None) -> Tensor:
    """What a step takes for clean data: an LCM's f; TCD has no boundary scalings."""
    return _bounded(x_t, x_0, t) if gamma is None else x_0


def _renoised(
    schedule: NoiseSchedule, x_t: Tensor, x_0: Tensor, t: Tensor, s: Tensor, gamma: float | None, noise: Tensor
) -> Tensor:
    """From x_0 as seen at (x_t, t) on to timestep s: x_0 with fresh noise (Algorithm 3), or TCD's step."""
    if gamma is None:
        return schedule.add_noise(x_0, noise, s)
    # The noise that leads from this x_0 to x_t, so that what a mask keeps stays kept.
    return tcd_step(schedule, x_t, schedule.epsilon_from_x0(x_t, x_0, t), t, s, gamma, noise)


def _keep(x_0: Tensor, known: Tensor | None, mask: Tensor | None) -> Tensor:
    return x_0 if known is None or mask is None else mask * x_0 + (1 - mask) * known
