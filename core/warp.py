"""A picture moved by its points: moving least squares (Schaefer, McPhail and Warren 2006), and what it leaves behind.

Points are (x, y) in pixels; (0, 0) is the centre of the first pixel. The plane is taken as the complex numbers, in
which a similarity is one multiplication and one addition.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .alpha import pad_rgb, unpremultiply


def moving_least_squares(at: Tensor, handles: Tensor, targets: Tensor, *, rigid: bool = False) -> Tensor:
    """Where the points `at` [..., 2] go when `handles` [N, 2] go to `targets` [N, 2]: [..., 2], in float64.

    Each point moves by the similarity `a (v - p*) + q*` that fits the handles best, those nearby counting most, with
    weights `1 / |p_i - v|^2` (Section 2.2); `rigid` leaves out its change of size (Section 2.3). Handles go exactly to
    their targets. One handle moves everything by its own step.
    """
    v, p, q = (torch.view_as_complex(each.to(torch.float64).contiguous()) for each in (at, handles, targets))
    weight = 1 / (v[..., None] - p).abs().square().clamp(min=1e-9)  # ... N
    weight = weight / weight.sum(-1, keepdim=True)
    p_mean, q_mean = (weight * p).sum(-1), (weight * q).sum(-1)
    p_hat, q_hat = p - p_mean[..., None], q - q_mean[..., None]
    spread = (weight * p_hat.abs().square()).sum(-1)
    turn = (weight * q_hat * p_hat.conj()).sum(-1) / spread.clamp(min=1e-12)
    turn = torch.where(spread > 1e-9, turn, torch.ones_like(turn))  # one handle, or all in one place
    if rigid:
        turn = turn / turn.abs().clamp(min=1e-12)
    return torch.view_as_real(turn * (v - p_mean) + q_mean)


def pixel_grid(height: int, width: int) -> Tensor:
    """The centre of every pixel, (x, y): float64 [H, W, 2]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], -1).to(torch.float64)


def sample_at(values: Tensor, points: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Bilinear values [B, C, ...] of a map [B, C, h, w] at points [..., 2] in pixels of a picture of `size` (H, W),
    over all of which the map lies; without it, in the map's own pixels. Zero outside."""
    height, width = size or (values.shape[2], values.shape[3])
    scale = torch.tensor([width, height], dtype=points.dtype, device=points.device)
    where = ((points + 0.5) / scale * 2 - 1).to(values)
    flat = where.reshape(1, 1, -1, 2).expand(values.shape[0], -1, -1, -1)
    found = F.grid_sample(values, flat, mode="bilinear", align_corners=False)
    return found.reshape(*values.shape[:2], *points.shape[:-1])


def warp(image: Tensor, mask: Tensor, handles: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What `mask` [B, 1, H, W] (1 = moves) shows of the picture [B, C, H, W], moved: (colour, its mask), both where the
    handles' similarity puts them.

    Read backwards: each pixel asks where it comes from, so that nothing tears. The colour is straight, as if cut out.
    """
    height, width = image.shape[2:]
    source = moving_least_squares(pixel_grid(height, width), targets, handles).to(image.device)
    moved = sample_at(torch.cat([image * mask, mask], 1), source)
    alpha = moved[:, -1:].clamp(0, 1)
    return unpremultiply(moved[:, :-1], alpha), alpha


class Moved(NamedTuple):
    """A picture after a move: `picture` [B, 3, H, W], with only a guess where something `left` [B, 1, H, W]; the moved
    `colour` and its `alpha`; what lies `behind` it."""

    picture: Tensor
    left: Tensor
    colour: Tensor
    alpha: Tensor
    behind: Tensor


def move(image: Tensor, alpha: Tensor, handles: Tensor, targets: Tensor, *, grow: int = 2) -> Moved:
    """The picture [B, 3, H, W] in 0 .. 1 with what `alpha` [B, 1, H, W] covers put where the handles go. The place it
    left, with `grow` pixels around it, is filled from its surroundings."""
    colour, there = warp(image, alpha, handles, targets)
    hole = F.max_pool2d((alpha > 0.02).to(alpha), 2 * grow + 1, 1, grow)
    behind = pad_rgb(image, 1 - hole)
    return Moved(torch.lerp(behind, colour, there), hole * (1 - there), colour, there, behind)
