"""Convolutions of large pictures in stripes of rows: the same numbers in less memory, and closer to the processor.

Where gradients are recorded everything is computed whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIPE = 1 << 20  # values in a stripe


def norm_conv(parts: Sequence[Tensor], norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
    """conv(silu(norm(x))) for a 3x3 convolution, x the parts [B, C_i, H, W] side by side."""
    values = sum(part[0].numel() for part in parts)
    if torch.is_grad_enabled() or values <= STRIPE:
        x = parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)
        return conv(F.silu(norm(x), inplace=not torch.is_grad_enabled()))
    scales, shifts = _affine(parts, norm)

    def rows(low: int, high: int) -> Tensor:
        normed = [torch.addcmul(b, part[:, :, low:high], a) for part, a, b in zip(parts, scales, shifts, strict=True)]
        x = normed[0] if len(normed) == 1 else torch.cat(normed, 1)
        return F.silu(x, inplace=True)

    return _striped(rows, parts[0].shape[2], values, conv)


def upsample_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(x enlarged twice by nearest neighbour) for a 3x3 convolution."""
    values = 4 * x[0].numel()
    if torch.is_grad_enabled() or values <= STRIPE:
        return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

    def rows(low: int, high: int) -> Tensor:
        first = low // 2
        enlarged = F.interpolate(x[:, :, first : (high + 1) // 2], scale_factor=2.0, mode="nearest")
        return enlarged[:, :, low - 2 * first : high - 2 * first]

    return _striped(rows, 2 * x.shape[2], values, conv)


def _striped(rows: Any, height: int, values: int, conv: nn.Conv2d) -> Tensor:
    """`rows(low, high)` are rows of the convolution's input, of which there are `height` and `values` in all."""
    step = max(8, -(-height * STRIPE // values))
    out = None
    for low in range(0, height, step):
        high = min(height, low + step)
        top, bottom = low == 0, high == height
        x = rows(low - (not top), high + (not bottom))
        if top or bottom:
            x = F.pad(x, (0, 0, int(top), int(bottom)))
        y = F.conv2d(x, conv.weight, conv.bias, padding=(0, 1))
        if out is None:
            shape = (y.shape[0], y.shape[1], height, y.shape[3])
            out = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=torch.channels_last)
        out[:, :, low:high] = y
    return torch.empty(0) if out is None else out


def _affine(parts: Sequence[Tensor], norm: nn.GroupNorm) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Group normalisation as x * scale + shift, [B, C_i, 1, 1] for each part: the groups may lie across parts."""
    moments = [_moments(part) for part in parts]
    mean, square = (torch.cat([each[k] for each in moments], 1) for k in (0, 1))
    groups = mean.view(len(mean), norm.num_groups, -1)
    centre = groups.mean(2, keepdim=True)
    # Var = E[Var of a channel] + Var[means]: no difference of large squares.
    spread = square.view_as(groups).mean(2, keepdim=True) + (groups - centre).square().mean(2, keepdim=True)
    rate = (spread + norm.eps).rsqrt()
    scale = (rate.expand_as(groups).reshape(mean.shape) * norm.weight)[:, :, None, None]
    shift = norm.bias[None, :, None, None] - centre.expand_as(groups).reshape(*mean.shape, 1, 1) * scale
    sizes = [part.shape[1] for part in parts]
    return scale.split(sizes, 1), shift.split(sizes, 1)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel, [B, C] each; `torch.var_mean` takes many times as long on channels last."""
    height, count = x.shape[2], x.shape[2] * x.shape[3]
    step = max(1, STRIPE * height // x[0].numel())
    mean = x.sum((2, 3)) / count
    centre, total = mean[:, :, None, None], torch.zeros_like(mean)
    for low in range(0, height, step):
        total += (x[:, :, low : low + step] - centre).square_().sum((2, 3))
    return mean, total / count


def add_pointwise(out: Tensor, parts: Sequence[Tensor], conv: nn.Conv2d) -> Tensor:
    """out + conv(x) for a 1x1 convolution, x the parts side by side. `out` is changed."""
    if torch.is_grad_enabled() or not out.is_contiguous(memory_format=torch.channels_last):
        x = parts[0] if len(parts) == 1 else torch.cat(list(parts), 1)
        return out.add_(conv(x))
    weights = conv.weight[:, :, 0, 0].split([part.shape[1] for part in parts], 1)
    flat = out.permute(0, 2, 3, 1).view(-1, out.shape[1])
    for part, weight in zip(parts, weights, strict=True):
        flat.addmm_(part.permute(0, 2, 3, 1).reshape(-1, part.shape[1]), weight.t())
    return out if conv.bias is None else out.add_(conv.bias[:, None, None])
