"""A layer in the colours of what lies around it: the colour transfer of Reinhard, Ashikhmin, Gooch and Shirley (2001,
"Color Transfer between Images"), from what is below to the layer above."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from .layers import Layer, Layers, overlap

# Eq. 4 (RGB to LMS cone responses) and Eq. 6 (log LMS to the decorrelated axes l, alpha, beta) of the paper.
_LMS = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
_AXES = ((3**-0.5,) * 3, (6**-0.5, 6**-0.5, -2 * 6**-0.5), (2**-0.5, -(2**-0.5), 0.0))
_DARKEST = 1 / 255  # logarithms want a floor
_MOST = 2.0  # by how much contrast may change


def to_axes(colour: Tensor) -> Tensor:
    """RGB [B, 3, H, W] in 0 .. 1 to l, alpha, beta, in float64."""
    lms, axes = (torch.tensor(each, dtype=torch.float64, device=colour.device) for each in (_LMS, _AXES))
    cones = torch.einsum("ij,bjhw->bihw", lms, colour.double().clamp(_DARKEST, 1))
    return torch.einsum("ij,bjhw->bihw", axes, cones.log10())


def from_axes(axes: Tensor) -> Tensor:
    """The inverse of `to_axes`, unclamped."""
    back = [torch.linalg.inv(torch.tensor(each, dtype=torch.float64, device=axes.device)) for each in (_LMS, _AXES)]
    return torch.einsum("ij,bjhw->bihw", back[0], 10 ** torch.einsum("ij,bjhw->bihw", back[1], axes))


def moments(axes: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each axis, [B, 3, 1, 1], where `weight` [B, 1, H, W] counts."""
    total = weight.sum((2, 3), keepdim=True).clamp(min=1e-12)
    mean = (axes * weight).sum((2, 3), keepdim=True) / total
    return mean, (((axes - mean).square() * weight).sum((2, 3), keepdim=True) / total).sqrt()


def transfer(colour: Tensor, weight: Tensor, target: Tensor, near: Tensor, amount: float) -> Tensor:
    """Colour [B, 3, H, W] in 0 .. 1 with the means and, within limits, the deviations of `target`, of its own size
    (Eq. 10, 11), by `amount`: 0 leaves it, 1 takes them whole. `weight` and `near` [B, 1, ...] say what counts of each;
    a picture of which nothing counts is left."""
    axes = to_axes(colour)
    (own, spread), (wanted, wide) = moments(axes, weight.double()), moments(to_axes(target), near.double())
    scale = (wide / spread.clamp(min=1e-6)).clamp(1 / _MOST, _MOST)
    moved = from_axes(torch.lerp(axes, (axes - own) * scale + wanted, amount)).clamp(0, 1).to(colour)
    counts = (weight.sum((1, 2, 3)) > 0) & (near.sum((1, 2, 3)) > 0)
    return torch.where(counts.view(-1, 1, 1, 1), moved, colour)


def harmonised(layers: Layers, layer: Layer, amount: float) -> Layer:
    """The layer, its colours moved by `amount`, 0 .. 1, towards those of `layers` behind and around it; the nearer to
    what it covers, the more a pixel counts. It is left where there is nothing below. ValueError for another amount."""
    if not 0 <= amount <= 1:
        raise ValueError(f"harmonise: expected 0 .. 1, got {amount}")
    place, part = overlap(layers, layer)
    if amount == 0 or not layers.layers or place is None:
        return layer
    below, there = (each[place] for each in layers.flatten())
    reach = max(1, max(layer.alpha.shape[2:]) // 8)
    near = F.avg_pool2d(layer.alpha, 2 * reach + 1, 1, reach)[part].to(there) * there
    count = max(len(layer.colour), len(below))
    colour, alpha, below, near = (each.expand(count, -1, -1, -1) for each in (layer.colour, layer.alpha, below, near))
    return replace(layer, colour=transfer(colour, alpha, below, near, amount), alpha=alpha)
