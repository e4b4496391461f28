"""Recipes of kind "concat": the shipped model told of a semantic map, or of a small picture to be enlarged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.ddim import ddim_sample, ddim_timesteps
from ..core.enlarge import bicubic, given_of
from ..core.layer_patch import LayerPatch
from ..core.palette import colours_of, painted
from ..core.protocols import Condition, Progress
from ..core.spatial import class_cells
from ..core.spatial_file import SpatialPatch
from ..training import report
from ..training.autoencoder import encode_mean
from ..training.checkpoint import CheckpointError, fingerprint
from ..training.concat import ConcatSettings, ToldLayers, read_told, train, write_told
from ..training.examples import shuffled_rows
from ..training.groupnorm import quicken
from . import architecture, data, degrade, distil, measure, views
from .runs import MODEL, finish, this_process

SEMANTIC = MODEL.parent / "sprites-semantic.safetensors"  # those that ship
SUPERRES = MODEL.parent / "sprites-superres.safetensors"
TOLD = ("semantic", "superres")
FACTOR = 8  # pixels a side in a cell of the latent
SCALE = 4
GUIDANCE = 3.0


@dataclass(frozen=True)
class ConcatRecipe(ConcatSettings):
    """`told` is "semantic", a map of `views.CLASSES`, or "superres", a picture of a quarter of the side. A share `near`
    of the scenes are windows of larger ones, drawn up to `farther` times as large; `several` have more objects.
    `start_from`, another run of this kind, is gone on from."""

    told: str = "semantic"
    start_from: str = ""
    rank: int = 24
    layers: str = "all"
    scenes: int = 4096
    scenes_seed: int = 1
    near: float = 0.25
    several: float = 0.25
    farther: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.told not in TOLD:
            raise ValueError(f"told: expected one of {', '.join(TOLD)}, got {self.told!r}")
        for name in ("rank", "scenes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.farther not in (2, 4):
            raise ValueError(f"farther: expected 2 or 4, got {self.farther}")
        if self.near < 0 or self.several < 0 or self.near + self.several > 1:
            raise ValueError(f"near: expected shares that make at most 1 together, got {self.near} and {self.several}")


def channels(told: str, latent: int = 4) -> int:
    """How many channels are given beside the noise."""
    return 4 * len(views.CLASSES) if told == "semantic" else latent + 12


def train_recipe(r: ConcatRecipe, folder: Path, progress: Progress, resume: bool) -> dict[str, Any]:
    """Train what the recipe describes; its file is `NAME.safetensors`, with NAME what is told."""
    from ..hosts import load

    model, text, codec = load("diffusers").load_folder(MODEL)
    quicken(model.unet)
    layers = ToldLayers(model.layers(), channels(r.told), r.rank, which=r.layers, seed=r.seed)
    if r.start_from:
        start = folder.parent / r.start_from / f"{r.told}.safetensors"
        if not start.is_file():
            raise CheckpointError(f"{start}: no such result; run `velatura train {r.start_from}` first")
        read_told(start, layers)
    encoder = text.towers[0].encoder
    examples = scenes(codec, encoder, r, folder, progress)
    null = distil.encoded(encoder, architecture.tokenize([""]))

    def sample(current: ToldLayers, _: Any = None) -> Tensor | None:
        if this_process()[0] == 0:
            report.save_picture(sample_sheet(model, text, codec, current, r), folder / "samples.png")
        return None

    note = {"teacher": fingerprint(model.unet.state_dict().values())}
    done = train(model, layers, examples, null, r, folder, progress=progress, resume=resume, recipe=note, sample=sample)
    best: Any = done.modules["layers"]
    finish(folder, done, best, {"steps": done.steps, **note})
    path = folder / f"{r.told}.safetensors"
    if this_process()[0] == 0:
        write_told(path, best, described(r.told))
        sample(best)
    return {"loss": done.history["loss"][-1], "file": str(path)}


def described(told: str) -> SpatialPatch:
    """What a recipe's file says of itself; the patch in it is empty."""
    if told == "superres":
        return SpatialPatch(LayerPatch(), "small picture", size=views.SIZE, scale=SCALE)
    return SpatialPatch(LayerPatch(), "classes", dict(zip(views.CLASSES, views.COLOURS, strict=True)), views.SIZE)


def scenes(codec: Any, text_encoder: nn.Module, r: ConcatRecipe, folder: Path, progress: Progress):
    """The recipe's views as latents with their prompts and what is given, drawn and encoded once."""
    rank, of, wait = this_process()
    made_by = f"{fingerprint(codec.vae.state_dict().values())} {r.near} {r.several} {r.farther}"
    which = {"seed": r.scenes_seed, "count": r.scenes, "bare": 0.0, "made_by": made_by}
    vae, home = quicken(codec.vae), folder / "latents"
    how = {"style": partial(_drawn, r), "encode": partial(_encoded, r.told, vae)}
    data.encode_blocks(vae, home, **which, **how, process=(rank, of), progress=progress)
    wait()
    together, ids = data.read_blocks(home, **which)
    channels = codec.latent_channels
    rows = shuffled_rows(len(together), r.seed)

    def examples(first: int, count: int) -> tuple[Tensor, Condition, Tensor]:
        chosen = rows(first, count)
        both, condition = together[chosen].float(), distil.encoded(text_encoder, ids[chosen])
        z_0, told = both[:, :channels] * codec.scaling_factor, both[:, channels:]
        if r.told == "semantic":
            classes = F.pixel_shuffle(told, FACTOR)[:, 0].long()
            return z_0, condition, class_cells(classes, len(views.CLASSES), FACTOR)
        near, small = told[:, :channels] * codec.scaling_factor, F.pixel_shuffle(told[:, channels:], FACTOR // SCALE)
        return z_0, condition, given_of(small, near)

    return examples


def _drawn(r: ConcatRecipe, seed: int, indices: Tensor, _: float) -> tuple[Tensor, list[str]]:
    """A view and what is told of it in one picture [B, C, S, S]: `data.Style`."""
    view = views.views(seed, indices, near=r.near, several=r.several, farther=r.farther)
    if r.told == "semantic":
        told = view.classes[:, None].float()
    else:
        told = F.interpolate(degrade.degraded(view.picture, seed, indices), scale_factor=SCALE)
    return torch.cat([view.picture * 2 - 1, told], 1), view.captions


def _encoded(told: str, vae: nn.Module, both: Tensor) -> Tensor:
    """`_drawn`'s pictures as unscaled latents, with what is told of them in the latents' size below them."""
    latent, rest = encode_mean(vae, both[:, :3]), both[:, 3:]
    if told == "semantic":
        return torch.cat([latent, F.pixel_unshuffle(rest, FACTOR)], 1)
    small = rest[..., ::SCALE, ::SCALE]
    near = encode_mean(vae, bicubic(small, SCALE) * 2 - 1)
    return torch.cat([latent, near, F.pixel_unshuffle(small, FACTOR // SCALE)], 1)


@torch.no_grad()
def sample_sheet(
    model: Any, text: Any, codec: Any, layers: ToldLayers, r: ConcatRecipe, count: int = 8, steps: int = 20
) -> Tensor:
    """Held-out views in columns: as they are, what is told, and what the model makes of it. [3, H, W]"""
    view = views.views(measure.HELD_OUT, torch.arange(count), near=r.near, several=r.several, farther=r.farther)
    noise = torch.stack([measure.numbered_noise((model.latent_channels, 16, 16), n) for n in range(count)])
    null = text.encode([""])
    null = null.with_embedding(null.embedding.expand(count, -1, -1))
    if r.told == "semantic":
        given = class_cells(view.classes, len(views.CLASSES), FACTOR)
        shown, condition, w = painted(view.classes, colours_of(views.COLOURS)), text.encode(view.captions), GUIDANCE
    else:
        small = degrade.degraded(view.picture, measure.HELD_OUT, torch.arange(count))
        shown, condition, w = bicubic(small, SCALE), null, 1.0
        given = given_of(small, codec.encode(shown * 2 - 1))
    timesteps = ddim_timesteps(len(model.schedule), steps)
    with layers.applied(model, given):
        latent = ddim_sample(model, noise, condition, null, w=w, timesteps=timesteps)
    image = ((codec.decode(latent).float() + 1) / 2).clamp(0, 1)
    return report.sheet(torch.cat([view.picture, shown, image]).cpu(), count)
