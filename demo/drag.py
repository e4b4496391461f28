"""Drags in the Sprites world: cases with exact handles and targets, and where the handles are in an edited picture.

An object is a function of its pose, so a case is two poses: where it is, and where it shall be. An edited picture is
read by drawing the object in many poses and keeping the one that explains the picture best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.alpha import over
from . import measure, sprites
from .captions import KINDS

Change = Literal["move", "rotate", "stretch"]
CHANGES: tuple[Change, ...] = ("move", "rotate", "stretch")
TURNS = tuple(KINDS.index(name) for name in ("feather", "heart", "mushroom", "fish"))
"""Kinds that show which way they are turned."""
FAINT = tuple(KINDS.index(name) for name in ("soap bubble", "smoke cloud", "glow"))
"""Kinds without an outline that could be found to a pixel."""
BRUSH = 5  # pixels that a painted mask goes beyond the object


@dataclass(frozen=True)
class Case:
    """One drag. Pictures in 0 .. 1; handles and targets [N, 2] as (x, y), (0, 0) the centre of the first pixel; `mask`
    [1, 1, S, S] is the object as one would paint it over; poses are `sprites.pose`'s, captions
    are of the scene and of what is `behind` the object."""

    index: int
    change: Change
    picture: Tensor
    mask: Tensor
    handles: Tensor
    targets: Tensor
    caption: str
    behind: str
    kind: int
    colour: int
    pose: Tensor
    wanted: Tensor


class Found(NamedTuple):
    """Where the handles are [N, 2], the pose that says so, and the mean difference of the pictures that is left."""

    handles: Tensor
    pose: Tensor
    residual: float


def cases(count: int, seed: int = measure.HELD_OUT, size: int = 128) -> list[Case]:
    """The first `count` cases of a seed: move, rotate, stretch in turn, of scenes where this can be told."""
    made: list[Case] = []
    index = 0
    while len(made) < count:
        case = _case(seed, index, CHANGES[len(made) % 3], size)
        index += 1
        if case is not None:
            made.append(case)
    return made


def _case(seed: int, index: int, change: Change, size: int) -> Case | None:
    u = sprites.uniform(seed + 0xD2A6, torch.tensor([index]), 4)[0]
    scene = sprites.draw(seed, [index], size)
    kind = int(scene.kind)
    if kind in FAINT or (change == "rotate" and kind not in TURNS):
        return None
    here = sprites.pose(seed, index)
    there = here.clone()
    sign = 1.0 if u[1] < 0.5 else -1.0
    if change == "move":
        turn, step = 2 * math.pi * float(u[0]), 0.10 + 0.08 * float(u[2])
        there[:2] += step * torch.tensor([math.cos(turn), 0.5 * math.sin(turn)])
    elif change == "rotate":
        there[3] += sign * (0.35 + 0.25 * float(u[2]))
    else:
        there[2] *= 1 + sign * (0.2 + 0.15 * float(u[2]))
    rgba, points = sprites.posed(seed, index, torch.stack([here, there]), size)
    # The middle point for a move; two opposite ones say how far to turn or to grow.
    used = [0] if change == "move" else [1, 2]
    alpha = (rgba[:1, 3:] > 0.1).float()
    mask = F.max_pool2d(alpha, 2 * BRUSH + 1, 1, BRUSH)
    return Case(
        index,
        change,
        scene.blend,
        mask,
        points[0, used] - 0.5,
        points[1, used] - 0.5,
        scene.captions[0],
        scene.background_captions[0],
        kind,
        int(scene.colour),
        here,
        there,
    )


def wanted_picture(case: Case, seed: int = measure.HELD_OUT) -> Tensor:
    """What a perfect drag would make of a case, its shadow left behind: [1, 3, S, S]."""
    size = case.picture.shape[-1]
    scene = sprites.draw(seed, [case.index], size)
    rgba, _ = sprites.posed(seed, case.index, case.wanted[None], size)
    return over(rgba[:, :3], rgba[:, 3:], (scene.background * scene.shade).clamp(0, 1))[0]


@torch.no_grad()
def find_handles(case: Case, edited: Tensor, seed: int = measure.HELD_OUT, rounds: int = 12, tries: int = 96) -> Found:
    """Where the case's handles are in the `edited` picture [1, 3, S, S] in 0 .. 1.

    The pose is sought by the cross-entropy method: poses are drawn around the best so far, ever nearer, from as near to
    where the object was as to where it should be, so that neither is favoured.
    """
    size = edited.shape[-1]
    generator = torch.Generator().manual_seed(case.index)
    scene = sprites.draw(seed, [case.index], size)
    below = scene.background
    spread = torch.tensor([0.06, 0.06, 0.04, 0.25])
    mean = torch.stack([case.pose, case.wanted, (case.pose + case.wanted) / 2])
    best, least = case.pose, math.inf
    for number in range(rounds):
        scale = spread * 0.72**number
        around = mean[torch.arange(tries) % len(mean)]
        poses = around + scale * torch.randn(tries, 4, generator=generator)
        poses = torch.cat([poses, mean])
        poses[:, 2].clamp_(0.1, 0.5)
        rgba, _ = sprites.posed(seed, case.index, poses, size)
        drawn, _ = over(rgba[:, :3], rgba[:, 3:], below.expand(len(poses), -1, -1, -1))
        miss = (drawn - edited).abs().clamp(max=0.5).mean((1, 2, 3))
        order = miss.argsort()
        mean = poses[order[:6]]
        if float(miss[order[0]]) < least:
            best, least = poses[order[0]], float(miss[order[0]])
    used = [0] if case.change == "move" else [1, 2]
    _, points = sprites.posed(seed, case.index, best[None], size)
    return Found(points[0, used] - 0.5, best, least)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances [N] of points [N, 2]."""
    return (a - b).norm(dim=-1)
