"""In whose light does an object stand? Its colour and its shading beside those of the same object in every light."""

from __future__ import annotations

import torch
from torch import Tensor

from ..demo import sprites
from ..demo.backgrounds import PLACES
from ..demo.objects import OBJECTS

SEED, SIZE, DRAWS = 778_000, 48, 6  # of the objects that show what each light does


def agreement(colour: Tensor, alpha: Tensor, scenes: sprites.Scenes) -> float:
    """How well objects, straight colour [B, 3, H, W] and alpha [B, 1, H, W], are lit as the scenes' places light them:
    the share of other lights (place and side) whose own rendering of the object is less like it. 0.5 is chance.

    Objects that emit light are left out. NaN if no other is there.
    """
    found = features(colour, alpha)
    shares, known = [], {}
    for n, row in enumerate(zip(*(each.tolist() for each in _named(scenes)), strict=True)):
        kind, hue, place, side = row
        if OBJECTS[kind].emits:
            continue
        if (kind, hue) not in known:
            known[kind, hue] = _lights(kind, hue)
        means, spread = known[kind, hue]
        distance = ((found[n] - means) / spread).square().sum(1)
        own = 2 * place + side
        others = torch.cat([distance[:own], distance[own + 1 :]])
        shares.append(float((distance[own] < others).float().mean()))
    return sum(shares) / len(shares) if shares else float("nan")


def _named(scenes: sprites.Scenes) -> tuple[Tensor, ...]:
    return scenes.kind, scenes.colour, scenes.place, scenes.side


def features(colour: Tensor, alpha: Tensor) -> Tensor:
    """What light does to an object, [B, 5]: its mean colour, and how its brightness rises to the right and downwards,
    in units of its own size."""
    mass = alpha.sum((2, 3)).clamp(min=1e-6)
    mean = (colour * alpha).sum((2, 3)) / mass
    bright = colour.mean(1, keepdim=True) - mean.mean(1).view(-1, 1, 1, 1)
    h, w = colour.shape[2:]
    slopes = []
    for axis in (torch.arange(w) / w, torch.arange(h)[:, None] / h):
        place = axis.expand(h, w)
        offset = place - ((place * alpha).sum((2, 3)) / mass).view(-1, 1, 1, 1)
        size = ((offset**2 * alpha).sum((2, 3)) / mass).clamp(min=1e-6)
        slopes.append((bright * offset * alpha).sum((2, 3)) / mass / size.sqrt())
    return torch.cat([mean, *slopes], 1)


def _lights(kind: int, hue: int) -> tuple[Tensor, Tensor]:
    """Features of an object in each light [places * 2, 5], and their deviation within one [5]."""
    every = []
    for place in range(len(PLACES)):
        for side in (0, 1):
            drawn = sprites.draw(SEED, range(DRAWS), SIZE, kind=kind, colour=hue, place=place, side=side)
            every.append(features(drawn.lit_foreground[:, :3], drawn.lit_foreground[:, 3:]))
    stack = torch.stack(every)
    return stack.mean(1), stack.std(1).square().mean(0).sqrt().clamp(min=1e-3)
