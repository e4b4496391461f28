"""Class maps as painted pictures: each class has its colour."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 24.0
"""How far a colour may lie from a class's, of 255 in each channel: what a JPEG or a soft brush does."""
EDGE = 5
"""Pixels: what is as wide as this and of no class's colour is no soft edge, but was meant."""


def colours_of(codes: Sequence[str]) -> Tensor:
    """RRGGBB codes as float32 [K, 3] in 0 .. 255."""
    return torch.tensor([[int(code[k : k + 2], 16) for k in (0, 2, 4)] for code in codes], dtype=torch.float32)


def classes_from(text: str) -> dict[str, str]:
    """Colours, rrggbb, by name, from a line NAME=RRGGBB for each class. ValueError names the line."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        said, _, code = line.rpartition("=")
        name, colour = " ".join(said.lower().split()), code.strip().lower().removeprefix("#")
        if not re.fullmatch("[^:#=]+", name) or not re.fullmatch("[0-9a-f]{6}", colour):
            raise ValueError(
                f"classes: line {number}: expected NAME=RRGGBB, like sky=66bbff, without : or # in the name, got "
                f"{line.strip()!r}"
            )
        if name in found or colour in found.values():
            raise ValueError(f"classes: line {number}: “{name}” or #{colour} is there already; each class has its own")
        found[name] = colour
    if not found:
        raise ValueError("classes: expected a line NAME=RRGGBB for each class, like sky=66bbff, got none")
    return found


def painted(classes: Tensor, colours: Tensor) -> Tensor:
    """A map [B, H, W] in its colours, [B, 3, H, W] in 0 .. 1."""
    return colours.to(classes.device)[classes].movedim(-1, 1) / 255


def classes_of(
    picture: Tensor, colours: Tensor, names: Sequence[str], tolerance: float = TOLERANCE, *, name: str = "map"
) -> Tensor:
    """A painted map [B, 3, H, W] in 0 .. 1 -> class numbers [B, H, W]: that of the nearest colour.

    Where no colour is near, as at a soft edge between two, a pixel takes its neighbour's class. ValueError names the
    input, `name`, and the colours that are no class's and cover more than an edge would.
    """
    pixels = (picture * 255).round().movedim(1, -1)
    flat = pixels.flatten(0, -2)
    shades, which = torch.unique(flat, dim=0, return_inverse=True)
    distance, nearest = torch.cdist(shades, colours.to(shades)).min(1)
    known = (distance <= tolerance)[which].view(pixels.shape[:-1])
    thick = F.max_pool2d(known[:, None].float(), EDGE, stride=1, padding=EDGE // 2)[:, 0] == 0
    if thick.any() or not known.any():
        meant = torch.bincount(which[(thick if thick.any() else ~known).flatten()], minlength=len(shades))
        counts = torch.bincount(which, minlength=len(shades)) * (meant > 0)
        raise ValueError(f"{name}: {_unknown(shades, counts, nearest, len(flat), names, colours)}")
    return _filled(torch.where(known, nearest[which].view_as(known), -1))


def _unknown(shades: Tensor, counts: Tensor, nearest: Tensor, total: int, names: Sequence[str], colours: Tensor) -> str:
    worst = counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())].tolist()
    said = [
        f"#{_code(shades[k])} ({100 * int(counts[k]) / total:.1f}% of it, nearest is “{names[int(nearest[k])]}” "
        f"#{_code(colours[int(nearest[k])])})"
        for k in worst[:4]
    ]
    more = f" and {len(worst) - 4} more" if len(worst) > 4 else ""
    return (
        f"{len(worst)} of its colours {'is' if len(worst) == 1 else 'are'} no class's: {', '.join(said)}{more}. "
        "Paint in the classes' colours, which the node's help or its classes list, with a hard brush"
    )


def _code(colour: Tensor) -> str:
    return "".join(f"{int(value):02x}" for value in colour.tolist())


def _filled(classes: Tensor) -> Tensor:
    """Every -1 replaced by a class that is next to it, again and again."""
    while bool((classes < 0).any()):
        spread = F.max_pool2d(classes[:, None].float(), 3, stride=1, padding=1)[:, 0].long()
        classes = torch.where(classes < 0, spread, classes)
    return classes
