"""The training of layers on the embedded runtime: the files are those that other nodes load, a cancelled run goes on,
and what cannot work is refused by the input's name."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from velatura.core.lora import read_lora
from velatura.hosts import folders, running
from velatura.hosts import load as load_host
from velatura.nodes.train_layers import VelaturaTrainLayerLora
from velatura.nodes.train_transparency import VelaturaTrainTransparency
from velatura.nodes.transparency import (
    VelaturaDecodeTransparent,
    VelaturaEncodeTransparent,
    VelaturaLoadTransparency,
)

HOST = load_host("diffusers")
LORA = {
    "steps": 2, "batch": 2, "learning_rate": 1e-2, "rank": 2, "given": 0.3, "low_memory": False, "seed": 1,
    "name": "mine",
}  # fmt: skip
PAIR = {
    "steps": 2, "batch": 2, "learning_rate": 1e-3, "size": "small", "offset_scale": 10.0, "dropout": 0.3, "seed": 1,
    "name": "pair",
}  # fmt: skip


@pytest.fixture(scope="module")
def graph(random_folder):
    """What the wires carry: the model, its VAE, latents and prompts of two layers, and transparent pictures."""
    model, clip, vae = HOST.load_folder(random_folder)
    text = HOST.text(clip)
    generator = torch.Generator().manual_seed(0)
    front, back = (torch.randn(4, 4, 8, 8, generator=generator) for _ in range(2))
    picture = torch.rand(3, 32, 32, 4, generator=generator)
    return {
        "model": model,
        "vae": vae,
        "latents": {"samples": front},
        "backgrounds": {"samples": back},
        "positive": [HOST.conditioning(text.encode([p]))[0] for p in ("a red star", "a blue star")],
        "background_positive": [HOST.conditioning(text.encode(["nothing in a deep sea"]))[0]],
        "negative": HOST.conditioning(text.encode([""])),
        "image": picture,
    }


@pytest.fixture
def places(tmp_path):
    chosen = folders.Folders(output=tmp_path / "output", models=tmp_path / "models")
    with folders.using(chosen):
        yield chosen


def lora(graph, *more_wires, **more):
    wires = {name: graph[name] for name in ("model", "latents", "positive", "negative", *more_wires)}
    return VelaturaTrainLayerLora.execute(**wires | LORA | more)


def pair(graph, **more):
    return VelaturaTrainTransparency.execute(**{"vae": graph["vae"], "image": graph["image"]} | PAIR | more)


BOTH = ("backgrounds", "background_positive")


def test_one_layer_leaves_one_lora_and_two_leave_two(graph, places):
    file, none, curve = lora(graph).args
    assert (file, none) == ("mine.safetensors", "") and curve.shape[-1] == 3
    front, back, _ = lora(graph, *BOTH, name="two").args
    assert (front, back) == ("two-foreground.safetensors", "two-background.safetensors")
    for name in (file, front, back):
        deltas = read_lora(load_file(places.models / "loras" / name)).of("unet")
        assert any(bool(low.up.abs().sum() > 0) for low in deltas.values())
        assert all(low.down.shape[0] == 2 and "_attn" in layer for layer, low in deltas.items())
    assert not (places.models / "loras" / "two.safetensors").exists()


class Cancelled(Exception):
    pass


def cancel_at(step):
    def progress(done, total, preview=None):
        if done == step:
            raise Cancelled

    return lambda total: progress


@pytest.mark.parametrize("train", [lambda g, name: lora(g, *BOTH, name=name), lambda g, name: pair(g, name=name)])
def test_a_cancelled_run_goes_on_to_the_same_files(graph, places, train):
    whole = train(graph, "whole").args
    with pytest.raises(Cancelled), running.reporting(cancel_at(1)):
        train(graph, "broken")
    assert not list(places.models.rglob("broken*"))
    train(graph, "broken")
    files = [value for value in whole if isinstance(value, str)]
    assert len(files) == 2
    for name in files:
        kind = next(places.models.rglob(name)).parent
        one, other = (load_file(kind / each) for each in (name, name.replace("whole", "broken")))
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_trained_pair_encodes_and_decodes_and_its_files_are_the_same(graph, places):
    transparency, encoder, decoder, curve = pair(graph).args
    assert (encoder, decoder) == ("pair-encoder.safetensors", "pair-decoder.safetensors")
    assert transparency.convention.scale == 10.0 and curve.shape[-1] == 3
    loaded = VelaturaLoadTransparency.execute(f"vae/{encoder}", f"vae/{decoder}", 0.0).args[0]
    assert loaded.convention == transparency.convention
    results = []
    for each in (transparency, loaded):
        latent = VelaturaEncodeTransparent.execute(each, graph["vae"], graph["image"]).args[0]
        results.append(VelaturaDecodeTransparent.execute(each, graph["vae"], latent, "1", "mean", 0, 0).args[2])
    assert results[0].shape == graph["image"].shape
    torch.testing.assert_close(*results, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"background_positive": None}, "background_positive: expected both or neither"),
        ({"backgrounds": {"samples": torch.zeros(2, 4, 8, 8)}}, r"backgrounds: expected \(4, 4, 8, 8\)"),
        ({"backgrounds": {"samples": torch.full((4, 4, 8, 8), float("nan"))}}, "backgrounds: there are NaN"),
        ({"name": "../mine"}, "name: expected letters"),
        ({"given": 2.0}, "conditional: expected 0"),
    ],
)
def test_layers_that_cannot_be_trained_are_refused_by_name(graph, places, change, message):
    with pytest.raises(ValueError, match=message):
        lora(graph, *BOTH, **change)
    assert not places.models.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(2, 32, 32, 3)}, "mask: there is nothing transparent"),
        ({"image": torch.ones(2, 32, 32, 4)}, "mask: there is nothing transparent"),
        ({"image": torch.rand(2, 36, 32, 4)}, "image: expected sides in multiples of 8"),
        ({"size": "released"}, "image: expected sides in multiples of 64"),
    ],
)
def test_pictures_that_teach_nothing_are_refused_by_name(graph, places, change, message):
    with pytest.raises(ValueError, match=message):
        pair(graph, **change)
    assert not places.models.exists()
