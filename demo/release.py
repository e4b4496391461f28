"""From finished runs to the model that ships: one diffusers folder in fp16, the judge beside it, and a card."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..training import report
from ..training.checkpoint import CheckpointError, read_tensors
from . import architecture, captions, classifier, latent_preview, measure, sprites
from .runs import MODEL, RESULT, trained_autoencoder


def release(
    runs: str | os.PathLike[str] = "runs",
    folder: str | os.PathLike[str] = MODEL,
    autoencoder: str = "autoencoder",
    diffusion: str = "diffusion",
) -> dict[str, Any]:
    """Write the averaged weights of the runs `autoencoder`, `diffusion` and "classifier" as the model folder.

    Returns the runs' figures. CheckpointError if a run has no result, or its latents are of another autoencoder.
    """
    from ..hosts.diffusers import build

    runs, folder = Path(runs), Path(folder)
    vae, scale = trained_autoencoder(runs / autoencoder)
    weights, note = read_tensors(runs / diffusion / RESULT)
    if note["scaling_factor"] != scale:
        raise CheckpointError(f"{runs}: the diffusion run was trained on latents of another autoencoder; train it anew")
    modules: Any = architecture.new_modules()
    nn.ModuleDict({name: modules[name] for name in ("unet", "text_encoder")}).load_state_dict(weights)
    judge = classifier.Classifier()
    judge.load_state_dict(read_tensors(runs / "classifier" / RESULT)[0])
    configured: Any = vae
    configured.register_to_config(scaling_factor=scale)
    build.save_folder(
        folder,
        unet=modules["unet"].half(),
        vae=vae.half(),
        text_encoder=modules["text_encoder"].half(),
        tokenizer_files=architecture.tokenizer_files(),
        scheduler_config=architecture.SCHEDULER,
    )
    classifier.save(judge, folder / "classifier.safetensors")
    latent_preview.write(folder)
    return {"scaling_factor": scale, "megabytes": megabytes(folder), "diffusion_steps": note["steps"]}


def world_sheet() -> torch.Tensor:
    """Every kind (a row) in every place (a column), one picture [3, H, W]."""
    rows, columns = len(captions.KINDS), len(captions.BACKGROUNDS)
    cells = [
        sprites.draw(1, [row * columns + column], kind=row, place=column).blend
        for row in range(rows)
        for column in range(columns)
    ]
    return report.sheet(torch.cat(cells), columns)


def sample_sheet(folder: str | os.PathLike[str] = MODEL, rows: int = 4, seed: int = 0) -> torch.Tensor:
    """What the shipped model draws for held-out captions, eight a row, 50 DDIM steps at guidance 5."""
    from ..hosts import load

    model, text, codec = load("diffusers").load_folder(folder)
    prompts = sprites.draw(measure.HELD_OUT, range(8 * rows), 8).captions
    return report.sheet(measure.generate(model, text, codec, prompts, seed=seed), 8)


def megabytes(folder: str | os.PathLike[str]) -> float:
    """The size of a folder's files, in units of 10^6 bytes."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e6
