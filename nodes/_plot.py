"""Curves as an IMAGE, drawn with Pillow: nothing needs to be installed for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SIZE = (640, 360)
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 34, 16, 44
_COLOURS = ("#1f5f8b", "#c0562f", "#3d8b4f", "#8a5aa8", "#a08a1f", "#4f9aa0")


def curves(
    series: Sequence[Sequence[float]],
    names: Sequence[str],
    title: str,
    x: str,
    y: str,
    *,
    linear: bool = False,
    colours: Sequence[int] | None = None,
) -> Tensor:
    """Values of each series by their number, as an IMAGE [1, H, W, 3] in 0 .. 1.

    The scale is logarithmic, or `linear` from zero. Series of one number in `colours` look alike; a series without a
    name is not in the legend.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(picture)
    ticks, share = _linear(series) if linear else _logarithmic(series)
    width, height = SIZE[0] - _LEFT - _RIGHT, SIZE[1] - _TOP - _BOTTOM
    longest = max((len(each) for each in series), default=1)

    def across(k: float) -> float:
        return _LEFT + width * k / max(1, longest - 1)

    def down(value: float) -> float:
        return _TOP + height * (1 - share(value))

    for tick in ticks:
        at = down(tick)
        draw.line((_LEFT, at, _LEFT + width, at), fill="#e3e7eb")
        draw.text((_LEFT - 8, at), f"{tick:g}", fill="#444", anchor="rm")
    for k in sorted({round(part * (longest - 1) / 5) for part in range(6)}):
        draw.text((across(k), _TOP + height + 6), str(k + 1), fill="#444", anchor="ma")
    listed = 0
    for number, values in enumerate(series):
        colour = _COLOURS[(number if colours is None else colours[number]) % len(_COLOURS)]
        points = [(across(k), down(value)) for k, value in enumerate(values) if math.isfinite(value)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=2)
        if names[number]:
            draw.text((_LEFT + width - 4, _TOP + 4 + 14 * listed), names[number], fill=colour, anchor="ra")
            listed += 1
    draw.rectangle((_LEFT, _TOP, _LEFT + width, _TOP + height), outline="#889")
    draw.text((_LEFT, 10), title, fill="black")
    draw.text((_LEFT + width / 2, SIZE[1] - 8), x, fill="#444", anchor="md")
    draw.text((8, 10), y, fill="#444")
    return torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)[None]


Scale = tuple[list[float], Callable[[float], float]]
"""Values to label, and where a value is, from 0 at the bottom to 1."""


def _logarithmic(series: Sequence[Sequence[float]]) -> Scale:
    low, high = _decades(series)
    ticks = [10.0**power for power in range(low, high + 1)]
    return ticks, lambda value: (math.log10(max(value, 10.0**low)) - low) / (high - low)


def _linear(series: Sequence[Sequence[float]]) -> Scale:
    """From zero to a round number."""
    top = max((value for each in series for value in each if math.isfinite(value)), default=1.0)
    top = top if top > 0 else 1.0
    power = 10.0 ** math.floor(math.log10(top / 4))
    unit = next(power * digit for digit in (1, 2, 2.5, 5, 10) if power * digit * 5 >= top)
    count = math.ceil(top / unit - 1e-9)
    return [unit * k for k in range(count + 1)], lambda value: value / (unit * count)


def _decades(series: Sequence[Sequence[float]]) -> tuple[int, int]:
    """The powers of ten that hold all positive values, at most six of them."""
    known = [value for each in series for value in each if math.isfinite(value) and value > 0]
    high = math.ceil(math.log10(max(known, default=1.0)) + 1e-9)
    low = math.floor(math.log10(min(known, default=0.1)))
    low = max(low, high - 6)
    return (low if low < high else high - 1), high
