"""What the skipping step, the solver and omega do to a latent consistency model (LCM, Figures 3 and 4, on Sprites)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..core.consistency import lcm_timesteps
from ..core.protocols import Progress, no_progress
from ..core.solvers import SOLVERS
from ..demo import distil, measure, release, sprites
from ..training.consistency import train
from . import lcm

SKIPS = (1, 5, 20, 50)
GUIDANCES = (3.0, 4.0, 5.0, 6.5, 8.0)
PLOT = Path(__file__).parent / "results" / "lcm_ablations.png"


def run(
    progress: Progress = no_progress,
    *,
    steps: int = 160,
    batch: int = 8,
    images: int = 96,
    scenes: int = 1024,
    skips: tuple[int, ...] = SKIPS,
    captions: int = 16,
    each: int = 6,
    plot: str | Path | None = PLOT,
) -> dict[str, Any]:
    """`fid_SOLVER_SKIP` and `accuracy_SOLVER_SKIP` of four steps, `fid_1_SOLVER_SKIP` and `accuracy_1_SOLVER_SKIP` of
    one, after equally many steps of training; `accuracy_w` and `diversity_w` of the shipped few-step model by guidance.

    Diversity is the mean distance of the judge's features from their mean, over pictures of one caption.
    """
    from ..hosts import load

    figures: dict[str, Any] = {"steps": steps, "batch": batch, "images": images}
    model, text, codec = load("diffusers").load_folder(release.MODEL)
    judge = lcm.Judge(release.MODEL, images)
    runs = [(solver, skip) for solver in SOLVERS for skip in skips]
    with tempfile.TemporaryDirectory() as home:
        for done, (solver, skip) in enumerate(runs):
            recipe = distil.ConsistencyRecipe(
                steps=steps, batch=batch, solver=solver, skip=skip, rate=1e-3, warmup=5, cooldown=0.3, ema=0.9,
                omega_min=4.0, omega_max=4.0, guidance_embedding=False, precision="bf16", scenes=scenes, scenes_seed=7,
                loss="l2", weighting="snr", mu=0.5,
            )  # fmt: skip

            def shown(step: int, total: int, preview: Any = None, done: int = done) -> None:
                progress(done * steps + step, len(runs) * steps, None)

            with student_of(model, text, codec, recipe, Path(home, f"{solver}-{skip}"), shown):
                for count, name in ((4, f"{solver}_{skip}"), (1, f"1_{solver}_{skip}")):
                    sample = lcm.consistently(model, lcm_timesteps(count, original_steps=1000 // skip))
                    made = measure.pictures(model, text, codec, judge.prompts, sample, seed=0)
                    figures[f"fid_{name}"], figures[f"accuracy_{name}"] = judge(made)
    figures |= guidance(model, text, codec, judge, captions, each)
    if plot is not None:
        draw(figures, skips, plot)
    return figures


@contextmanager
def student_of(
    model: Any, text: Any, codec: Any, recipe: distil.ConsistencyRecipe, folder: Path, progress: Progress
) -> Iterator[None]:
    """While open, the model is what the recipe makes of it. Runs beside one another share their encoded scenes."""
    student = distil.new_student(model, recipe)
    encoder = text.towers[0].encoder
    examples = distil.scenes(codec, encoder, recipe, folder.parent / "latents", no_progress)
    null = distil.encoded(encoder, distil.architecture.tokenize([""]))
    best: Any = train(model, student, examples, null, recipe, folder, progress=progress).modules["student"]
    with best.applied(model.layers(), torch.zeros(1)):
        yield


def guidance(model: Any, text: Any, codec: Any, judge: lcm.Judge, captions: int, each: int) -> dict[str, Any]:
    """Accuracy and diversity of the shipped few-step model for each guidance scale."""
    figures: dict[str, Any] = {"accuracy_w": {}, "diversity_w": {}}
    scenes = sprites.draw(measure.HELD_OUT, range(captions), 8)
    rows = torch.arange(captions).repeat_interleave(each)
    prompts = [scenes.captions[row] for row in rows]
    for w in GUIDANCES:
        sample = lcm.by_lcm(lcm.few_step(model, guidance=w), 4)
        made = measure.pictures(model, text, codec, prompts, sample, seed=0)
        seen = measure.judge(judge.model, made, scenes.kind[rows], scenes.colour[rows], scenes.place[rows])
        features = seen.features.view(captions, each, -1)
        spread = (features - features.mean(1, keepdim=True)).norm(dim=-1).mean()
        figures["accuracy_w"][f"{w:g}"] = (seen.kind + seen.colour + seen.place) / 3
        figures["diversity_w"][f"{w:g}"] = float(spread)
    return figures


def draw(figures: dict[str, Any], skips: tuple[int, ...], path: str | Path) -> None:
    """The experiments side by side, as a PNG."""
    from matplotlib.figure import Figure

    from ..training.checkpoint import whole

    figure = Figure(figsize=(12, 3.4), layout="constrained")
    four, one, right = figure.subplots(1, 3)
    for axes, which, label in ((four, "", "4 steps"), (one, "1_", "1 step")):
        for solver in SOLVERS:
            fids = [figures[f"fid_{which}{solver}_{k}"] for k in skips]
            axes.plot([str(k) for k in skips], fids, marker="o", label=solver)
        axes.set(xlabel="skipping step k", ylabel=f"FID, {label}", title=f"{figures['steps']} steps of distillation")
        axes.legend()
    right.plot(figures["accuracy_w"].keys(), figures["accuracy_w"].values(), marker="o", color="#1f5f8b")
    right.set(xlabel="guidance w = 1 + omega", ylabel="accuracy", title="accuracy (solid), diversity (dashed)")
    other = right.twinx()
    other.plot(figures["diversity_w"].keys(), figures["diversity_w"].values(), "--", marker="s", color="#b0662f")
    other.set_ylabel("diversity")
    with whole(path) as scratch:
        figure.savefig(scratch, dpi=110, format="png")
