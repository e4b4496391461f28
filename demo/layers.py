"""Recipes of kind "layers": the shipped model taught transparent objects, and objects with the backgrounds below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..core.alpha import over
from ..core.ddim import ddim_sample, ddim_timesteps
from ..core.lora import read_lora
from ..core.protocols import Condition, Progress
from ..core.transparency import encode
from ..core.transparency_decode import decode
from ..training import report
from ..training.adapters import LowRankLayers, lora_tensors, write_weights
from ..training.checkpoint import CheckpointError, fingerprint
from ..training.examples import Examples, shuffled_rows
from ..training.groupnorm import quicken
from ..training.layers import LayerLoras, LayerSettings, train
from . import architecture, data, distil, measure, sprites, transparency
from .runs import MODEL, SHIPPED, finish, this_process
from .transparency import Alpha, load_pair

TRANSPARENT = MODEL.parent / "sprites-transparent.safetensors"  # those that ship
FOREGROUND = MODEL.parent / "sprites-layer-foreground.safetensors"
BACKGROUND = MODEL.parent / "sprites-layer-background.safetensors"
TAUGHT = {"transparent": ("transparent",), "layers": ("foreground", "background")}
GUIDANCE = 3.0  # more leaves a haze around objects


@dataclass(frozen=True)
class LayerRecipe(LayerSettings):
    """`taught` is "transparent", one LoRA for objects in white light, or "layers", one for objects in the light of
    their place and one for the places. `pair` is the run whose encoder and decoder of alpha are used, or "shipped".
    `start_from`, another run of this kind or "shipped", has the LoRA from which that of the objects goes on."""

    taught: str = "transparent"
    pair: str = SHIPPED
    start_from: str = ""
    rank: int = 12
    layers: str = "all"
    scenes: int = 4096
    scenes_seed: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.taught not in TAUGHT:
            raise ValueError(f"taught: expected one of {', '.join(TAUGHT)}, got {self.taught!r}")
        for name in ("rank", "scenes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.conditional and self.taught == "transparent":
            raise ValueError("conditional: expected 0 for a single layer, which would never be trained")


def train_recipe(r: LayerRecipe, folder: Path, progress: Progress, resume: bool) -> dict[str, Any]:
    """Train the LoRAs that the recipe describes; their files are `transparent.safetensors`, or
    `foreground.safetensors` and `background.safetensors`."""
    from ..hosts import load

    model, text, codec = load("diffusers").load_folder(MODEL)
    alpha = load_pair(r.pair, folder.parent)
    loras = new_loras(model.layers(), r, folder.parent)
    quicken(model.unet)
    encoder = text.towers[0].encoder
    examples = scenes(codec, encoder, alpha, r, folder, progress)
    null = distil.encoded(encoder, architecture.tokenize([""]))

    def sample(current: LayerLoras, _: Any = None) -> Tensor | None:
        if this_process()[0] == 0:
            report.save_picture(sample_sheet(model, text, codec, alpha, current), folder / "samples.png")
        return None

    note = {"teacher": fingerprint(model.unet.state_dict().values()), "pair": fingerprint(alpha.encoder.parameters())}
    done = train(model, loras, examples, null, r, folder, progress=progress, resume=resume, recipe=note, sample=sample)
    best: Any = done.modules["loras"]
    finish(folder, done, best, {"steps": done.steps, **note})
    files = {name: folder / f"{name}.safetensors" for name in TAUGHT[r.taught]}
    if this_process()[0] == 0:
        for lora, path in zip(best.loras, files.values(), strict=True):
            write_weights(path, lora_tensors(lora.deltas()))
        sample(best)
    return {"loss": done.history["loss"][-1], "files": [str(path) for path in files.values()]}


def new_loras(layers: Any, r: LayerRecipe, runs: Path) -> LayerLoras:
    """Untrained LoRAs, the first gone on from another run's. CheckpointError if that is not there."""
    made = [LowRankLayers(layers, r.rank, which=r.layers, seed=r.seed + k) for k in range(len(TAUGHT[r.taught]))]
    if r.start_from:
        start = TRANSPARENT if r.start_from == SHIPPED else runs / r.start_from / "transparent.safetensors"
        if not start.is_file():
            raise CheckpointError(f"{start}: no such result; run `velatura train {r.start_from}` first")
        made[0].load(read_lora(load_file(start)))
    return LayerLoras(made)


def objects(seed: int, indices: Tensor, bare: float) -> tuple[Tensor, list[str]]:
    """Objects in white light, RGBA, and what they are."""
    drawn = sprites.draw(seed, indices)
    return drawn.foreground, drawn.foreground_captions


def lit_objects(seed: int, indices: Tensor, bare: float) -> tuple[Tensor, list[str]]:
    """Objects in the light of their place, RGBA; the caption does not tell the place."""
    drawn = sprites.draw(seed, indices)
    return drawn.lit_foreground, drawn.foreground_captions


def places(seed: int, indices: Tensor, bare: float) -> tuple[Tensor, list[str]]:
    """Places with nothing in them."""
    drawn = sprites.draw(seed, indices)
    return drawn.background * 2 - 1, drawn.background_captions


STYLES: dict[str, data.Style] = {"transparent": objects, "foreground": lit_objects, "background": places}


def scenes(codec: Any, text_encoder: nn.Module, alpha: Alpha, r: LayerRecipe, folder: Path, progress: Progress):
    """The recipe's scenes as latents in rows (sample layer), encoded once, with their prompts."""
    rank, of, wait = this_process()
    made_by = fingerprint([*codec.vae.state_dict().values(), *alpha.encoder.parameters()])
    which = {"seed": r.scenes_seed, "count": r.scenes, "bare": 0.0, "made_by": made_by}
    hidden = adjusted(codec.vae, alpha)
    latents, ids = [], []
    for name in TAUGHT[r.taught]:
        home, how = folder / "latents" / name, None if name == "background" else hidden
        data.encode_blocks(
            codec.vae, home, **which, style=STYLES[name], encode=how, process=(rank, of), progress=progress
        )
        wait()
        for rows, one in zip((latents, ids), data.read_blocks(home, **which), strict=True):
            rows.append(one)
    return layered_rows(torch.stack(latents, 1), torch.stack(ids, 1), codec.scaling_factor, text_encoder, r.seed)


def layered_rows(latents: Tensor, ids: Tensor, scale: float, text_encoder: nn.Module, seed: int) -> Examples:
    """Examples of unscaled latents [N, L, C, h, w] and token ids [N, L, T], epoch after epoch."""
    rows = shuffled_rows(len(latents), seed)

    def examples(first: int, count: int) -> tuple[Tensor, Condition]:
        chosen = rows(first, count)
        return latents[chosen].flatten(0, 1).float() * scale, distil.encoded(text_encoder, ids[chosen].flatten(0, 1))

    return examples


def adjusted(vae: nn.Module, alpha: Alpha) -> Callable[[Tensor], Tensor]:
    """RGBA [B, 4, H, W] in 0 .. 1 -> adjusted latents x_a [B, C, h, w], unscaled."""
    posterior = transparency.frozen_autoencoder(vae).posterior

    @torch.no_grad()
    def hide(rgba: Tensor) -> Tensor:
        return encode(alpha.encoder, posterior, rgba[:, :3], rgba[:, 3:], alpha.convention).float()

    return hide


def shown(codec: Any, alpha: Alpha, latent: Tensor, passes: Any = 1) -> tuple[Tensor, Tensor]:
    """Scaled adjusted latents as straight colour [B, 3, H, W] and alpha [B, 1, H, W]."""
    image = ((codec.decode(latent).float() + 1) / 2).clamp(0, 1)
    found = decode(alpha.decoder, image, codec.unscale(latent).float(), passes=passes)
    return found.colour, found.alpha


@torch.no_grad()
def sample_sheet(
    model: Any, text: Any, codec: Any, alpha: Alpha, loras: LayerLoras, count: int = 8, steps: int = 20
) -> Tensor:
    """Held-out prompts in columns: objects over a checkerboard; with a background, it and the blend below. [3, H, W]"""
    drawn = sprites.draw(measure.HELD_OUT, range(count), 8)
    prompts = list(drawn.foreground_captions)
    if loras.count == 2:
        both = zip(drawn.foreground_captions, drawn.background_captions, strict=True)
        prompts = [each for pair in both for each in pair]
    noise = torch.stack([measure.numbered_noise((model.latent_channels, 16, 16), n) for n in range(len(prompts))])
    null = text.encode([""])
    null = null.with_embedding(null.embedding.expand(len(noise), -1, -1))
    timesteps = ddim_timesteps(len(model.schedule), steps)
    with loras.applied(model):
        latent = ddim_sample(model, noise, text.encode(prompts), null, w=GUIDANCE, timesteps=timesteps)
    colour, opacity = shown(codec, alpha, latent[:: loras.count])
    board = transparency.checkerboard(*colour.shape[2:]).expand_as(colour)
    rows = [over(colour, opacity, board)[0], opacity.expand_as(colour)]
    if loras.count == 2:
        below = ((codec.decode(latent[1::2]).float() + 1) / 2).clamp(0, 1)
        rows += [below, over(colour, opacity, below)[0]]
    return report.sheet(torch.cat(rows).cpu(), count)
