"""Recipes of kind "transparency": the encoder and decoder of alpha for the shipped autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core import transparency_file
from ..core.alpha import over, pad_rgb
from ..core.protocols import Progress
from ..core.transparency import Convention, TransparencyDecoder, TransparencyEncoder, encode
from ..core.transparency_decode import decode
from ..hosts.weights import open_weights
from ..training import report
from ..training import transparency as training
from ..training.checkpoint import CheckpointError, fingerprint
from ..training.groupnorm import quicken
from ..training.transparency import Frozen, Pair, Pictures, TransparencySettings, train, write_half
from . import measure, sprites
from .runs import MODEL, SHIPPED, finish, shipped, this_process

ENCODER_WIDTHS = (16, 32, 64, 96)
DECODER_WIDTHS = (16, 32, 64, 96)
ENCODER = MODEL.parent / "sprites-transparent-encoder.safetensors"  # the pair that ships
DECODER = MODEL.parent / "sprites-transparent-decoder.safetensors"


@dataclass(frozen=True)
class TransparencyRecipe(TransparencySettings):
    """`opaque` is the share of whole scenes, without any transparency. `start_from`, another run of this kind or
    "shipped", has the pair that is trained on."""

    scenes_seed: int = 1
    opaque: float = 0.05
    start_from: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.opaque <= 1:
            raise ValueError(f"opaque: expected 0 .. 1, got {self.opaque}")
        if self.keep_encoder and not self.start_from:
            raise ValueError("keep_encoder: expected start_from to name the run whose encoder is kept")


def train_recipe(r: TransparencyRecipe, folder: Path, progress: Progress, resume: bool) -> dict[str, Any]:
    """Train the pair that the recipe describes; its files are `encoder.safetensors` and `decoder.safetensors`."""
    encoder, decoder = _start(r, folder.parent)
    vae = shipped()[0]["vae"].eval().requires_grad_(False)
    frozen = frozen_autoencoder(vae)

    def sample(pair: Pair) -> Tensor | None:
        if this_process()[0] == 0:
            report.save_picture(sample_sheet(pair, frozen, r.convention), folder / "samples.png")
        return None

    note = {"autoencoder": fingerprint(vae.state_dict().values()), "opaque": r.opaque, "scenes_seed": r.scenes_seed}
    pictures = objects(r.scenes_seed, r.opaque, r.keep_soft)
    done = train(
        encoder, decoder, frozen, pictures, r, folder, progress=progress, resume=resume, recipe=note, sample=sample
    )
    best: Any = done.modules["pair"]
    finish(folder, done, best, {"steps": done.steps, **note})
    if this_process()[0] == 0:
        for name, part in (("encoder", best.encoder), ("decoder", best.decoder)):
            write_half(folder / f"{name}.safetensors", part, r.convention)
        sample(best)
    return {name: values[-1] for name, values in done.history.items()}


def _start(r: TransparencyRecipe, runs: Path) -> tuple[TransparencyEncoder, TransparencyDecoder]:
    if not r.start_from:
        return new_pair(r.seed)
    pair = load_pair(r.start_from, runs)
    if pair.convention != r.convention:
        raise CheckpointError(f"start_from: {r.start_from} was trained with {pair.convention}, not {r.convention}")
    return pair.encoder.float().requires_grad_(), pair.decoder.float().requires_grad_()


class Alpha(NamedTuple):
    """The pair of networks that hides alpha in a latent and finds it, and what they were trained with."""

    encoder: TransparencyEncoder
    decoder: TransparencyDecoder
    convention: Convention


def load_pair(name: str = SHIPPED, runs: Path = Path("runs")) -> Alpha:
    """The pair that ships, or that of a run. CheckpointError if it is not there."""
    ours = {"encoder": ENCODER, "decoder": DECODER}
    files = ours if name == SHIPPED else {part: runs / name / f"{part}.safetensors" for part in ours}
    networks: dict[str, nn.Module] = {}
    convention = Convention()
    for part, read in (("encoder", transparency_file.encoder_from), ("decoder", transparency_file.decoder_from)):
        if not files[part].is_file():
            raise CheckpointError(f"{files[part]}: no such file; run `velatura train transparency` first")
        with open_weights(files[part]) as (tensors, metadata):
            networks[part], convention = read(dict(tensors)), transparency_file.convention_of(metadata)
        networks[part].eval().requires_grad_(False)
    encoder: Any = networks["encoder"]
    decoder: Any = networks["decoder"]
    return Alpha(encoder, decoder, convention)


def new_pair(seed: int) -> tuple[TransparencyEncoder, TransparencyDecoder]:
    """Networks of the Sprites' size with the seed's random weights; the offset begins at 0."""
    return training.new_pair(seed, ENCODER_WIDTHS, DECODER_WIDTHS, layers=1, attention_from=3)


def frozen_autoencoder(vae: nn.Module) -> Frozen:
    """diffusers' AutoencoderKL for the trainer."""
    net: Any = quicken(vae)

    def posterior(image: Tensor) -> tuple[Tensor, Tensor]:
        moments = net.quant_conv(net.encoder(image.contiguous(memory_format=torch.channels_last)))
        mean, logvar = moments.float().chunk(2, 1)
        return mean, (0.5 * logvar.clamp(-30, 20)).exp()

    return Frozen(posterior, lambda latent: net.decoder(net.post_quant_conv(latent)))


def objects(seed: int, opaque: float, keep_soft: bool, size: int = 128) -> Pictures:
    """Objects in white light and in some place's, and whole scenes, which have no transparency at all."""

    def pictures(first: int, count: int) -> tuple[Tensor, Tensor]:
        indices = torch.arange(first, first + count)
        scenes = sprites.draw(seed, indices, size)
        chance = sprites.uniform(seed + 0xA1FA, indices, 1).view(-1, 1, 1, 1)
        whole_scene = torch.cat([scenes.blend, torch.ones_like(scenes.blend[:, :1])], 1)
        rgba = torch.where(chance < 0.5, scenes.foreground, scenes.lit_foreground)
        rgba = torch.where(chance < opaque, whole_scene, rgba)
        colour, alpha = rgba[:, :3], rgba[:, 3:]
        return pad_rgb(colour, alpha, keep_soft=keep_soft), alpha

    return pictures


@torch.no_grad()
def sample_sheet(pair: Pair, frozen: Frozen, convention: Convention, count: int = 8) -> Tensor:
    """Held-out objects in columns: over a checkerboard, what the autoencoder makes of them, decoded alpha, and the
    decoded object over the checkerboard. [3, H, W]."""
    scenes = sprites.draw(measure.HELD_OUT, range(count))
    colour, alpha = scenes.foreground[:, :3], scenes.foreground[:, 3:]
    encoder, decoder = pair.encoder.eval(), pair.decoder.eval()
    latent = encode(encoder, frozen.posterior, colour, alpha, convention)
    image = ((frozen.decode(latent) + 1) / 2).clamp(0, 1)
    found = decode(decoder, image, latent, passes=1)
    board = checkerboard(*colour.shape[2:]).expand_as(colour)
    rows = [over(colour, alpha, board)[0], image, found.alpha.expand_as(colour), over(*found[:2], board)[0]]
    pair.train()
    return report.sheet(torch.cat(rows), count)


def checkerboard(height: int, width: int, cell: int = 8) -> Tensor:
    """The picture editors' sign for nothing, [1, 3, H, W]."""
    odd = (torch.arange(height)[:, None] // cell + torch.arange(width) // cell) % 2
    return (0.75 + 0.15 * odd.float()).expand(1, 3, -1, -1)
