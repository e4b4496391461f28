"""Recipes of kind "smooth": the shipped model made smoother by the step-wise variation regulariser."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core import smoothness
from ..core.ddim import ddim_sample, ddim_timesteps
from ..core.protocols import Progress
from ..training import report
from ..training.checkpoint import fingerprint
from ..training.smooth import SmoothSettings, train
from ..training.students import Student, write_student
from . import architecture, distil, measure, sprites
from .runs import MODEL, finish, this_process

RESULT_FILE = "smooth.safetensors"
SMOOTH = MODEL.parent / "sprites-smooth.safetensors"  # the one that ships
GUIDANCE = 5.0


@dataclass(frozen=True)
class SmoothRecipe(SmoothSettings):
    """`start_from`, another run of this kind or "shipped", is gone on from. `trained` is "lora", of `rank` and on
    `layers`, or "full", the whole network."""

    trained: str = "lora"
    rank: int = 8
    layers: str = "attention"
    start_from: str = ""
    scenes: int = 16384
    scenes_seed: int = 1
    bare: float = 0.1
    style: ClassVar[str] = "painted"
    guidance_embedding: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        distil.check_student(self)


def train_recipe(r: SmoothRecipe, folder: Path, progress: Progress, resume: bool) -> dict[str, Any]:
    """Train the student of the shipped model that the recipe describes; its file is `smooth.safetensors`."""
    from ..hosts import load

    model, text, codec = load("diffusers").load_folder(MODEL)
    student = distil.new_student(model, r)
    if r.start_from:
        distil.go_on(student, r.start_from, SMOOTH, folder.parent / r.start_from / RESULT_FILE)
    encoder = text.towers[0].encoder
    examples = distil.scenes(codec, encoder, r, folder / "latents", progress)
    null = distil.encoded(encoder, architecture.tokenize([""]))

    def sample(current: Student, _: Any = None) -> Tensor | None:
        if this_process()[0] == 0:
            report.save_picture(walk_sheet(model, text, codec, current), folder / "samples.png")
        return None

    note = {"teacher": fingerprint(model.unet.state_dict().values())}
    done = train(
        model, student, examples, null, r, folder, progress=progress, resume=resume, recipe=note, sample=sample
    )
    best: Any = done.modules["student"]
    finish(folder, done, best, {"steps": done.steps, **note})
    if this_process()[0] == 0:
        write_student(folder / RESULT_FILE, best)
        sample(best)
    return {
        **{name: values[-1] for name, values in done.history.items()},
        "file": str(folder / RESULT_FILE),
    }


@torch.no_grad()
def walk_sheet(model: Any, text: Any, codec: Any, student: Student, prompts: int = 3, frames: int = 8) -> Tensor:
    """A row for each of some held-out captions: the pictures between two noises. [3, H, W]."""
    captions = sprites.draw(measure.HELD_OUT, range(prompts), 8).captions
    shape = (model.latent_channels, 16, 16)
    noises = torch.cat(
        [
            smoothness.walk(measure.numbered_noise(shape, 2 * n), measure.numbered_noise(shape, 2 * n + 1), frames)
            for n in range(prompts)
        ]
    )
    condition = text.encode([caption for caption in captions for _ in range(frames)])
    null = text.encode([""])
    null = null.with_embedding(null.embedding.expand(len(noises), -1, -1))
    shown: Any = model if student.around is None or student.network is None else student.around(student.network)
    with student.applied(shown.layers(), torch.zeros(len(noises))):
        latent = ddim_sample(
            shown, noises, condition, null, w=GUIDANCE, timesteps=ddim_timesteps(len(model.schedule), 20)
        )
    return report.sheet((codec.decode(latent).float().cpu() + 1) / 2, frames)
