"""Class maps painted in words: a line for each shape, the later ones on top."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Points = list[tuple[float, float]]


def _ring(x: float, y: float, rx: float, ry: float, wobble: Callable[[float], float] = lambda a: 1.0) -> Points:
    """Points around a centre, 0 at the top and clockwise."""
    turns = [2 * math.pi * k / 120 for k in range(120)]
    return [(x + wobble(a) * rx * math.sin(a), y - wobble(a) * ry * math.cos(a)) for a in turns]


def _star(x: float, y: float, size: float) -> Points:
    corners = [(size if k % 2 == 0 else 0.45 * size, math.pi * k / 5) for k in range(10)]
    return [(x + r * math.sin(a), y - r * math.cos(a)) for r, a in corners]


def _hills(top: float, height: float) -> Points:
    ridge = [(k / 60, top + height * math.sin(7 * k / 60)) for k in range(61)]
    return [*ridge, (1.0, 1.0), (0.0, 1.0)]


def _fish(x: float, y: float, r: float) -> Points:
    body = [(x - 0.15 * r + px * 0.75 * r, y + py * 0.48 * r) for px, py in _ring(0, 0, 1, 1)[5:86]]
    return [*body[::-1], (x + 0.95 * r, y + 0.5 * r), (x + 0.75 * r, y), (x + 0.95 * r, y - 0.5 * r)]


def _mushroom(x: float, y: float, r: float) -> Points:
    cap = [(x + px * 0.95 * r, y - 0.1 * r + py * 0.8 * r) for px, py in _ring(0, 0, 1, 1) if py <= 0.05]
    right = sorted(p for p in cap if p[0] >= x)
    left = sorted(p for p in cap if p[0] < x)
    stem = [(x + 0.28 * r, y - 0.05 * r), (x + 0.34 * r, y + 0.95 * r), (x - 0.34 * r, y + 0.95 * r)]
    return [*left, *right, *stem, (x - 0.28 * r, y - 0.05 * r)]


def _heart(x: float, y: float, r: float) -> Points:
    turns = [2 * math.pi * k / 120 for k in range(120)]
    across = [math.sin(a) ** 3 for a in turns]
    down = [-(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16 - 0.1 for a in turns]
    return [(x + 0.92 * r * across[k], y + 0.92 * r * down[k]) for k in range(120)]


def _flame(a: float) -> float:
    """Pointed at the top."""
    from_top = min(a, 2 * math.pi - a)
    return 1.0 + 0.5 * max(0.0, 1 - from_top / 0.6) ** 2


SHAPES: Mapping[str, tuple[str, Callable[..., Points]]] = {
    "all": ("", lambda: [(0, 0), (1, 0), (1, 1), (0, 1)]),
    "below": ("y", lambda y: [(0, y), (1, y), (1, 1), (0, 1)]),
    "hills": ("y height", _hills),
    "box": ("left top right bottom", lambda a, b, c, d: [(a, b), (c, b), (c, d), (a, d)]),
    "circle": ("x y radius", lambda x, y, r: _ring(x, y, r, r)),
    "ellipse": ("x y radius_x radius_y", _ring),
    "star": ("x y radius", _star),
    "flower": ("x y radius", lambda x, y, r: _ring(x, y, r, r, lambda a: 0.72 + 0.28 * math.cos(6 * a))),
    "fish": ("x y radius", _fish),
    "mushroom": ("x y radius", _mushroom),
    "heart": ("x y radius", _heart),
    "flame": ("x y radius", lambda x, y, r: _ring(x, y + 0.2 * r, 0.55 * r, 0.8 * r, _flame)),
    "polygon": ("x y x y x y ...", lambda *xy: list(zip(xy[::2], xy[1::2], strict=True))),
}
"""The shapes by name: what their numbers are, all of them parts of the picture's sides, and their outline."""


def paint(text: str, classes: Sequence[str], height: int, width: int) -> Tensor:
    """Class numbers [1, height, width] of a text like

        deep sea far
        deep sea ground: hills 0.75 0.02
        fish: ellipse 0.4 0.5 0.2 0.1

    Without a shape a class is everywhere. ValueError names the line, and the nearest class or shape.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    canvas = Image.new("I", (width, height), -1)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, _, said = line.partition(":")
        value = _one_of(number, "class", " ".join(name.lower().split()), classes)
        draw.polygon([(x * width, y * height) for x, y in _outline(number, said)], fill=classes.index(value))
    classes_there = torch.from_numpy(np.array(canvas)).long()[None]
    if bool((classes_there < 0).any()):
        raise ValueError("text: it leaves a part of the map unpainted; begin with a class alone, which is everywhere")
    return classes_there


def _outline(number: int, said: str) -> Points:
    shape, *rest = said.split() or ["all"]
    numbers, draw = SHAPES[_one_of(number, "shape", shape.lower(), list(SHAPES))]
    wants = numbers.split()
    try:
        values = [float(each) for each in rest]
    except ValueError:
        values = []
    good = len(values) == len(rest) and all(math.isfinite(each) for each in values)
    fits = len(values) >= 6 and len(values) % 2 == 0 if shape.lower() == "polygon" else len(values) == len(wants)
    if not good or not fits:
        raise ValueError(
            f"text: line {number}: {shape} wants {'no numbers' if not wants else f'the numbers {numbers}'}, as parts "
            f"of the picture's sides, got {' '.join(rest) or 'none'}"
        )
    return draw(*values)


def _one_of(number: int, what: str, name: str, known: Sequence[str]) -> str:
    if name in known:
        return name
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean “{close[0]}”?" if close else ""
    raise ValueError(f"text: line {number}: there is no {what} “{name}”{hint} There are: {', '.join(known)}")
