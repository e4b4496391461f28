"""What a model's latents look like before they are decoded: colours that are linear in the latent's channels."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

FILE = "latent_preview.json"
"""In a model folder, beside model_index.json: {"factors": [[r, g, b], one for each channel], "bias": [r, g, b]}."""


class Colours(NamedTuple):
    """RGB in -1 .. 1 = scaled latent @ `factors` [C, 3] + `bias` [3]."""

    factors: list[list[float]]
    bias: list[float]


def colours(folder: str | os.PathLike[str], channels: int) -> Colours | None:
    """The folder's colours for latents of so many channels, None if it says none. ValueError names a broken file."""
    path = Path(folder, FILE)
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        factors = [[float(value) for value in row] for row in said["factors"]]
        bias = [float(value) for value in said["bias"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected factors and bias, as numbers ({error!r})") from None
    if len(factors) != channels or any(len(row) != 3 for row in (*factors, bias)):
        raise ValueError(f"{path}: expected factors [{channels}, 3] and a bias [3]")
    return Colours(factors, bias)
