"""From a mask painted with a broad brush to the thing that it covers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .alpha import shrink

SIDE = 192  # the longer side that colours are compared at: enough for an outline, and bounded memory
RING = 5  # pixels of that size around the mask which are taken for background
NEAR = 24.0  # pixels that weigh as much as the whole range of a colour
PLAIN, CLEAR = 0.05, 0.14
"""Colour distances from the background: below the first it is background, above the second it is not."""


def snapped(image: Tensor, mask: Tensor) -> Tensor:
    """The part of `mask` [1, 1, H, W] (1 = painted) that differs from what surrounds it: alpha [1, 1, H, W].

    Each painted pixel of the picture [1, 3, H, W] in 0 .. 1 is compared with those just outside the mask, near ones
    counting most (sampling-based matting, as Gastal and Oliveira 2010 do). What looks like them and is connected to
    the outside is background; what it encloses is not. A mask is taken as it is painted where its edge cuts through the
    thing, or almost nothing or everything of it would be left.
    """
    height, width = mask.shape[2:]
    scale = min(1.0, SIDE / max(height, width))
    h, w = max(1, round(height * scale)), max(1, round(width * scale))
    small, painted = shrink(image.float(), h, w), (shrink(mask.float(), h, w) > 0.5).float()
    around = F.max_pool2d(painted, 2 * RING + 1, 1, RING) - painted
    inside, outside = _positions(painted), _positions(around)
    if len(inside) == 0 or len(outside) == 0:
        return mask
    # Where the brush did not reach the thing's edge its surroundings are the thing itself.
    if float((_distance(small, _deep(painted), outside) > PLAIN).float().mean()) < 0.5:
        return mask
    far = _distance(small, inside, outside)
    field = torch.zeros_like(painted)
    field[0, 0, inside[:, 0], inside[:, 1]] = far.to(field)
    alpha = ((field - PLAIN) / (CLEAR - PLAIN)).clamp(0, 1)
    open_air = _reached(1 - painted, (alpha < 0.5).float() * painted)
    alpha = torch.where((open_air > 0) | (F.max_pool2d(open_air, 3, 1, 1) > 0), alpha, painted)
    kept = float((alpha * painted).sum() / painted.sum())
    if not 0.2 <= kept <= 0.98:
        return mask
    return torch.minimum(F.interpolate(alpha, (height, width), mode="bilinear").to(mask), mask)


def _positions(mask: Tensor) -> Tensor:
    return (mask[0, 0] > 0.5).nonzero()


def _deep(mask: Tensor) -> Tensor:
    """The positions in the middle of a mask: what is left when half of it has been taken off its edge."""
    left, area = mask, float(mask.sum())
    while True:
        less = 1 - F.max_pool2d(1 - left, 3, 1, 1)
        if float(less.sum()) < area / 2:
            return _positions(left)
        left = less


def _distance(image: Tensor, at: Tensor, others: Tensor) -> Tensor:
    """For each position the least distance, in colour and place, to the other positions: [N], 0 .. about 1."""

    def described(positions: Tensor) -> Tensor:
        colour = image[0, :, positions[:, 0], positions[:, 1]].T / 3**0.5
        return torch.cat([colour, positions.to(colour) / (NEAR * 10)], 1)

    among = described(others)
    return torch.cat([torch.cdist(described(part), among).amin(1) for part in at.split(4096)])


def _reached(start: Tensor, passable: Tensor) -> Tensor:
    """What of `passable` is connected to `start`, and start: 0 or 1."""
    seen = start
    while True:
        grown = torch.maximum(start, F.max_pool2d(seen, 3, 1, 1) * passable)
        if bool((grown == seen).all()):
            return seen
        seen = grown
