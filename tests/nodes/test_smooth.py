"""The smoothness nodes on the embedded runtime: what they leave is a file that other nodes apply, what they measure is
the paper's figure, a cancelled run goes on, and what cannot work is refused by the input's name."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from velatura.core import smoothness
from velatura.core.ddim import ddim_sample, ddim_timesteps
from velatura.core.lora import read_lora
from velatura.hosts import folders, running
from velatura.hosts import load as load_host
from velatura.nodes import smooth
from velatura.nodes._plot import curves
from velatura.nodes.smooth import VelaturaSmoothLora, VelaturaSmoothnessMeter
from velatura.nodes.train_smooth import VelaturaTrainSmoothLora

HOST = load_host("diffusers")
TRAIN = {
    "steps": 3, "batch": 2, "learning_rate": 1e-2, "rank": 2, "weight": 1.0, "accumulate": 1, "low_memory": False,
    "seed": 1, "name": "mine",
}  # fmt: skip
METER = {"seed": 4, "steps": 2, "cfg": 3.0, "frames": 4, "pairs": 1, "batch_size": 11}


@pytest.fixture(scope="module")
def graph(random_folder: Path) -> dict[str, Any]:
    """What the wires carry: the model, its VAE, four latents of 8x8, their prompts, the empty prompt."""
    model, clip, vae = HOST.load_folder(random_folder)
    text = HOST.text(clip)
    prompts = ["a red ball", "a blue feather", "a green star", "a fish"]
    samples = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return {
        "model": model,
        "vae": vae,
        "latents": {"samples": samples},
        "positive": [HOST.conditioning(text.encode([p]))[0] for p in prompts],
        "negative": HOST.conditioning(text.encode([""])),
    }


@pytest.fixture
def places(tmp_path: Path) -> Iterator[folders.Folders]:
    chosen = folders.Folders(output=tmp_path / "output", models=tmp_path / "models")
    with folders.using(chosen):
        yield chosen


def train(graph: dict[str, Any], **more: Any) -> Any:
    wires = {name: graph[name] for name in ("model", "latents", "positive", "negative")}
    return VelaturaTrainSmoothLora.execute(**wires | TRAIN | more)


def meter(graph: dict[str, Any], **more: Any) -> Any:
    wires = {name: graph[name] for name in ("model", "vae", "negative")}
    return VelaturaSmoothnessMeter.execute(
        **wires | METER | {"positive": graph["positive"][:2], "latent_image": graph["latents"]} | more
    ).args


def predicted(model: Any, graph: dict[str, Any]) -> Tensor:
    return model.predict_noise(
        graph["latents"]["samples"], torch.full((4,), 500), HOST.condition(graph["positive"][:1])
    )


def lora_file(path: Path, layout: str = "kohya", scale: float = 0.3) -> Path:
    """A LoRA for one attention, in a layout."""
    generator = torch.Generator().manual_seed(4)
    down = torch.randn(4, 160, generator=generator)
    up = scale * torch.randn(160, 4, generator=generator)
    place = "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
    names = {
        "kohya": (f"lora_unet_{place.replace('.', '_')}_to_out_0.lora_down.weight", "lora_down", "lora_up"),
        "processor": (f"{place}.processor.to_out_lora.down.weight", ".down.", ".up."),
        "PEFT": (f"unet.{place}.to_out.0.lora_A.weight", "lora_A", "lora_B"),
    }
    name, one, other = names[layout]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: down, name.replace(one, other): up}, path)
    return path


def test_every_layout_is_the_same_lora_at_every_strength(graph, places):
    loras, plain = places.models / "loras", predicted(graph["model"], graph)
    for layout in ("kohya", "processor", "PEFT"):
        lora_file(loras / f"{layout}.safetensors", layout)

    def change(layout: str, strength: float) -> Tensor:
        worn = VelaturaSmoothLora.execute(graph["model"], f"{layout}.safetensors", strength).args[0]
        return predicted(worn, graph) - plain

    one = change("processor", 1.0)
    assert float(one.abs().max()) > 1e-4
    for layout in ("kohya", "PEFT"):
        torch.testing.assert_close(change(layout, 1.0), one)
    lora_file(loras / "negated.safetensors", scale=-0.15)
    torch.testing.assert_close(change("kohya", -0.5), change("negated", 1.0))
    assert change("kohya", 0.0).abs().max() == 0
    assert torch.equal(predicted(graph["model"], graph), plain)


def test_files_that_do_not_fit_are_named(graph, places):
    loras = places.models / "loras"
    loras.mkdir(parents=True)
    ones = torch.ones(2, 2)
    for name, key in (("flux", "lora_unet_double_blocks_0_img"), ("text", "lora_te1_text_model_x")):
        save_file(
            {f"{key}.lora_down.weight": ones, f"{key}.lora_up.weight": ones.clone()}, loras / f"{name}.safetensors"
        )
    save_file({"conv_in.weight": ones}, loras / "model.safetensors")
    for name, message in (("flux", "another model family"), ("text", "text encoders only"), ("model", "layout")):
        with pytest.raises(ValueError, match=rf"{name}\.safetensors.*{message}"):
            VelaturaSmoothLora.execute(graph["model"], f"{name}.safetensors", 1.0)
    with pytest.raises(FileNotFoundError, match="none"):
        VelaturaSmoothLora.execute(graph["model"], "none.safetensors", 1.0)


def test_what_ships_is_offered_first(places, monkeypatch, tmp_path):
    lora_file(places.models / "loras" / "own.safetensors")
    options = VelaturaSmoothLora.define_schema().inputs[1].options["options"]
    assert options == [smooth.DEMO, "own.safetensors"]
    monkeypatch.setattr(smooth.load, "DEMO_MODELS", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"file: .*sprites-smooth\.safetensors is not there"):
        VelaturaSmoothLora.execute(None, smooth.DEMO, 1.0)


def test_training_leaves_a_lora_that_the_model_wears(graph, places):
    seen = []
    with running.reporting(lambda total: lambda step, of, preview: seen.append((step, of, preview))):
        model, file, curve = train(graph).args
    assert file == "mine.safetensors" and [step for step, *_ in seen] == [1, 2, 3]
    assert seen[-1][2].shape[0] == 3 and curve.shape[-1] == 3
    assert 0 <= float(curve.min()) < float(curve.max()) <= 1
    tensors = load_file(places.models / "loras" / file)
    layers = {key.partition(".")[0] for key in tensors}
    assert all("_attn1_to_" in name or "_attn2_to_" in name for name in layers)
    assert len(layers) == 8 * 7  # q, k, v and out of both, in each transformer block
    worn, _ = HOST.with_lora(graph["model"], None, read_lora(tensors), 1.0, 0.0)
    assert torch.equal(predicted(worn, graph), predicted(model, graph))
    again = VelaturaSmoothLora.execute(graph["model"], file, 1.0).args[0]
    assert torch.equal(predicted(again, graph), predicted(model, graph))
    assert not torch.equal(predicted(model, graph), predicted(graph["model"], graph))


class Cancelled(Exception):
    pass


def cancel_at(step: int):
    def progress(done: int, total: int, preview: Any = None) -> None:
        if done == step:
            raise Cancelled

    return lambda total: progress


def test_a_cancelled_run_goes_on_to_the_same_file(graph, places):
    train(graph, name="whole")
    with pytest.raises(Cancelled), running.reporting(cancel_at(1)):
        train(graph, name="broken")
    assert not (places.models / "loras" / "broken.safetensors").exists()
    train(graph, name="broken")
    whole, broken = (load_file(places.models / "loras" / f"{name}.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(value, broken[key]) for key, value in whole.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../mine"}, "name: expected letters"),
        ({"latents": {"samples": torch.zeros(2, 16, 8, 8)}}, r"latents: expected a batch \[B, 4, h, w\]"),
        ({"latents": {"samples": torch.full((4, 4, 8, 8), float("nan"))}}, "latents: there are NaN"),
        ({"latents": {"samples": torch.zeros(3, 4, 8, 8)}}, "positive: expected one prompt, .* got 4"),
        ({"weight": -1.0}, "weight: expected 0 or more"),
        ({"rank": 0}, "rank: expected at least 1"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(graph, places, change, message):
    with pytest.raises(ValueError, match=message):
        train(graph, **change)
    assert not places.models.exists()


def test_the_meter_gives_the_papers_figure_for_both_models(graph, places):
    lora_file(places.models / "loras" / "some.safetensors", scale=2.0)
    other = VelaturaSmoothLora.execute(graph["model"], "some.safetensors", 1.0).args[0]
    istd, istd_b, plot, frames = meter(graph, model_b=other, pairs=2)
    assert plot.shape == (1, 360, 640, 3)
    assert frames.shape == (4, 2 * 64, 4 * 64, 3)  # two walks in each of two prompts; a row for each model
    for figure, model, row in ((istd, graph["model"], 0), (istd_b, other, 1)):
        expected = []
        for walk, entry in enumerate(graph["positive"][k // 2] for k in range(4)):
            generator = torch.Generator().manual_seed(4 + walk)
            ends = torch.randn(2, 4, 8, 8, generator=generator)
            with torch.no_grad():
                latents = ddim_sample(
                    model, smoothness.walk(*ends, 4), HOST.condition([entry]), HOST.condition(graph["negative"]), w=3.0,
                    timesteps=ddim_timesteps(1000, 2),
                )  # fmt: skip
                images = ((graph["vae"].decode(latents) + 1) / 2).movedim(1, -1)
            shown = torch.cat(list(images), 1)
            torch.testing.assert_close(frames[walk, 64 * row : 64 * (row + 1)], shown, rtol=0, atol=1e-4)
            steps = [float((b - a).norm()) for a, b in pairwise(images)]
            expected.append(float(torch.tensor(steps).std(correction=0)))
        assert figure == pytest.approx(sum(expected) / 4, rel=1e-3)
    assert istd != istd_b


def test_the_batch_size_changes_nothing_and_one_model_is_enough(graph):
    whole, parts = meter(graph), meter(graph, batch_size=3)
    assert parts[0] == pytest.approx(whole[0], rel=1e-3)
    assert whole[1] == -1.0
    torch.testing.assert_close(whole[3], parts[3], rtol=0, atol=1e-3)


def test_the_meter_shows_its_walks_and_may_be_cancelled(graph):
    seen: list[tuple[int, int, Any]] = []

    def sink(total: int) -> Any:
        def report(step: int, of: int, preview: Any = None) -> None:
            seen.append((step, of, preview))
            if step == 3:
                raise Cancelled

        return report

    with running.reporting(sink), pytest.raises(Cancelled):
        meter(graph, batch_size=2)
    assert [step for step, *_ in seen] == [1, 2, 2, 3]
    assert {total for _, total, _ in seen} == {8}  # two walks, each in two parts of two steps
    (shown,) = [preview for *_, preview in seen if preview is not None]
    assert shown.shape == (3, 64, 128)


def test_all_steps_of_both_models_are_counted(graph):
    seen = []
    with running.reporting(lambda total: lambda step, of, preview: seen.append((step, of))):
        meter(graph, model_b=graph["model"])
    assert seen[-1] == (8, 8) and sorted({step for step, _ in seen}) == list(range(1, 9))


def test_what_cannot_be_measured_is_named(graph):
    two = torch.cat([graph["positive"][0][0], graph["positive"][1][0]])
    with pytest.raises(ValueError, match="positive: expected single prompts, got 2"):
        meter(graph, positive=[[two, {}]])
    with pytest.raises(ValueError, match="negative: expected single prompts, got 4"):
        meter(graph, negative=graph["positive"])
    with pytest.raises(ValueError, match="frames: expected at least 3"):
        meter(graph, frames=2)


def test_a_linear_plot_begins_at_zero_and_holds_its_values():
    """A line at the top of the range is drawn inside the frame, one at zero on its lower edge."""
    picture = curves([[5.0] * 4, [0.0] * 4], ["high", ""], "", "", "", linear=True, colours=[0, 1])[0]
    blue = (picture - torch.tensor([0x1F, 0x5F, 0x8B]) / 255).abs().amax(-1) < 0.02
    rust = (picture - torch.tensor([0xC0, 0x56, 0x2F]) / 255).abs().amax(-1) < 0.02
    rows = [each[:, 300].nonzero().flatten().tolist() for each in (blue, rust)]
    assert rows[0] and rows[1] and max(rows[0]) < 60 and min(rows[1]) > 300
