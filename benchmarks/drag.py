"""Drags of Sprites pictures whose key points are known: how near handles come, what is kept, and what it costs beside
the published procedure."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ..core import drag as engine
from ..core import metrics
from ..core.dragging import Edited, Task, careful, quick
from ..core.lora import read_lora
from ..core.protocols import Condition, Progress, no_progress
from ..demo import classifier, drag, release
from ..training.identity import IdentitySettings, learn_identity
from .dragbench import run as photographs
from .lcm import few_step

CASES, REFERENCE_CASES, QUICK_CASES = 100, 6, 3
SMOOTH = release.MODEL.parent / "sprites-smooth.safetensors"
STEPS, STRENGTH = 20, 0.7
OPTIMISE = engine.Settings(steps=10, rate=0.02)
FAST_GRID = (459, 219)
NEAR = 3.0  # pixels

Edit = Callable[[drag.Case, Task, Condition], Edited]


def run(
    progress: Progress = no_progress,
    *,
    quick: bool = False,
    folder: str | Path = release.MODEL,
    cases: int | None = None,
    reference_cases: int | None = None,
    dragbench: str | Path | None = None,
    model: str | Path | None = None,
) -> dict[str, Any]:
    """The figures of `velatura bench drag`. `quick` takes a few cases; the published procedure, which takes half a
    minute for each, always takes the first few only, and its ratios are to ours on the same ones. With `dragbench`,
    that dataset's folder, it is run instead, with the checkpoint `model`."""
    from ..hosts import load

    if dragbench is not None:
        return photographs(dragbench, model or folder, progress)
    count = cases or (QUICK_CASES if quick else CASES)
    few = min(count, reference_cases or (1 if quick else REFERENCE_CASES))
    third = max(few, count // 3)
    host = load("diffusers")
    base, text, codec = host.load_folder(folder)
    smooth = base.with_lora(read_lora(load_file(SMOOTH))) if SMOOTH.is_file() else None
    judge = classifier.load(Path(folder) / "classifier.safetensors")
    all_cases = drag.cases(count)
    edits: dict[str, tuple[Edit, int]] = {
        "quality": (by_optimising(base, codec), count),
        "fast": (by_warping(few_step(base, guidance=1.0), text, codec), count),
        "published": (as_published(base, codec), few),
        "still": (by_optimising(base, codec, moved_start=False), few),
    }
    if smooth is not None:
        edits |= {
            "quality smooth": (by_optimising(smooth, codec), third),
            "still smooth": (by_optimising(smooth, codec, moved_start=False), few),
        }
    total, done, table = sum(number for _, number in edits.values()), 0, dict[str, dict[str, float]]()
    for name, (edit, number) in edits.items():
        rows = []
        for case in all_cases[:number]:
            rows.append(_one(case, edit, text, codec, judge))
            done += 1
            progress(done, total, None)
        table[name] = _summary(rows)
        for part in {few, third} if number > few else ():
            if part < number:
                table[f"{name}, first {part}"] = _summary(rows[:part])
    ours, theirs = table.get(f"quality, first {few}", table["quality"]), table["published"]
    fast = table.get(f"fast, first {few}", table["fast"])
    return {
        "cases": count,
        "reference_cases": few,
        "distance_ratio": table["quality"]["distance_ratio"],
        "handles_within_3px": table["quality"]["within"],
        # Of the decoded latent: in the image itself the original's pixels are put back.
        "outside_psnr_drop_db": table["quality"]["outside_drop_decoded"],
        "kept_accuracy": table["quality"]["kept"],
        "kept_possible": table["quality"]["kept_possible"],
        "distance_ratio_smooth": table["quality smooth"]["distance_ratio"] if smooth is not None else None,
        "quality_time_ratio": ours["seconds"] / theirs["seconds"],
        "fast_time_ratio": fast["seconds"] / theirs["seconds"],
        "fast_distance_ratio": table["fast"]["distance_ratio"],
        "reference_distance_ratio": theirs["distance_ratio"],
        "seconds_quality": table["quality"]["seconds"],
        "seconds_fast": table["fast"]["seconds"],
        "table": table,
        "memory": _memory(base, codec, text, all_cases[0]),
    }


def by_optimising(model: Any, codec: Any, moved_start: bool = True) -> Edit:
    """The careful edit."""

    def edit(case: drag.Case, task: Task, condition: Condition) -> Edited:
        return careful(model, codec, task, condition, OPTIMISE, steps=STEPS, strength=STRENGTH, moved_start=moved_start)

    return edit


def by_warping(model: Any, text: Any, codec: Any) -> Edit:
    """The quick edit."""

    def edit(case: drag.Case, task: Task, condition: Condition) -> Edited:
        condition = text.encode([case.behind])  # what the fill shows
        return quick(model, codec, task, condition, _noise(case.index), timesteps=torch.tensor(FAST_GRID))

    return edit


def as_published(model: Any, codec: Any) -> Edit:
    """DragDiffusion's: an identity LoRA of 80 steps of 4, 50 DDIM steps of which 0.7, 80 steps of optimisation."""

    def edit(case: drag.Case, task: Task, condition: Condition) -> Edited:
        with torch.no_grad():
            latent = codec.encode(task.image * 2 - 1)
        deltas = learn_identity(model, latent, condition, IdentitySettings())
        return careful(
            model.with_lora(deltas), codec, task, condition, engine.Settings(), steps=50, strength=0.7,
            moved_start=False, snap=False,
        )  # fmt: skip

    return edit


def _noise(seed: int) -> Callable[[Tensor], Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return lambda like: lambda: torch.randn(like.shape, generator=generator).to(like)


def _one(case: drag.Case, edit: Edit, text: Any, codec: Any, judge: Any) -> dict[str, Any]:
    task = Task(case.picture, case.mask, case.handles, case.targets)
    condition = text.encode([case.caption])
    start = time.perf_counter()
    made = edit(case, task, condition)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        ceiling = ((codec.decode(codec.encode(case.picture * 2 - 1)) + 1) / 2).clamp(0, 1)
        decoded = ((codec.decode(made.latent) + 1) / 2).clamp(0, 1)
        verdict, ideal = judge(made.image), judge(drag.wanted_picture(case))
    known = bool(ideal.kind.argmax(1) == case.kind and ideal.colour.argmax(1) == case.colour)
    found = drag.find_handles(case, made.image)
    outside = _outside(case)
    return {
        "before": drag.distance(case.handles, case.targets),
        "after": drag.distance(found.handles, case.targets),
        "outside": _psnr(made.image, case.picture, outside),
        "outside_decoded": _psnr(decoded, case.picture, outside),
        "ceiling": _psnr(ceiling, case.picture, outside),
        "kept": float(verdict.kind.argmax(1) == case.kind and verdict.colour.argmax(1) == case.colour),
        "known": float(known),
        "likeness": float(metrics.ssim(made.image, case.picture).mean()),
        "seconds": seconds,
        "change": case.change,
    }


def _outside(case: drag.Case) -> Tensor:
    """What is neither under the mask, before or after, nor near it."""
    reach = 16
    area = torch.maximum(case.mask, _moved_mask(case))
    return 1 - F.max_pool2d(area, 2 * reach + 1, 1, reach)


def _moved_mask(case: drag.Case) -> Tensor:
    from ..core.warp import warp

    return (warp(case.mask, case.mask, case.handles, case.targets)[1] > 0).float()


def _psnr(a: Tensor, b: Tensor, where: Tensor) -> float:
    """Over the pixels of a mask, dB; 100 where they are the same."""
    error = float(((a - b).square() * where).sum() / (3 * where.sum()).clamp(min=1))
    return float(-10 * torch.log10(torch.tensor(max(error, 1e-10))))


def _summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    before, after = (torch.cat([row[name] for row in rows]) for name in ("before", "after"))
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if isinstance(rows[0][name], float)}
    by_change = {
        f"distance_ratio_{change}": float(
            torch.cat([row["after"] for row in rows if row["change"] == change]).mean()
            / torch.cat([row["before"] for row in rows if row["change"] == change]).mean()
        )
        for change in drag.CHANGES
        if any(row["change"] == change for row in rows)
    }
    return {
        "cases": len(rows),
        "distance_before": float(before.mean()),
        "distance_after": float(after.mean()),
        "distance_ratio": float(after.mean() / before.mean()),
        "within": float((after <= NEAR).float().mean()),
        "outside_drop": mean["ceiling"] - mean["outside"],
        "outside_drop_decoded": mean["ceiling"] - mean["outside_decoded"],
        "kept": mean["kept"],
        # Of the pictures as they should be, how many the judge recognises: some poses are none that it has seen.
        "kept_possible": mean["known"],
        "ssim_to_original": mean["likeness"],
        "seconds": mean["seconds"],
        **by_change,
    }


def _memory(model: Any, codec: Any, text: Any, case: drag.Case) -> dict[str, float]:
    """What autograd keeps for one optimisation step, in MB: of everything, and where blocks are computed again. Plain
    sampling keeps nothing."""
    condition, t = text.encode([case.caption]), torch.tensor(651)
    with torch.no_grad():
        x = codec.encode(case.picture * 2 - 1)
    kept = {}
    for name, low in (("all", False), ("recomputed", True)):
        sizes: dict[int, int] = {}

        def pack(value: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        with model.differentiable(low_memory=low), torch.autograd.graph.saved_tensors_hooks(pack, lambda v: v):
            z = x.clone().requires_grad_(True)
            seen, _ = engine.features(model, z, t, condition, engine.feature_place(model))
            seen.sum().backward()
        kept[name] = sum(sizes.values()) / 2**20
    return kept
