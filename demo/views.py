"""Scenes as a model that is applied beyond its size meets them: whole, near parts of larger ones, and with several
objects. Each view is a pure function of (seed, index)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import captions, sprites

SIZE = 128
_SEED = 0x71E5
CLASSES = (
    *(f"{place} {part}" for place in captions.BACKGROUNDS for part in ("far", "ground")),
    *captions.KINDS,
)
"""What a class map may show: the far and the near part of each place, and each kind of object."""
FIRST_KIND = 2 * len(captions.BACKGROUNDS)
COLOURS = (
    "ff9955", "aa3322", "303a80", "0a0a28", "66bbff", "55aa33", "ccddf4", "ffffff", "ffdd99", "cc9933",
    "0099aa", "003366", "885522", "4a2208", "c8c8c8", "949494", "a0d0b4", "50704c", "667799", "333a33",
    "00ffff", "ff66ff", "ff3300", "aa88dd", "ffff66", "aa00ff", "88ff88", "ffcc00", "ff0066", "880000",
    "0033ff", "ff99cc",
)  # fmt: skip
"""The colour of each class on a painted map, RRGGBB."""


class Views(NamedTuple):
    """Pictures [B, 3, 128, 128] in 0 .. 1, their maps of CLASSES [B, 128, 128], and what they are."""

    picture: Tensor
    classes: Tensor
    captions: list[str]


def classes_of(semantic: Tensor, place: Tensor) -> Tensor:
    """`Scenes.semantic` with its place: indices of CLASSES."""
    behind = 2 * place.view(-1, 1, 1) + semantic
    return torch.where(semantic < 2, behind, semantic - 2 + FIRST_KIND)


def views(seed: int, indices: Tensor, *, near: float, several: float, farther: int = 2) -> Views:
    """A share `near` are windows of scenes that are drawn 2, or up to `farther` times, as large; a share `several` have
    two or three objects; the others are scenes as they are."""
    made = [_view(seed, int(n), near, several, farther) for n in indices]
    return Views(
        torch.cat([each.picture for each in made]),
        torch.cat([each.classes for each in made]),
        [each.captions[0] for each in made],
    )


def _view(seed: int, index: int, near: float, several: float, farther: int) -> Views:
    u = sprites.uniform(seed + _SEED, torch.tensor([index]), 20)[0]
    if u[0] < several:
        return _several(seed, index, u)
    times = 1
    if u[0] < several + near:
        times = 4 if farther == 4 and u[1] < 0.5 else 2
    drawn = sprites.draw(seed, [index], times * SIZE)
    # The pictures' middle is where something is: the windows' places are denser there.
    left, top = (int((times - 1) * SIZE * (float(a) + float(b)) / 2) for a, b in ((u[2], u[3]), (u[4], u[5])))
    window = (..., slice(top, top + SIZE), slice(left, left + SIZE))
    classes = classes_of(drawn.semantic, drawn.place)
    return Views(drawn.blend[window], classes[window], drawn.captions)


def _several(seed: int, index: int, u: Tensor) -> Views:
    """Two or three objects side by side in one place, the farther ones drawn first."""
    behind = sprites.draw(seed, [index])
    place, side = int(behind.place), int(behind.side)
    picture, semantic = behind.background[0], sprites.ground(seed, index).long()
    count = 2 if u[1] < 0.6 else 3
    names = []
    for k in range(count):
        other = 1_000_000 + 3 * index + k
        a, b, c, d = u[4 + 4 * k : 8 + 4 * k].tolist()
        pose = torch.tensor([(k + 0.25 + 0.5 * a) / count, 0.3 + 0.45 * b, (0.32 - 0.06 * count) * (0.7 + 0.6 * c), 0])
        pose[3] = 0.5 * (d - 0.5)
        rgba = sprites.posed(seed, other, pose[None], place=place, side=side)[0][0]
        shade = sprites.posed_shade(seed, other, pose, place, side)
        picture = torch.lerp((picture * shade).clamp(0, 1), rgba[:3], rgba[3:])
        kind, colour = (int(each) for each in sprites.attributes(seed, other)[:2])
        semantic = torch.where(rgba[3] >= 0.25, kind + 2, semantic)
        names.append(captions.foreground_caption(kind, colour))
    caption = f"{', '.join(names)}, {captions.BACKGROUNDS[place]} from the {captions.SIDES[side]}"
    return Views(picture[None], classes_of(semantic[None], behind.place), [caption])
