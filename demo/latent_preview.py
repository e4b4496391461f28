"""The colours of the Sprites latents, for live previews: a least-squares fit of pictures to their latents."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
import torch.nn.functional as F

from ..core.protocols import LatentCodec
from ..hosts.files import whole_file
from ..hosts.preview import FILE, Colours
from . import sprites


def fit(codec: LatentCodec, count: int = 64, seed: int = 77) -> tuple[Colours, float]:
    """RGB at the latent's resolution as an affine function of the scaled latent, and how much of the pictures' variance
    it explains (0 .. 1)."""
    rows, wanted = [], []
    for part in torch.arange(count).split(16):
        images = sprites.draw(seed, part).blend * 2 - 1
        latents = codec.encode(images).float()
        rows.append(F.pad(latents.movedim(1, -1).flatten(0, 2), (0, 1), value=1.0))
        wanted.append(F.avg_pool2d(images, codec.factor).movedim(1, -1).flatten(0, 2))
    x, y = torch.cat(rows).double(), torch.cat(wanted).double()
    found = torch.linalg.lstsq(x, y).solution
    explained = 1 - (y - x @ found).var(0).sum() / y.var(0).sum()
    *factors, bias = [[round(value, 4) for value in row] for row in found.tolist()]
    return Colours(factors, bias), float(explained)


def write(folder: str | os.PathLike[str]) -> float:
    """Fit the colours of a model folder and leave them in it; how much they explain."""
    from ..hosts import load

    colours, explained = fit(load("diffusers").load_folder(folder)[2])
    with whole_file(Path(folder, FILE)) as stream:
        stream.write((json.dumps(colours._asdict()) + "\n").encode())
    return explained
