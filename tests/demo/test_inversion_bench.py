"""The inversion benchmark: its figures have the promised names, and its published loop is the published one."""

import math

import pytest
import torch

from velatura.benchmarks import inversion as bench
from velatura.core.counting import CountedModel
from velatura.core.protocols import Condition
from velatura.hosts import load

KEYS = {
    "ceiling_psnr", "null_text_psnr", "null_text_psnr_reference", "exact_latent_rmse", "evaluations_ratio",
    "seconds_ratio", "table", "edit_success", "edit_outside_psnr",
}  # fmt: skip


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two methods of all, and three steps: enough to see every figure made."""
    monkeypatch.setattr(bench, "VARIANTS", {name: bench.VARIANTS[name] for name in ("null_text", "exact")})


@pytest.mark.usefixtures("few")
def test_its_figures_are_all_there(sprites_folder) -> None:
    if not (sprites_folder / "classifier.safetensors").exists():
        pytest.skip("the judge of the edits ships with the trained model only")
    figures = bench.run(folder=sprites_folder, images=1, steps=3)
    assert set(figures) >= KEYS
    single = [value for key, value in figures.items() if key.endswith(("psnr", "rmse", "ratio", "reference"))]
    assert all(math.isfinite(each) for each in single if isinstance(each, float))
    assert set(figures["edit_success"]) >= {"base colour", "base kind"}


def test_the_published_loop_costs_what_is_said_of_it(random_folder) -> None:
    """1 + 2 per inner step + 2 evaluations a step, after the inversion's 1: at most 24 for each."""
    model, clip, _ = load("diffusers").load_folder(random_folder)
    counted = CountedModel(model)
    x_0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    conditions: list[Condition] = [clip.encode([text]) for text in ("a red star", "")]
    bench.published_loop(counted, x_0, *conditions, steps=2, w=7.5)  # pyright: ignore[reportArgumentType]
    inner = (counted.evaluations - 2 - 2 * 3) / 2
    assert inner == int(inner) and 2 <= inner <= 20
