"""Transparent layers on the Sprites: recipes leave LoRAs of the promised layout, and the benchmark's figures mean what
they say."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from velatura.benchmarks import _decoding, _diffusers, _light, _matting
from velatura.benchmarks import layers as bench
from velatura.core.lora import read_lora
from velatura.core.transparency import Convention
from velatura.core.transparency_decode import decode
from velatura.demo import classifier, layers, measure, recipes, sprites, transparency
from velatura.hosts import load
from velatura.training.checkpoint import CheckpointError
from velatura.training.transparency import write_half

SMALL = {"kind": "layers", "pair": "pair", "scenes": 2, "steps": 1, "batch": 1, "warmup": 0, "rate": 0.01, "rank": 2}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of runs with an untrained pair in it."""
    runs = tmp_path_factory.mktemp("runs")
    for name, network in zip(("encoder", "decoder"), transparency.new_pair(0), strict=True):
        write_half(runs / "pair" / f"{name}.safetensors", network, Convention(10.0, 0.6, True))
    return runs


@pytest.fixture
def run(home, random_folder, monkeypatch, tmp_path):
    """`run(name, fields)` runs a small recipe on the random model."""
    monkeypatch.setattr(layers, "MODEL", random_folder)
    sheet = layers.sample_sheet
    monkeypatch.setattr(layers, "sample_sheet", lambda *args: sheet(*args, count=1, steps=2))

    def go(name, **fields):
        path = tmp_path / f"{name}.toml"
        lines = [f"{key} = {json.dumps(value)}" for key, value in (SMALL | fields).items()]
        path.write_text("\n".join(lines), encoding="utf-8")
        return recipes.run(path, folder=home / name)

    return go


def test_a_recipe_teaches_objects_and_another_goes_on_to_layers(run, home):
    (file,) = run("objects", steps=2)["files"]
    first = read_lora(load_file(file)).of("unet")
    assert first and any(bool(low.up.abs().sum() > 0) for low in first.values())
    front, back = run("both", taught="layers", start_from="objects", conditional=0.5)["files"]
    moved = read_lora(load_file(front)).of("unet")
    assert 0 <= max(float((low.up - moved[name].up).abs().max()) for name, low in first.items()) < 0.1
    assert set(read_lora(load_file(back)).of("unet")) == set(first)
    assert {"loss.png", "samples.png", "result.safetensors"} <= {p.name for p in (home / "both").iterdir()}
    with pytest.raises(CheckpointError, match="run `velatura train nowhere` first"):
        run("lost", taught="layers", start_from="nowhere")
    with pytest.raises(CheckpointError, match="run `velatura train transparency` first"):
        run("alone", pair="nothing")


def test_impossible_recipes_are_refused():
    for wrong in ({"rank": 0}, {"taught": "some"}, {"scenes": 0}, {"conditional": 0.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            layers.LayerRecipe(**wrong)


def test_light_agrees_with_its_own_place_and_not_with_another():
    scenes = sprites.draw(measure.HELD_OUT, range(8), 64, kind=7)
    colour, alpha = scenes.lit_foreground[:, :3], scenes.lit_foreground[:, 3:]
    assert _light.agreement(colour, alpha, scenes) > 0.97
    elsewhere = replace(scenes, place=(scenes.place + 3) % 10, side=1 - scenes.side)
    assert _light.agreement(colour, alpha, elsewhere) < 0.8
    flames = sprites.draw(measure.HELD_OUT, range(2), 64, kind=2)  # they shine themselves: no light to judge
    assert math.isnan(_light.agreement(flames.lit_foreground[:, :3], flames.lit_foreground[:, 3:], flames))


@torch.no_grad()
def test_the_published_decoder_is_ours():
    """The network that is timed against ours computes the same, from the same weights."""
    widths = (8, 8, 16, 16, 24, 24, 32)
    ours, theirs = _decoding._network(widths), _diffusers.PublishedDecoder(widths).eval()
    theirs.load_state_dict(ours.state_dict())
    image, latent = torch.rand(1, 3, 64, 64), torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(theirs(image, latent), ours(image, latent), atol=1e-5, rtol=1e-4)
    found = decode(ours, image, latent)
    median = _decoding.published_decode(ours, image, latent)
    torch.testing.assert_close(torch.cat([found.alpha, found.colour], 1), median)


def test_a_plain_thing_is_cut_out_whole():
    pytest.importorskip("cv2")
    scene = sprites.draw(measure.HELD_OUT, [1], kind=8, colour=0, place=7)
    alpha = scene.lit_foreground[0, 3]
    assert (_matting.grab_cut(scene.blend[0], alpha) - alpha).abs().mean() < 0.02


@pytest.fixture(scope="module")
def measured(home, sprites_folder):
    """The benchmark's models, with an untrained pair: three objects, two steps."""
    model, text, codec = load("diffusers").load_folder(sprites_folder)
    judge = sprites_folder / "classifier.safetensors"
    known = classifier.load(judge) if judge.exists() else classifier.Classifier()
    return bench.Bench(model, text, codec, layers.load_pair("pair", home), known, 3, 2, lambda *_: None, passes=1)


def test_the_round_trip_counts_what_is_wrong(measured):
    """An untrained encoder leaves the latent, an untrained decoder finds nothing of the objects."""
    figures = bench.round_trip(measured)
    assert figures["identity_drop_db"] == pytest.approx(0, abs=0.01)
    assert 0.02 < figures["alpha_mae"] < 1 and 0 < figures["colour_psnr"] < 30
    assert 2 <= figures["decode_auto_passes"] <= 8 and 0 < figures["decode_auto_agreement"] <= 1
    assert bench.formats() == {"encoder_parameters": 1_181_764, "decoder_parameters": 104_104_804}


def test_every_figure_of_the_drawn_layers_is_there(measured, tmp_path):
    recipe = layers.LayerRecipe(taught="layers", rank=1)
    loras = [lora.deltas() for lora in layers.new_loras(measured.model.layers(), recipe, tmp_path).loras]
    alone = bench.transparent(measured, loras[0])
    assert set(alone) == {"transparent_accuracy", "transparent_accuracy_real", "alpha_outside"}
    assert 0 <= alone["alpha_outside"] <= 1
    both = bench.joint(measured, loras, tmp_path / "sheet.jpg")
    assert set(both["joint_table"]["shared"]) == {"foreground", "background", "empty", "light"}
    assert both["light_agreement_real"] > 0.9 and (tmp_path / "sheet.jpg").stat().st_size > 0
    assert bench.joint_cost(measured, loras, 1, steps=1)["joint_cost_ratio"] > 0


@pytest.mark.slow
def test_the_whole_matting_table(measured):
    pytest.importorskip("pymatting")
    figures = bench.matting(measured)
    assert 0 < figures["hard_alpha_mae_matting"] <= min(figures["hard_alpha_mae_by_method"].values())
