"""Numbers that a node shows while it works, for the curves in web/."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from ..hosts import host

POINTS = 2000
"""Points of a curve beyond which every second one is left out, from then on: nobody sees more."""
PAUSE = 0.2
"""Seconds between two messages."""


class Curves:
    """Curves over the step, sent to the running node's widget as they grow. `x` names the step; `mean` is over how many
    points a running mean is drawn, 0 for none."""

    def __init__(self, x: str, mean: int = 0):
        self.about = {"x": x, "mean": mean}
        self.lines: dict[str, list[tuple[float, float]]] = {}
        self.new: dict[str, list[tuple[float, float]]] = {}
        self.every = 1
        self.told = -math.inf
        self.anew = True

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """The values at a step, each the next point of the curve of its name. What is not finite is left out."""
        if step % self.every:
            return
        for name, value in values.items():
            if math.isfinite(value):
                for lines in (self.lines, self.new):
                    lines.setdefault(name, []).append((step, value))
        if any(len(line) > POINTS for line in self.lines.values()):
            self._thin()
        if time.monotonic() - self.told > PAUSE:
            self._tell()

    def _thin(self) -> None:
        self.every *= 2
        self.lines = {n: [(x, y) for x, y in line if x % self.every == 0] for n, line in self.lines.items()}
        self.new, self.anew = dict(self.lines), True

    def _tell(self) -> None:
        """What is new, or all of it."""
        host().tell("curves", {**self.about, "anew": self.anew, "lines": _listed(self.new)})
        self.new, self.anew, self.told = {}, False, time.monotonic()

    def shown(self) -> dict[str, Any]:
        """All of it, to stay on the node."""
        return {"velatura_curves": [{**self.about, "anew": True, "lines": _listed(self.lines)}]}


def _listed(lines: Mapping[str, list[tuple[float, float]]]) -> list[dict[str, Any]]:
    return [{"name": name, "points": [list(point) for point in line]} for name, line in lines.items()]
