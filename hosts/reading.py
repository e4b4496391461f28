"""What can be read of a network that is computed in tiles."""

from __future__ import annotations

from torch import Tensor

from ..core.tiles import Tiles


def check_features(tiles: Tiles | None, x: Tensor) -> None:
    """ValueError if features of the whole latent x [B, C, h, w] are asked for, and there are only those of its tiles:
    the last one's would be taken for the whole's."""
    if tiles is not None and len(tiles.windows(*x.shape[-2:])) > 1:
        raise ValueError(
            "model: it is computed in tiles, and this node reads features of the whole picture; set tile to 0, or take "
            "a picture no larger than a tile"
        )
