"""Colour and alpha: premultiplication, compositing, and colour for what has none.

Colours are [B, 3, H, W], alphas [B, 1, H, W] with 1 opaque. Colours may be in any range; `pad_rgb` wants 0 .. 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SHRINK = 1.2  # each level of the pyramid is this much smaller


def premultiply(colour: Tensor, alpha: Tensor) -> Tensor:
    """I_p = I_c * I_alpha (Latent Transparency, section 3)."""
    return colour * alpha


def unpremultiply(colour: Tensor, alpha: Tensor) -> Tensor:
    """The straight colour again; 0 where alpha is 0."""
    return torch.where(alpha > 0, colour / alpha.clamp(min=torch.finfo(alpha.dtype).tiny), 0)


def over(colour: Tensor, alpha: Tensor, below: Tensor, below_alpha: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Straight colour and alpha of one layer over another; `below_alpha` None is opaque (Porter and Duff 1984)."""
    if below_alpha is None:
        below_alpha = torch.ones_like(alpha)
    shown = below_alpha * (1 - alpha)
    total = alpha + shown
    return unpremultiply(colour * alpha + below * shown, total), total


def pad_rgb(colour: Tensor, alpha: Tensor, *, keep_soft: bool = False) -> Tensor:
    """Padded RGB: where alpha is 0 the colour of what is near, so that no fringe appears (Latent Transparency, section
    3). `colour` is straight, in 0 .. 1, and ignored where alpha is 0.

    An iterative Gaussian filter as a pyramid: the premultiplied picture at ever smaller sizes, and from the smallest
    up each laid over the enlarged one below. Pixels of alpha 1 keep their colour exactly; half transparent ones are
    mixed with what is near, as the released encoder was trained with, unless `keep_soft`.
    """
    check_alpha(colour, alpha)
    levels = [torch.cat([colour * alpha, alpha], 1)]
    while min(levels[-1].shape[2:]) > 1:
        h, w = (max(1, int(side / SHRINK)) for side in levels[-1].shape[2:])
        levels.append(shrink(levels[-1], h, w))
    sums = levels[-1].sum((2, 3), keepdim=True)
    padded = sums[:, :3] / sums[:, 3:].clamp(min=1e-8)
    for level in reversed(levels):
        padded = F.interpolate(padded, level.shape[2:], mode="bilinear")
        padded = level[:, :3] + padded * (1 - level[:, 3:])
    return torch.where(alpha > 0, colour, padded) if keep_soft else padded


def shrink(image: Tensor, height: int, width: int) -> Tensor:
    """A smaller picture [B, C, height, width], each pixel the exact mean of the area it covers."""
    return _shrink_rows(_shrink_rows(image, height).transpose(2, 3), width).transpose(2, 3)


def _shrink_rows(image: Tensor, size: int) -> Tensor:
    full = image.shape[2]
    if size == full:
        return image
    edges = torch.arange(size + 1, dtype=torch.float64) * full / size
    low, high, out = edges[:-1], edges[1:], None
    for tap in range(-(-full // size) + 1):
        row = low.floor() + tap
        share = (torch.minimum(row + 1, high) - torch.maximum(row, low)).clamp(min=0) * size / full
        rows = image.index_select(2, row.clamp(max=full - 1).long().to(image.device))
        part = rows * share.to(image).view(1, 1, -1, 1)
        out = part if out is None else out + part
    return image if out is None else out


def check_alpha(colour: Tensor, alpha: Tensor) -> None:
    """ValueError unless they are [B, 3, H, W] and [B, 1, H, W] of one size."""
    if colour.ndim != 4 or colour.shape[1] != 3 or alpha.shape != (len(colour), 1, *colour.shape[2:]):
        raise ValueError(
            f"alpha: expected [B, 1, H, W] beside a colour [B, 3, H, W], got {tuple(alpha.shape)} beside "
            f"{tuple(colour.shape)}"
        )
