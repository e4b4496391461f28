"""DDIM (Song et al. 2021): the deterministic solver of the probability-flow ODE, in both directions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .guidance import guide
from .protocols import Condition, LatentModel, Progress, no_progress
from .schedule import NoiseSchedule

Spacing = Literal["leading", "trailing", "linspace"]


def ddim_timesteps(count: int, steps: int, spacing: Spacing = "leading", offset: int = 1) -> Tensor:
    """`steps` of the timesteps 0 .. count-1, falling, long [steps] (the spacings of Lin et al. 2024, Table 2).

    "leading" (with `offset`) is Stable Diffusion's; "trailing" starts at the last timestep. ValueError unless
    1 <= steps <= count.
    """
    if not 1 <= steps <= count:
        raise ValueError(f"steps: expected 1 .. {count}, got {steps}")
    if spacing == "trailing":
        grid = torch.arange(count, 0, -count / steps, dtype=torch.float64)[:steps].round().long() - 1
    elif spacing == "linspace":
        grid = torch.linspace(0, count - 1, steps, dtype=torch.float64).round().long().flip(0)
    else:
        grid = (torch.arange(steps) * (count // steps) + offset).flip(0)
    return grid.clamp(0, count - 1)


def ddim_transfer(schedule: NoiseSchedule, x_t: Tensor, eps: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """From timestep t to s along the ODE (DDIM, Eq. 12 with sigma = 0): sqrt(abar_s) x_0 + sqrt(1 - abar_s) eps.

    `x_t`, `eps` [B, ...]; `t`, `s` scalar or [B], -1 for clean data. s < t denoises (a sampling step); s > t is DDIM
    inversion (Smooth Diffusion, Eq. 4), where `eps` is taken at (x_t, t) in place of the unknown (x_s, s).
    """
    return schedule.add_noise(schedule.x0_from_epsilon(x_t, eps, t), eps, s)


def ddim_step(
    schedule: NoiseSchedule,
    x_t: Tensor,
    eps: Tensor,
    t: Tensor,
    s: Tensor,
    *,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """One sampling step from t to s < t (DDIM, Eq. 12, 16). `eta` = 0 is deterministic, 1 is DDPM's variance.

    `noise`, standard normal like `x_t`, is required where eta > 0.
    """
    if eta == 0:
        return ddim_transfer(schedule, x_t, eps, t, s)
    if noise is None:
        raise ValueError("noise: expected a standard normal tensor where eta > 0")
    signal_t, noise_t = schedule.signal_and_noise(t, x_t)
    signal_s, noise_s = schedule.signal_and_noise(s, x_t)
    sigma = eta * noise_s / noise_t * (1 - (signal_t / signal_s) ** 2).clamp(min=0).sqrt()
    x_0 = schedule.x0_from_epsilon(x_t, eps, t)
    return signal_s * x_0 + (noise_s**2 - sigma**2).clamp(min=0).sqrt() * eps + sigma * noise


def ddim_sample(
    model: LatentModel,
    x: Tensor,
    condition: Condition,
    null: Condition | None = None,
    *,
    w: float = 7.5,
    timesteps: Tensor,
    progress: Progress = no_progress,
) -> Tensor:
    """Sample from noise `x` [B, C, h, w] along falling `timesteps` to clean data, guided (Smooth Diffusion, Eq. 5).

    Without `null`, or at w = 1, the condition alone is used, one network call a step.
    """
    ends = torch.cat([timesteps[1:], timesteps.new_tensor([-1])])
    for step, (t, s) in enumerate(zip(timesteps, ends, strict=True)):
        at = t.expand(x.shape[0]).to(x.device)
        eps = model.predict_noise(x, at, condition)
        if null is not None and w != 1:
            eps = guide(model.predict_noise(x, at, null), eps, w)
        x = ddim_transfer(model.schedule, x, eps, t, s)
        progress(step + 1, len(timesteps), None)
    return x
