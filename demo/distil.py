"""Recipes of kind "consistency": the shipped model made a few-step one, on scenes as painted or as line art."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.consistency import consistency_sample, lcm_timesteps
from ..core.protocols import Condition, LatentCodec, LatentModel, Progress
from ..training import report
from ..training.adapters import LowRankLayers
from ..training.checkpoint import CheckpointError, fingerprint
from ..training.consistency import ConsistencySettings, train
from ..training.examples import Examples
from ..training.groupnorm import quicken
from ..training.students import GuidanceInput, Student, read_student, write_student
from . import architecture, data, lineart, measure, sprites
from .runs import MODEL, SHIPPED, finish, this_process

if TYPE_CHECKING:
    from ..hosts.diffusers.model import DiffusersModel

STYLES: dict[str, data.Style] = {"painted": data.captioned, "lineart": lineart.captioned}
RESULT_FILE = "lcm.safetensors"
LCM = MODEL.parent / "sprites-lcm.safetensors"  # the one that ships
GUIDANCE = 5.0  # what the shipped model is used at


@dataclass(frozen=True)
class ConsistencyRecipe(ConsistencySettings):
    """`start_from`, another run of this kind or "shipped", is gone on from. `trained` is "lora", of `rank` and on
    `layers`, or "full", the whole network; `guidance_embedding`: the network is told omega."""

    trained: str = "lora"
    rank: int = 28
    layers: str = "all"
    guidance_embedding: bool = True
    start_from: str = ""
    style: str = "painted"
    scenes: int = 16384
    scenes_seed: int = 1
    bare: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_student(self)
        if self.style not in STYLES:
            raise ValueError(f"style: expected one of {', '.join(STYLES)}, got {self.style!r}")


def check_student(r: Any) -> None:
    """ValueError if a recipe of this kind, or of kind "smooth", asks for a student or for scenes that cannot be."""
    for name in ("rank", "scenes"):
        if getattr(r, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(r, name)}")
    if r.trained not in ("lora", "full"):
        raise ValueError(f"trained: expected 'lora' or 'full', got {r.trained!r}")
    if r.trained == "full" and r.start_from:
        raise ValueError("start_from: a whole network cannot go on from a LoRA; leave it out")
    if not 0 <= r.bare <= 1:
        raise ValueError(f"bare: expected 0 .. 1, got {r.bare}")


def train_recipe(r: ConsistencyRecipe, folder: Path, progress: Progress, resume: bool) -> dict[str, Any]:
    """Train the student of the shipped model that the recipe describes; its file is `lcm.safetensors`."""
    from ..hosts import load

    model, text, codec = load("diffusers").load_folder(MODEL)
    quicken(model.unet)
    student = new_student(model, r)
    if r.start_from:
        go_on(student, r.start_from, LCM, folder.parent / r.start_from / RESULT_FILE)
    encoder = text.towers[0].encoder
    examples = scenes(codec, encoder, r, folder / "latents", progress)
    null = encoded(encoder, architecture.tokenize([""]))

    def sample(current: Student, _: Any = None) -> Tensor | None:
        if this_process()[0] == 0:
            picture = sample_sheet(model, text, codec, current, r)
            report.save_picture(picture, folder / "samples.png")
        return None

    note = {"teacher": fingerprint(model.unet.state_dict().values())}
    done = train(
        model, student, examples, null, r, folder, progress=progress, resume=resume, recipe=note, sample=sample
    )
    best: Any = done.modules["student"]
    finish(folder, done, best, {"steps": done.steps, **note})
    if this_process()[0] == 0:
        write_student(folder / RESULT_FILE, best, guidance=GUIDANCE)
        sample(best)
    return {"loss": done.history["loss"][-1], "file": str(folder / RESULT_FILE)}


def new_student(model: DiffusersModel, r: Any) -> Student:
    """An untrained student of the recipe's kind: the model itself."""
    layers = model.layers()
    guidance = GuidanceInput(layers) if r.guidance_embedding else None
    if r.trained == "lora":
        return Student(lora=LowRankLayers(layers, r.rank, which=r.layers, seed=r.seed), guidance=guidance)

    def around(unet: nn.Module) -> Any:
        other = copy.copy(model)  # not `with_unet`, which is for networks that are no longer trained
        other.unet = unet
        return other

    return Student(network=copy.deepcopy(model.unet).requires_grad_(True), around=around, guidance=guidance)


def go_on(student: Student, start_from: str, ours: Path, result: Path) -> None:
    """Go on from the file that ships, `ours`, or from another run's. CheckpointError if there is none."""
    start = ours if start_from == SHIPPED else result
    if not start.is_file():
        raise CheckpointError(f"{start}: no such result; run `velatura train {start_from}` first")
    read_student(start, student)


def scenes(codec: Any, encoder: nn.Module, r: Any, folder: Path, progress: Progress) -> Examples:
    """The recipe's scenes as latents, encoded once, with their captions through the frozen text encoder."""
    rank, of, wait = this_process()
    which = {"seed": r.scenes_seed, "count": r.scenes, "bare": r.bare}
    data.encode_blocks(
        quicken(codec.vae), folder, **which, style=STYLES[r.style], process=(rank, of), progress=progress
    )
    wait()
    rows = data.shuffled(*data.read_blocks(folder, **which), codec.scaling_factor, r.seed)

    def examples(first: int, count: int) -> tuple[Tensor, Condition]:
        z_0, ids = rows(first, count)
        return z_0, encoded(encoder, ids)

    return examples


@torch.no_grad()
def encoded(encoder: Any, ids: Tensor) -> Condition:
    """Token ids [B, L] as the network's condition."""
    return Condition(encoder(ids.to(encoder.device)).last_hidden_state)


@torch.no_grad()
def sample_sheet(
    model: LatentModel, text: Any, codec: LatentCodec, student: Student, r: ConsistencyRecipe, count: int = 16
) -> Tensor:
    """Held-out captions drawn in four steps, at guidance 5 or as near as the recipe goes: [3, H, W]."""
    prompts = sprites.draw(measure.HELD_OUT, range(count), 8).captions
    generator = torch.Generator().manual_seed(0)
    shape = (count, model.latent_channels, 16, 16)
    omega = torch.full((count,), min(max(GUIDANCE - 1, r.omega_min), r.omega_max))

    def draw() -> Tensor:
        return torch.randn(shape, generator=generator).to(model.device)

    timesteps = lcm_timesteps(4, original_steps=len(model.schedule) // r.skip, count=len(model.schedule))
    shown = model if student.around is None or student.network is None else student.around(student.network)
    with student.applied(shown.layers(), omega):
        latent = consistency_sample(shown, draw(), text.encode(prompts), timesteps, draw)
    return report.sheet((codec.decode(latent).float().cpu() + 1) / 2, 8)
