"""Training data of the Sprites world: pictures, and the latents of many scenes, encoded once."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ..core.protocols import Progress, no_progress
from ..training.autoencoder import Images, encode_mean
from ..training.checkpoint import CheckpointError, read_tensors, write_tensors
from ..training.diffusion import Examples
from ..training.examples import shuffled_rows
from . import sprites
from .architecture import tokenize
from .half import quick_half

BLOCK = 512  # scenes in one file of latents
_BARE_SEED = 0x5EED


def is_bare(seed: int, indices: Tensor, share: float) -> Tensor:
    """Which scenes show only their background, [B]: a `share` of them, decided by index alone."""
    return sprites.uniform(seed + _BARE_SEED, indices, 1)[:, 0] < share


def pictures(seed: int, bare: float, size: int = 128) -> Images:
    """Blends, and bare backgrounds, in -1 .. 1."""

    def images(first: int, count: int) -> Tensor:
        indices = torch.arange(first, first + count)
        scenes = sprites.draw(seed, indices, size)
        only = is_bare(seed, indices, bare)[:, None, None, None]
        return torch.where(only, scenes.background, scenes.blend) * 2 - 1

    return images


def captioned(seed: int, indices: Tensor, bare: float, size: int = 128) -> tuple[Tensor, list[str]]:
    """Pictures [B, 3, S, S] in -1 .. 1 with their captions."""
    scenes = sprites.draw(seed, indices, size)
    only = is_bare(seed, indices, bare)
    both = zip(only.tolist(), scenes.background_captions, scenes.captions, strict=True)
    image = torch.where(only[:, None, None, None], scenes.background, scenes.blend)
    return image * 2 - 1, [nothing if empty else whole for empty, nothing, whole in both]


Style = Callable[[int, Tensor, float], tuple[Tensor, list[str]]]
"""Pictures and captions of scenes, as `captioned` makes them."""


@torch.no_grad()
def encode_blocks(
    vae: nn.Module,
    folder: str | os.PathLike[str],
    *,
    seed: int,
    count: int,
    bare: float,
    style: Style = captioned,
    made_by: str = "",
    encode: Callable[[Tensor], Tensor] | None = None,
    process: tuple[int, int] = (0, 1),
    progress: Progress = no_progress,
) -> None:
    """Write the unscaled mean latents and token ids of `count` scenes, a file for each BLOCK of them.

    Files that are there and long enough stay: a broken-off encoding goes on. `process` (rank, of) takes its share of
    the files. `made_by` names what else the latents depend on: the autoencoder and the style. `encode` makes the
    unscaled latents where it is not the autoencoder's mean.
    """
    encode = encode or partial(encode_mean, vae)
    blocks = -(-count // BLOCK)
    mine = range(process[0], blocks, process[1])
    for done, block in enumerate(mine):
        path = Path(folder, f"{block:05d}.safetensors")
        indices = torch.arange(block * BLOCK, min(count, (block + 1) * BLOCK))
        if not path.exists() or len(read_tensors(path)[0]["ids"]) < len(indices):
            parts = [style(seed, part, bare) for part in indices.split(16)]
            latents = []
            for image, _ in parts:
                with quick_half("cpu", image.device.type == "cpu"):
                    latents.append(encode(image.contiguous(memory_format=torch.channels_last)).half())
            ids = tokenize([caption for _, captions in parts for caption in captions]).to(torch.int16)
            note = {"seed": seed, "bare": bare, "made_by": made_by}
            write_tensors(path, {"latents": torch.cat(latents), "ids": ids}, note)
        progress(done + 1, len(mine), None)


def read_blocks(
    folder: str | os.PathLike[str], *, seed: int, count: int, bare: float, made_by: str = ""
) -> tuple[Tensor, Tensor]:
    """Unscaled latents [count, C, h, w] fp16 and ids [count, L]. CheckpointError if they are of other scenes or made
    otherwise."""
    latents, ids = [], []
    for block in range(-(-count // BLOCK)):
        path = Path(folder, f"{block:05d}.safetensors")
        tensors, note = read_tensors(path)
        if (note["seed"], note["bare"], note.get("made_by", made_by)) != (seed, bare, made_by):
            raise CheckpointError(
                f"{path}: latents of other scenes or another autoencoder ({note}); delete {folder} to encode anew"
            )
        latents.append(tensors["latents"])
        ids.append(tensors["ids"].long())
    return torch.cat(latents)[:count], torch.cat(ids)[:count]


def shuffled(latents: Tensor, ids: Tensor, scale: float, seed: int) -> Examples:
    """Epoch after epoch over the scenes, each in its own order."""
    rows = shuffled_rows(len(latents), seed)

    def examples(first: int, count: int) -> tuple[Tensor, Tensor]:
        chosen = rows(first, count)
        return latents[chosen].float() * scale, ids[chosen]

    return examples
