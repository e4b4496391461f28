"""The shipped model made smoother: a recipe leaves a LoRA of the promised layout, and the benchmark its figures."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from velatura.benchmarks import smooth
from velatura.core.lora import read_lora
from velatura.demo import recipes, smoothing
from velatura.training import adapters
from velatura.training.checkpoint import CheckpointError

SMALL = {"kind": "smooth", "scenes": 2, "steps": 1, "batch": 1, "warmup": 0, "rate": 0.01}


@pytest.fixture
def run(tmp_path, random_folder, monkeypatch):
    """`run(name, fields)` runs a small recipe on the random model."""
    monkeypatch.setattr(smoothing, "MODEL", random_folder)
    sheet = smoothing.walk_sheet
    monkeypatch.setattr(smoothing, "walk_sheet", lambda *args: sheet(*args, prompts=1, frames=3))

    def go(name: str, **fields):
        path = tmp_path / f"{name}.toml"
        lines = [f"{key} = {json.dumps(value)}" for key, value in (SMALL | fields).items()]
        path.write_text("\n".join(lines), encoding="utf-8")
        return recipes.run(path, folder=tmp_path / "runs" / name)

    return go


def test_a_run_leaves_a_lora_of_the_attention_layers(run, tmp_path):
    told = run("smooth", rank=2, steps=2)
    assert told["file"] == str(tmp_path / "runs" / "smooth" / smoothing.RESULT_FILE)
    deltas = read_lora(load_file(told["file"])).of("unet")
    assert deltas and all(low.down.shape[0] == 2 and "_attn" in name for name, low in deltas.items())
    assert any(bool(low.up.abs().sum() > 0) for low in deltas.values())
    assert math.isfinite(told["base"]) and told["norm"] > 0
    assert {"loss.png", "samples.png", "result.safetensors"} <= {
        p.name for p in (tmp_path / "runs" / "smooth").iterdir()
    }


def test_a_run_goes_on_from_another(run):
    first = read_lora(load_file(run("smooth", rank=2, steps=2)["file"])).of("unet")
    second = read_lora(load_file(run("more", rank=2, start_from="smooth")["file"])).of("unet")
    assert 0 < max(float((low.up - second[name].up).abs().max()) for name, low in first.items()) < 0.1
    with pytest.raises(CheckpointError, match="run `velatura train nowhere` first"):
        run("lost", start_from="nowhere")


def test_a_whole_network_may_be_trained(run):
    assert "conv_in.weight" in load_file(run("full", trained="full")["file"])


def test_a_field_out_of_range_is_refused():
    for wrong in ({"rank": 0}, {"trained": "some"}, {"bare": 2.0}, {"weight": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            smoothing.SmoothRecipe(**wrong)


def test_the_benchmark_has_every_figure(tmp_path):
    model = smooth.release.MODEL
    lora = adapters.LowRankLayers(layers_of(model), 2, which="attention")
    file, sheet = tmp_path / "smooth.safetensors", tmp_path / "sheet.jpg"
    adapters.write_weights(file, adapters.lora_tensors(lora.deltas()))
    figures = smooth.run(
        file=file, prompts=1, images=4, steps=2, table_steps=1, table_batch=1, table_prompts=1, scenes=2, sheet=sheet
    )
    # The LoRA is new, so it changes nothing: any difference would be the measure's.
    assert figures["istd_smooth"] == pytest.approx(figures["istd_base"], rel=1e-6)
    assert figures["fid_smooth"] == pytest.approx(figures["fid_base"], rel=1e-6)
    assert set(figures["by_weight"]) == {"0.1", "1", "10"} and set(figures["by_rank"]) == {"4", "8", "16", "full"}
    assert figures["by_weight"]["10"] == figures["by_rank"]["8"]
    assert sheet.stat().st_size > 0


def layers_of(folder) -> dict[str, torch.nn.Module]:
    from velatura.hosts import load

    return load("diffusers").load_folder(folder)[0].layers()
