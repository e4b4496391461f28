"""How smooth the Sprites model is with and without its Smooth-LoRA, and what lambda and rank do (Smooth Diffusion,
Tables 1, 3 and 4)."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ..core import smoothness
from ..core.lora import read_lora
from ..core.protocols import Condition, LatentModel, Progress, no_progress
from ..demo import architecture, distil, measure, recipes, release, smoothing, sprites
from ..demo.half import quick_half
from ..training import report
from ..training.smooth import train
from .lcm import Judge

PROMPTS, IMAGES = 32, 256
TABLE_PROMPTS, TABLE_IMAGES = 8, 96
FRAMES, STEPS, GUIDANCE = 11, 25, smoothing.GUIDANCE
WEIGHTS = (0.1, 1.0, 10.0)
RANKS = ("4", "8", "16", "full")
RECIPE = "smooth_steep"  # what the tables train by
FIRST_NOISE = 5_000_000  # the walks' ends have numbers of their own
SHEET = Path(__file__).parent / "results" / "smooth.jpg"


def run(
    progress: Progress = no_progress,
    *,
    quick: bool = False,
    folder: str | Path = release.MODEL,
    file: str | Path = smoothing.SMOOTH,
    prompts: int | None = None,
    images: int | None = None,
    steps: int = STEPS,
    table_steps: int = 60,
    table_batch: int = 4,
    table_prompts: int | None = None,
    table_images: int | None = None,
    scenes: int = 2048,
    sheet: str | Path | None = SHEET,
) -> dict[str, Any]:
    """The figures of `velatura bench smooth`: ISTD, Frechet distance, accuracy and the share of pictures lit from the
    side that was told, of the base model and of the shipped Smooth-LoRA; and by lambda and by rank, of `table_steps` of
    training each (0 for none).

    Pixels are in 0 .. 1. Pictures are made under bfloat16 autocast where it is quick, the same prompts and noises for
    every model.
    """
    from ..hosts import load

    prompts, images = prompts or (4 if quick else PROMPTS), images or (64 if quick else IMAGES)
    few, fewer = table_prompts or (2 if quick else TABLE_PROMPTS), table_images or (64 if quick else TABLE_IMAGES)
    base, text, codec = load("diffusers").load_folder(folder)
    smooth = base.with_lora(read_lora(load_file(file)))
    judge = Judge(Path(folder), images)
    measured = Measure(text, codec, judge, steps, progress)
    figures: dict[str, Any] = {"prompts": prompts, "images": images, "steps": steps, "guidance": GUIDANCE}
    strips = []
    for name, model in (("base", base), ("smooth", smooth)):
        figures |= {f"{key}_{name}": value for key, value in measured(model, prompts).items()}
        strips += measured.strips
    figures["istd_ratio"] = figures["istd_smooth"] / figures["istd_base"]
    figures["fid_real"] = judge.fid_real
    if sheet is not None:
        report.save_picture(report.sheet(torch.cat(strips), FRAMES), sheet)
    if table_steps:
        measured.judge = Judge(Path(folder), fewer)
        figures |= {"table_steps": table_steps, "table_prompts": few, "table_images": fewer}
        figures["table_base"] = measured(base, few)
        figures |= _tables(base, text, codec, measured, few, table_steps, table_batch, scenes, progress)
    return figures


class Measure:
    """ISTD, Frechet distance and accuracy of a model; `strips` are its first four walks [11, 3, H, W]."""

    def __init__(self, text: Any, codec: Any, judge: Judge, steps: int, progress: Progress) -> None:
        self.text, self.codec, self.judge, self.steps, self.progress = text, codec, judge, steps, progress
        self.strips: list[Tensor] = []

    def __call__(self, model: LatentModel, prompts: int) -> dict[str, float]:
        sample = measure.by_ddim(model, self.steps, GUIDANCE)
        with quick_half(model.device):
            distances = self._distances(sample, model.latent_channels, prompts)
            made = measure.pictures(
                model, self.text, self.codec, self.judge.prompts, sample, seed=0, progress=self.progress
            )
        fid, accuracy = self.judge(made)
        return {
            "istd": float(smoothness.istd(distances).mean()),
            "distance": float(distances.mean()),
            "fid": fid,
            "accuracy": accuracy,
            "side": measure.side_heard(made, self.judge.prompts),
        }

    @torch.no_grad()
    def _distances(self, sample: measure.Sample, channels: int, prompts: int) -> Tensor:
        captions = sprites.draw(measure.HELD_OUT, range(prompts), 8).captions
        null = self.text.encode([""])
        self.strips = []

        def rows(condition: Condition, count: int) -> Condition:
            return condition.with_embedding(condition.embedding.expand(count, -1, -1))

        def render(prompt: int, noises: Tensor) -> Tensor:
            count = len(noises)
            latent = sample(noises, rows(self.text.encode([captions[prompt]]), count), rows(null, count), 0)
            images = (self.codec.decode(latent).float() + 1) / 2
            if prompt < 4:
                self.strips.append(images)
            return images

        def ends(prompt: int) -> tuple[Tensor, Tensor]:
            first = FIRST_NOISE + 2 * prompt
            return measure.numbered_noise((channels, 16, 16), first), measure.numbered_noise(
                (channels, 16, 16), first + 1
            )

        return smoothness.measure(render, prompts, ends, frames=FRAMES, progress=self.progress)


def _tables(
    base: Any,
    text: Any,
    codec: Any,
    measured: Measure,
    prompts: int,
    steps: int,
    batch: int,
    scenes: int,
    progress: Progress,
) -> dict[str, Any]:
    """The same training, from nothing, with another lambda, or another rank: `{"by_weight", "by_rank"}`."""
    steep: Any = recipes.load(recipes.find(RECIPE))
    steep = replace(steep, start_from="", steps=steps, save_every=steps, batch=batch, scenes=scenes)
    wanted: dict[tuple[str, str], dict[str, Any]] = {("weight", f"{w:g}"): {"weight": w} for w in WEIGHTS}
    # Ranks at the lambda that shows most after so few steps. A whole network wants a lower rate than a LoRA.
    wanted |= {
        ("rank", r): {"weight": WEIGHTS[-1]} | ({"trained": "full", "rate": 1e-4} if r == "full" else {"rank": int(r)})
        for r in RANKS
    }
    found: dict[str, dict[str, Any]] = {"by_weight": {}, "by_rank": {}}
    done: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as home:
        for (kind, value), more in wanted.items():
            recipe = replace(steep, **more)
            if repr(recipe) not in done:  # the last lambda and rank 8 are one
                done[repr(recipe)] = _trained(
                    base, text, codec, recipe, Path(home, f"{kind}-{value}"), measured, prompts, progress
                )
            found[f"by_{kind}"][value] = done[repr(recipe)]
    return found


def _trained(
    base: Any,
    text: Any,
    codec: Any,
    recipe: smoothing.SmoothRecipe,
    folder: Path,
    measured: Measure,
    prompts: int,
    progress: Progress,
) -> dict[str, float]:
    student = distil.new_student(base, recipe)
    encoder = text.towers[0].encoder
    examples = distil.scenes(codec, encoder, recipe, folder.parent / "latents", progress)
    null = distil.encoded(encoder, architecture.tokenize([""]))
    best: Any = train(base, student, examples, null, recipe, folder, progress=progress).modules["student"]
    shown: Any = base if best.around is None else best.around(best.network)
    with best.applied(shown.layers(), torch.zeros(1)):
        return measured(shown, prompts)
