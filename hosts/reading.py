"""What a node that asks the network itself may not be told, or may not read, of a part in place of the whole."""

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


def check_rows(name: str, rows: int, batch: int) -> None:
    """ValueError if something is given for so many `rows`, and a node that learns asks about another number of latents
    at once: in which order, only the node knows."""
    if batch % rows:
        raise ValueError(
            f"{name}: it is told of {rows} pictures, one for each of as many latents, and here the network is asked "
            f"about {batch} at once; give one that holds for all"
        )
