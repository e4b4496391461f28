"""Super-resolution: what a model that enlarges is told of the small picture, and where its sampling starts.

(Latent Diffusion, section 4.4.) The model is told the small picture twice: its pixels, side by side in the cells of the
latent, and the latent of what the classic enlargement makes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from .schedule import NoiseSchedule
from .spatial import HALF, pixel_cells


def bicubic(small: Tensor, scale: int) -> Tensor:
    """Pictures [B, 3, h, w] in 0 .. 1 enlarged the classic way."""
    return F.interpolate(small, scale_factor=scale, mode="bicubic", align_corners=False).clamp(0, 1)


def given_of(small: Tensor, latent: Tensor) -> Tensor:
    """What the model is told, [B, C + 12, h / 2, w / 2]: the scaled latent of the small picture [B, 3, h, w] in 0 .. 1
    enlarged the classic way, and the picture itself."""
    return torch.cat([latent, pixel_cells(small * 2 - 1)], 1)


def widened(small: Tensor, least: int) -> Tensor:
    """The picture with its last rows and columns repeated, to whole cells of the latent and `least` pixels a side."""
    height, width = (max(least, -(-side // HALF) * HALF) for side in small.shape[-2:])
    return F.pad(small, (0, width - small.shape[-1], 0, height - small.shape[-2]), mode="replicate")


def levels(schedule: NoiseSchedule, steps: int, strength: float) -> Tensor:
    """Falling noise levels, [steps + 1], the last one 0: evenly spread over the timesteps of the share `strength` of
    the denoising. ValueError for what cannot be."""
    if steps < 1 or not 0 < strength <= 1:
        raise ValueError(f"denoise: expected more than 0, up to 1, and 1 step at least, got {strength:g} and {steps}")
    first = max(1, round(strength * len(schedule))) - 1
    times = torch.linspace(first, 0, steps + 1)[:-1].round().long()
    return torch.cat([schedule.sigma(times), torch.zeros(1)]).float()


def ddim_steps(
    schedule: NoiseSchedule,
    denoise: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    sigmas: Tensor,
    draw: Callable[[], Tensor],
    report: Callable[[int, Tensor], None],
) -> Tensor:
    """DDIM as hosts run it, of type `Steps`, in sigma space: x_s = x_0 + (sigma_s / sigma_t) (x_t - x_0)."""
    for step, (sigma, after) in enumerate(pairwise(sigmas)):
        x_0 = denoise(x, sigma)
        report(step, x_0)
        x = x_0 + (after / sigma) * (x - x_0)
    return x
