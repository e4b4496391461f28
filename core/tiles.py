"""A network applied to latents of any size in overlapping tiles of its own, which are joined at every denoising step.

(MultiDiffusion, Bar-Tal et al. 2023, Eq. 5.) Each cell's prediction is the weighted mean of what its tiles predict, so
at the next step all tiles go on from one latent: they agree where they meet. Joined only after the last step, they
would be pictures of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Window = tuple[slice, slice]
"""Rows and columns of a latent."""

Predict = Callable[[Tensor, Window], Tensor]
"""`predict(x, window)`: the prediction for x [B, C, h', w'], which lies at this window of the whole."""


@dataclass(frozen=True)
class Tiles:
    """Tiles of `side` cells, of which neighbours share `overlap` at least. ValueError if they could not."""

    side: int = 16
    overlap: int = 8

    def __post_init__(self) -> None:
        if self.side < 2:
            raise ValueError(f"tile: expected at least 2 cells of the latent, got {self.side}")
        if not 0 <= self.overlap < self.side:
            raise ValueError(
                f"overlap: expected 0 .. {self.side - 1} cells of a tile of {self.side}, got {self.overlap}"
            )

    def starts(self, length: int) -> list[int]:
        """Where the tiles of a row of cells begin: as few as share enough, evenly spread, the ends covered."""
        if length <= self.side:
            return [0]
        count = 1 + math.ceil((length - self.side) / (self.side - self.overlap))
        return [round(k * (length - self.side) / (count - 1)) for k in range(count)]

    def windows(self, height: int, width: int) -> list[Window]:
        """All tiles of a latent, row by row."""
        return [
            (slice(top, top + min(self.side, height)), slice(left, left + min(self.side, width)))
            for top in self.starts(height)
            for left in self.starts(width)
        ]

    def weight(self, height: int, width: int) -> Tensor:
        """How much each cell of a tile counts, [height, width]: rising from the border over the overlap."""
        return _rise(height, self.overlap)[:, None] * _rise(width, self.overlap)


def _rise(length: int, overlap: int) -> Tensor:
    """A line that rises to 1 over the overlap and falls at the other end."""
    from_end = torch.arange(length) + 0.5
    return (torch.minimum(from_end, length - from_end) / max(overlap, 0.5)).clamp(max=1)


def tiled(predict: Predict, x: Tensor, tiles: Tiles) -> Tensor:
    """The prediction for x [B, C, h, w] as the weighted mean of its tiles', computed one by one."""
    height, width = x.shape[-2:]
    windows = tiles.windows(height, width)
    if len(windows) == 1:
        return predict(x, windows[0])
    weight = tiles.weight(min(tiles.side, height), min(tiles.side, width)).to(x.device)
    total, weights = None, torch.zeros(height, width, device=x.device)
    for window in windows:
        part = predict(x[(..., *window)], window)
        total = part.new_zeros(*part.shape[:2], height, width, dtype=torch.float32) if total is None else total
        total[(..., *window)] += weight * part
        weights[window] += weight
    assert total is not None
    return (total / weights).to(x.dtype)
