"""Point drags as people draw them: arrows on a picture, and brush strokes over what may move, as a text to read.

    {"points": [{"from": [x, y], "to": [x, y]}, ...],
     "mask": [{"paint": true, "size": d, "path": [[x, y], ...]}, ...],
     "size": [width, height]}

Places are in pixels of the picture that was drawn on, whose size is "size": (0, 0) is the centre of its first pixel,
(width - 1, height - 1) of its last. "mask" and "size" may be left out: nothing painted, on the picture that is given.
"""

from __future__ import annotations

import json
import math
import reprlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Place = tuple[float, float]
SAME_RATIO = 0.01
"""How much two ratios of width to height may differ for the same picture: sizes are rounded, to 8 or 64 at times."""
_FAR = 1e6
_FORM = (
    'expected {"points": [{"from": [x, y], "to": [x, y]}], "mask": [{"paint": true, "size": d, "path": [[x, y]]}], '
    '"size": [width, height]}'
)


@dataclass(frozen=True)
class Points:
    """What is to be dragged where: `handles` and `targets` [N, 2], each (x, y) in pixels of a picture of `height` and
    `width`, (0, 0) the centre of its first pixel, (width - 1, height - 1) of its last."""

    handles: Tensor
    targets: Tensor
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.handles.shape != self.targets.shape or self.handles.ndim != 2 or self.handles.shape[1:] != (2,):
            raise ValueError(
                f"points: expected handles and targets [N, 2], got {list(self.handles.shape)} and "
                f"{list(self.targets.shape)}"
            )
        if not len(self.handles):
            raise ValueError("points: expected at least one handle and its target")
        last = torch.tensor([self.width - 1, self.height - 1])
        for name, places in (("handles", self.handles), ("targets", self.targets)):
            if not bool(((places >= 0) & (places <= last.to(places))).all()):
                raise ValueError(f"points: {name} lie outside of the picture of {self.width}x{self.height}: {places}")


@dataclass(frozen=True)
class Stroke:
    """A brush of `size` pixels across, drawn along `path`; it paints or it erases what was painted before."""

    paint: bool
    size: float
    path: tuple[Place, ...]


@dataclass(frozen=True)
class Drawing:
    """Arrows (from, to) and strokes, in order, on a picture of `width` and `height`."""

    arrows: tuple[tuple[Place, Place], ...]
    strokes: tuple[Stroke, ...]
    width: int
    height: int

    def on(self, width: int, height: int) -> Drawing:
        """The drawing on the same picture of another size. ValueError if its ratio is another: it is another picture.

        Edges stay edges: pixel centres lie half a pixel inside of them, in both sizes.
        """
        if (width, height) == (self.width, self.height):
            return self
        if abs(width * self.height / (height * self.width) - 1) > SAME_RATIO:
            raise ValueError(
                f"drag: expected the picture that was drawn on, {self.width}x{self.height}, or one of its shape, got "
                f"{width}x{height}; draw on this one, or clear what was drawn"
            )
        scale = width / self.width, height / self.height

        def moved(place: Place) -> Place:
            x, y = ((value + 0.5) * factor - 0.5 for value, factor in zip(place, scale, strict=True))
            return x, y

        def inside(place: Place) -> Place:
            x, y = moved(place)
            return min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)

        arrows = tuple((inside(start), inside(end)) for start, end in self.arrows)
        wider = math.sqrt(scale[0] * scale[1])
        strokes = tuple(Stroke(s.paint, s.size * wider, tuple(map(moved, s.path))) for s in self.strokes)
        return Drawing(arrows, strokes, width, height)

    def points(self) -> Points:
        """Its arrows."""
        both = torch.tensor(self.arrows, dtype=torch.float32).reshape(-1, 2, 2)
        return Points(both[:, 0], both[:, 1], self.height, self.width)

    def mask(self) -> Tensor:
        """What its strokes leave painted, [H, W]: 1 within half a brush of a path, unless a later one erases it."""
        mask = torch.zeros(self.height, self.width)
        for stroke in self.strokes:
            for start, end in zip(stroke.path, stroke.path[1:] or stroke.path, strict=False):
                _paint(mask, start, end, stroke.size / 2, float(stroke.paint))
        return mask


def _paint(mask: Tensor, start: Place, end: Place, radius: float, value: float) -> None:
    """Set all pixels that are no further than `radius` from a straight line."""
    slices = []
    for a, b, count in zip(start, end, reversed(mask.shape), strict=True):
        low, high = math.ceil(min(a, b) - radius), math.floor(max(a, b) + radius) + 1
        slices.append(slice(max(0, low), min(count, max(0, high))))
    across, down = slices
    x = torch.arange(across.start, max(across.start, across.stop), dtype=torch.float64)[None] - start[0]
    y = torch.arange(down.start, max(down.start, down.stop), dtype=torch.float64)[:, None] - start[1]
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = ((x * dx + y * dy) / ((dx * dx + dy * dy) or 1.0)).clamp(0, 1)
    near = (x - along * dx) ** 2 + (y - along * dy) ** 2 <= radius**2
    mask[down, across][near] = value


def parse(text: str, width: int, height: int) -> Drawing:
    """A drawing from its text; `width` and `height` are those of the picture at hand, for texts that do not say what
    they were drawn on. ValueError says what was expected, and where."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"drag: this is no JSON ({error}); {_FORM}") from None
    given = _object(value, "the drag", ("points",))
    width, height = _size(given["size"]) if "size" in given else (width, height)
    arrows = []
    for k, each in enumerate(_list(given["points"], "points")):
        arrow = _object(each, f"points[{k}]", ("from", "to"))
        start, end = (_place(arrow[name], f"points[{k}].{name}", width, height) for name in ("from", "to"))
        arrows.append((start, end))
    if not arrows:
        raise ValueError(f"drag: points is empty, draw at least one arrow; {_FORM}")
    strokes = [_stroke(each, f"mask[{k}]") for k, each in enumerate(_list(given.get("mask", []), "mask"))]
    return Drawing(tuple(arrows), tuple(strokes), width, height)


def write(drawing: Drawing) -> str:
    """A drawing as its text."""
    arrows = [{"from": list(start), "to": list(end)} for start, end in drawing.arrows]
    strokes = [{"paint": s.paint, "size": s.size, "path": [list(each) for each in s.path]} for s in drawing.strokes]
    return json.dumps({"points": arrows, "mask": strokes, "size": [drawing.width, drawing.height]})


def _wrong(where: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"drag: {where}: expected {expected}, got {reprlib.repr(value)}")


def _object(value: Any, where: str, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict) or any(name not in value for name in names):
        raise _wrong(where, "an object with " + " and ".join(f'"{name}"' for name in names), value)
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise _wrong(where, "a list", value)
    return value


def _number(value: Any) -> float | None:
    """A number that a picture's places can be; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _FAR:
        return None
    return float(value)


def _pair(value: Any, where: str) -> Place:
    numbers = [_number(each) for each in value] if isinstance(value, list) else []
    if len(numbers) != 2 or numbers[0] is None or numbers[1] is None:
        raise _wrong(where, "[x, y], two numbers in pixels", value)
    return numbers[0], numbers[1]


def _place(value: Any, where: str, width: int, height: int) -> Place:
    x, y = _pair(value, where)
    if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
        expected = f"a place on the picture, [0, 0] to [{width - 1}, {height - 1}]"
        raise _wrong(where, expected, value)
    return x, y


def _size(value: Any) -> tuple[int, int]:
    if not (isinstance(value, list) and len(value) == 2 and all(map(_is_side, value))):
        raise _wrong("size", "[width, height], two whole numbers of pixels", value)
    return value[0], value[1]


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _FAR


def _stroke(value: Any, where: str) -> Stroke:
    given = _object(value, where, ("paint", "size", "path"))
    if not isinstance(given["paint"], bool):
        raise _wrong(f"{where}.paint", "true or false", given["paint"])
    size = _number(given["size"])
    if size is None or size <= 0:
        raise _wrong(f"{where}.size", "the brush's width in pixels, above 0", given["size"])
    path = _list(given["path"], f"{where}.path")
    if not path:
        raise _wrong(f"{where}.path", "at least one [x, y]", path)
    return Stroke(given["paint"], size, tuple(_pair(each, f"{where}.path[{k}]") for k, each in enumerate(path)))
