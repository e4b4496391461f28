"""Transparent layers: the pair of networks, the decoder at its released size, transparent objects, and objects drawn
together with their backgrounds, on the Sprites model."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..core.alpha import over, pad_rgb
from ..core.ddim import ddim_sample, ddim_timesteps
from ..core.lora import LowRankDeltas, read_lora
from ..core.metrics import psnr
from ..core.protocols import Progress, no_progress
from ..core.shared_attention import layer_loras, shared_attention
from ..core.transparency import TransparencyDecoder, TransparencyEncoder, encode, shown_to_autoencoder
from ..core.transparency_decode import SHARE, TOLERANCE, decode
from ..demo import captions, classifier, layers, measure, release, sprites
from ..demo.half import quick_half
from ..training import report
from . import _decoding, _light, _matting, _stack
from .lcm import ratios

OBJECTS, QUICK_OBJECTS = 64, 8
STEPS, GUIDANCE, ALONE = 25, layers.GUIDANCE, 2.0  # guidance as in the examples, of layers and of objects alone
HARD = tuple(captions.KINDS.index(kind) for kind in ("glass ball", "soap bubble", "flame", "smoke cloud", "fur ball"))
STUDIO = 7  # the plainest background, the easiest to cut from
SHEET = Path(__file__).parent / "results" / "layers.jpg"


@dataclass(frozen=True)
class Bench:
    """The models, over how many objects each figure is taken, and how they are sampled and decoded."""

    model: Any
    text: Any
    codec: Any
    alpha: layers.Alpha
    judge: classifier.Classifier
    count: int
    steps: int
    progress: Progress
    passes: Any = 8


def run(
    progress: Progress = no_progress,
    *,
    quick: bool = False,
    folder: str | Path = release.MODEL,
    pair: str = layers.SHIPPED,
    runs: str | Path = "runs",
    files: Sequence[str | Path] = (layers.TRANSPARENT, layers.FOREGROUND, layers.BACKGROUND),
    count: int | None = None,
    steps: int = STEPS,
    decoder: bool = True,
    rounds: int = 9,
    sheet: str | Path | None = SHEET,
) -> dict[str, Any]:
    """The figures of `velatura bench layers`, on held-out scenes. Alpha and colour are in 0 .. 1. `pair` is that which
    ships or a run's; `files` are the LoRAs of transparent objects, of foregrounds and of backgrounds. `decoder`: with
    the decoder of the released size, which takes minutes.

    FileNotFoundError or CheckpointError if weights are missing, ModuleNotFoundError names a missing package.
    """
    from ..hosts import load

    model, text, codec = load("diffusers").load_folder(folder)
    judge = classifier.load(Path(folder) / "classifier.safetensors")
    alpha = layers.load_pair(pair, Path(runs))
    count = count or (QUICK_OBJECTS if quick else OBJECTS)
    bench = Bench(model, text, codec, alpha, judge, count, min(steps, 10) if quick else steps, progress)
    loras = [read_lora(load_file(file)) for file in files]
    figures: dict[str, Any] = {"objects": count, "steps": bench.steps, "guidance": GUIDANCE, "guidance_alone": ALONE}
    figures |= formats()
    if decoder:
        figures |= _decoding.figures(quick)
    figures |= round_trip(bench)
    figures |= matting(bench)
    figures |= transparent(bench, loras[0])
    figures |= joint(bench, loras[1:], sheet)
    figures |= joint_cost(bench, loras[1:], rounds)
    figures |= _stack.figures(min(bench.steps, 4))
    return figures


def formats() -> dict[str, int]:
    """Parameters of networks in the released layout."""
    with torch.device("meta"):
        made = {"encoder": TransparencyEncoder(), "decoder": TransparencyDecoder()}
    return {f"{name}_parameters": sum(p.numel() for p in each.parameters()) for name, each in made.items()}


@torch.no_grad()
def round_trip(bench: Bench) -> dict[str, float]:
    """Encoded and decoded again at 8 passes: alpha; colour where alpha is above 0.5; what the offset costs the
    autoencoder's own picture; and "auto" beside 8 passes: how many, and on what share of the pixels they agree."""
    rows: list[list[Tensor]] = []
    for part in torch.arange(bench.count).split(16):
        scenes = sprites.draw(measure.HELD_OUT, part)
        colour, alpha = scenes.foreground[:, :3], scenes.foreground[:, 3:]
        latent, image, found = _encoded(bench, colour, alpha, bench.passes)
        quick = decode(bench.alpha.decoder, image, latent, passes="auto")
        convention = bench.alpha.convention
        picture = shown_to_autoencoder(
            pad_rgb(colour, alpha, keep_soft=convention.keep_soft), alpha, convention.backdrop
        )
        own = (bench.codec.decode(bench.codec.encode(picture)) + 1) / 2
        seen = [psnr(each, (picture + 1) / 2) for each in (own, image)]
        shown = (alpha > 0.5).to(alpha)
        wrong = ((found.colour - colour).square().mean(1, True) * shown).sum((1, 2, 3)) / shown.sum((1, 2, 3))
        pairs = [torch.cat([each.alpha, each.colour * each.alpha], 1) for each in (found, quick)]
        agreed = ((pairs[0] - pairs[1]).abs().amax(1) <= TOLERANCE).float().mean((1, 2))
        error = (found.alpha - alpha).abs().mean((1, 2, 3))
        psnrs = -10 * torch.log10(wrong[shown.sum((1, 2, 3)) > 0].clamp(min=1e-10))
        rows.append([error, psnrs, seen[0] - seen[1], torch.tensor(quick.passes).float(), agreed])
    error, colours, drop, passes, agreed = (torch.cat(column) for column in zip(*rows, strict=True))
    return {
        "alpha_mae": float(error.mean()),
        "colour_psnr": float(colours.mean()),
        "identity_drop_db": float(drop.mean()),
        "decode_auto_passes": float(passes.mean()),
        "decode_auto_agreement": float(agreed.mean()),
        "decode_auto_agreeing_pictures": float((agreed >= SHARE).float().mean()),
    }


def _encoded(bench: Bench, colour: Tensor, alpha: Tensor, passes: Any) -> Any:
    """Adjusted latents, the autoencoder's pictures of them, and what is decoded."""
    latent = encode(bench.alpha.encoder, bench.codec.posterior, colour, alpha, bench.alpha.convention)
    image = ((bench.codec.decode(bench.codec.scale(latent)) + 1) / 2).clamp(0, 1)
    return latent, image, decode(bench.alpha.decoder, image, latent, passes=passes)


@torch.no_grad()
def matting(bench: Bench) -> dict[str, Any]:
    """Alpha of glass, flames, smoke and hair: out of the latent, and cut out of the exact picture of the scene, or of
    the same object in a plain studio. The figure is that of the best way to cut."""
    few = range(max(2, min(8, bench.count // 12)))
    cut: dict[str, list[float]] = {}
    own = []
    for kind in HARD:
        scenes = sprites.draw(measure.HELD_OUT, few, kind=kind)
        plain = sprites.draw(measure.HELD_OUT, few, kind=kind, place=STUDIO)
        colour, alpha = scenes.lit_foreground[:, :3], scenes.lit_foreground[:, 3:]
        found = _encoded(bench, colour, alpha, bench.passes)[2]
        own.append(float((found.alpha - alpha).abs().mean()))
        for name, each in (("scene", scenes), ("studio", plain)):
            for method, error in _matting.errors(each.blend, each.lit_foreground[:, 3:]).items():
                cut.setdefault(f"{method} {name}", []).append(error)
    means = {name: sum(each) / len(each) for name, each in cut.items()}
    return {
        "hard_alpha_mae": sum(own) / len(own),
        "hard_alpha_mae_matting": min(means.values()),
        "hard_alpha_mae_by_method": means,
        "hard_alpha_mae_by_kind": {captions.KINDS[k]: error for k, error in zip(HARD, own, strict=True)},
    }


@torch.no_grad()
def _sampled(
    bench: Bench, prompts: list[list[str]], loras: Sequence[LowRankDeltas], *, shared: bool, w: float = GUIDANCE
) -> list[Tensor]:
    """Latents of each layer [B, C, h, w]: `prompts` has a list for each sample, one prompt for each layer. Noise is
    drawn by sample and layer, the same shared or not."""
    total, made = len(loras), []
    timesteps = ddim_timesteps(len(bench.model.schedule), bench.steps)
    null = bench.text.encode([""])
    with ExitStack() as stack:
        stack.enter_context(layer_loras(bench.model, loras, [1.0] * total))
        if shared:
            stack.enter_context(bench.model.attention(shared_attention(total)))
        for at in range(0, len(prompts), 8):
            rows = [prompt for sample in prompts[at : at + 8] for prompt in sample]
            shape = (bench.model.latent_channels, 16, 16)
            noise = torch.stack([measure.numbered_noise(shape, at * total + n) for n in range(len(rows))])
            empty = null.with_embedding(null.embedding.expand(len(rows), -1, -1))
            with quick_half():
                made.append(
                    ddim_sample(bench.model, noise, bench.text.encode(rows), empty, w=w, timesteps=timesteps).float()
                )
            bench.progress(min(at + 8, len(prompts)), len(prompts), None)
    whole = torch.cat(made)
    return [whole[k::total] for k in range(total)]


@torch.no_grad()
def _decoded(bench: Bench, latent: Tensor) -> tuple[Tensor, Tensor]:
    found = [layers.shown(bench.codec, bench.alpha, part, bench.passes) for part in latent.split(16)]
    colour, alpha = (torch.cat(column) for column in zip(*found, strict=True))
    return colour, alpha


def _recognised(bench: Bench, colour: Tensor, alpha: Tensor, drawn: sprites.Scenes) -> float:
    """Share of kinds and colours recognised of objects laid over the scenes' own backgrounds."""
    images = over(colour, alpha, drawn.background)[0]
    seen = measure.judge(bench.judge, images, drawn.kind, drawn.colour, drawn.place)
    return (seen.kind + seen.colour) / 2


def transparent(bench: Bench, lora: LowRankDeltas) -> dict[str, float]:
    """Objects drawn by the transparent model from their captions."""
    drawn = sprites.draw(measure.HELD_OUT, range(bench.count))
    latent = _sampled(bench, [[caption] for caption in drawn.foreground_captions], [lora], shared=False, w=ALONE)[0]
    colour, alpha = _decoded(bench, latent)
    outside = torch.stack([nowhere(int(kind)) for kind in drawn.kind])
    return {
        "transparent_accuracy": _recognised(bench, colour, alpha, drawn),
        "transparent_accuracy_real": _recognised(bench, drawn.foreground[:, :3], drawn.foreground[:, 3:], drawn),
        "alpha_outside": float((alpha[:, 0] * outside).sum() / outside.sum()),
    }


def nowhere(kind: int, draws: int = 64) -> Tensor:
    """Where no object of a kind ever is, [128, 128], 1 or 0."""
    seen = sprites.draw(measure.HELD_OUT + 1, range(draws), kind=kind, colour=0).foreground[:, 3]
    return (seen.amax(0) < 0.02).float()


def joint(bench: Bench, loras: Sequence[LowRankDeltas], sheet: str | Path | None) -> dict[str, Any]:
    """Objects and backgrounds drawn together, and by the same LoRAs and noise without shared attention."""
    drawn = sprites.draw(measure.HELD_OUT, range(bench.count))
    prompts = [list(each) for each in zip(drawn.foreground_captions, drawn.background_captions, strict=True)]
    found: dict[str, Any] = {}
    pictures = []
    for name, shared in (("shared", True), ("unshared", False)):
        front, back = _sampled(bench, prompts, loras, shared=shared)
        colour, alpha = _decoded(bench, front)
        with torch.no_grad():
            below = torch.cat([(bench.codec.decode(part).float() + 1) / 2 for part in back.split(16)])
        nothing = torch.full_like(drawn.kind, classifier.NO_OBJECT)
        seen = measure.judge(bench.judge, below, nothing, torch.full_like(drawn.colour, -100), drawn.place)
        found[name] = {
            "foreground": _recognised(bench, colour, alpha, drawn),
            "background": seen.place,
            "empty": seen.kind,
            "light": _light.agreement(colour, alpha, drawn),
        }
        pictures += [below[:8], over(colour[:8], alpha[:8], below[:8])[0]]
    if sheet is not None:
        report.save_picture(report.sheet(torch.cat(pictures), min(8, bench.count)), sheet)
    return {
        "joint_foreground_accuracy": found["shared"]["foreground"],
        "joint_background_accuracy": found["shared"]["background"],
        "joint_background_empty": found["shared"]["empty"],
        "light_agreement_shared": found["shared"]["light"],
        "light_agreement_unshared": found["unshared"]["light"],
        "light_agreement_real": _light.agreement(drawn.lit_foreground[:, :3], drawn.lit_foreground[:, 3:], drawn),
        "joint_table": found,
    }


@torch.no_grad()
def joint_cost(bench: Bench, loras: Sequence[LowRankDeltas], rounds: int, steps: int = 4) -> dict[str, float]:
    """Seconds of two layers drawn together over those of two runs of their own, by turns."""
    apart = [bench.model.with_lora(lora) for lora in loras]
    timesteps = ddim_timesteps(len(bench.model.schedule), steps)
    noise = measure.numbered_noise((2, bench.model.latent_channels, 16, 16), 0)
    prompts = [captions.foreground_caption(0, 0), captions.background_caption(1, 0)]
    alone, both = [bench.text.encode([each]) for each in prompts], bench.text.encode(prompts)
    empty = bench.text.encode([""])

    def bare() -> None:
        for model, n, condition in zip(apart, noise.split(1), alone, strict=True):
            ddim_sample(model, n, condition, empty, w=GUIDANCE, timesteps=timesteps)

    def together() -> None:
        nulls = empty.with_embedding(empty.embedding.expand(2, -1, -1))
        with layer_loras(bench.model, loras, [1.0, 1.0]), bench.model.attention(shared_attention(2)):
            ddim_sample(bench.model, noise, both, nulls, w=GUIDANCE, timesteps=timesteps)

    return {"joint_cost_ratio": ratios({"bare": bare, "joint": together}, rounds)["joint"]}
