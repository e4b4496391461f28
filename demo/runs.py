"""Finished runs and the model that ships: what a recipe leaves behind, and what the next one starts from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..training import report
from ..training.checkpoint import CheckpointError, read_tensors, write_tensors
from ..training.loop import Trained
from ..training.share import this_process
from . import architecture

RESULT = "result.safetensors"
MODEL = Path(__file__).parent / "models" / "sprites"
SHIPPED = "shipped"  # in a recipe, the model that ships in place of a run


def shipped(folder: str | os.PathLike[str] = MODEL) -> tuple[dict[str, nn.Module], float]:
    """The shipped `unet`, `text_encoder` and `vae` in float32, and the scaling factor: where more training may start.

    FileNotFoundError if the model is not there.
    """
    from ..hosts import load as load_host

    model, text, codec = load_host("diffusers").load_folder(folder)
    modules = {"unet": model.unet, "text_encoder": text.towers[0].encoder, "vae": codec.vae}
    return {name: module.float().cpu() for name, module in modules.items()}, codec.scaling_factor


def trained_autoencoder(folder: str | os.PathLike[str]) -> tuple[nn.Module, float]:
    """The averaged autoencoder of a run and its scaling factor; "shipped" for a run is the shipped one.

    CheckpointError if the run has no result.
    """
    if Path(folder).name == SHIPPED:
        modules, scale = shipped()
        return modules["vae"].eval().requires_grad_(False), scale
    tensors, note = read_tensors(Path(folder, RESULT))
    vae = new_autoencoder(note.get("factor", 8), note.get("regulariser", "kl"), 0)
    try:
        vae.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: its autoencoder has another architecture: {error}") from error
    return vae.eval().requires_grad_(False), float(note["scaling_factor"])


def finish(folder: Path, done: Trained, best: nn.Module, note: dict[str, Any]) -> None:
    """Leave a run's result and its loss curve, from the first process."""
    if this_process()[0] == 0:
        write_tensors(folder / RESULT, best.state_dict(), note)
        report.loss_curve(done.history, folder / "loss.png")


def new_autoencoder(factor: int, regulariser: str, seed: int) -> nn.Module:
    """An autoencoder with the seed's random weights."""
    from ..hosts.diffusers import build

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build.new_autoencoder(architecture.autoencoder(factor, regulariser))  # pyright: ignore[reportArgumentType]
