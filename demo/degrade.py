"""The damage of the scenes that are to be enlarged: `training/degrade.py`'s, chosen by each scene's number."""

from __future__ import annotations

import torch
from torch import Tensor

from ..training.degrade import blurred, damaged, reduced
from . import sprites

__all__ = ["blurred", "degraded", "reduced"]

_SEED = 0xDE6A


def degraded(picture: Tensor, seed: int, indices: Tensor, factor: int = 4) -> Tensor:
    """Pictures [B, 3, S, S] in 0 .. 1 -> small ones of S / factor a side, each with its own damage, which depends on
    seed and index alone."""
    u = sprites.uniform(seed + _SEED, indices, 8)
    rows = [damaged(p[None], row, factor, seed + int(n)) for p, row, n in zip(picture, u, indices, strict=True)]
    return torch.cat(rows)
