"""The training nodes on the embedded runtime: what they leave is a file that other nodes apply, a cancelled run goes
on, and what cannot be trained is refused by the input's name before any work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from velatura.core.lora import read_lora
from velatura.hosts import folders, running
from velatura.hosts import load as load_host
from velatura.nodes import _training
from velatura.nodes.lcm import VelaturaLcmModel, VelaturaLcmSample
from velatura.nodes.train_lcm import VelaturaDistillLcm, VelaturaFinetuneLcm

HOST = load_host("diffusers")
COMMON = {"steps": 3, "batch": 2, "learning_rate": 1e-3, "rank": 2, "skip": 50, "loss": "huber", "seed": 1}
DISTILL = {**COMMON, "solver": "ddim", "omega_min": 4.0, "omega_max": 4.0, "name": "mine"}
FINETUNE = {**COMMON, "name": "mine"}


@pytest.fixture(scope="module")
def graph(random_folder: Path) -> dict[str, Any]:
    """What the wires carry: the model, four latents of 8x8, their prompts, the empty prompt."""
    model, clip, _ = HOST.load_folder(random_folder)
    text = HOST.text(clip)
    prompts = ["a red ball", "a blue feather", "a green star", "a fish"]
    samples = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return {
        "model": model,
        "latents": {"samples": samples},
        "positive": [HOST.conditioning(text.encode([p]))[0] for p in prompts],
        "negative": HOST.conditioning(text.encode([""])),
    }


@pytest.fixture
def places(tmp_path: Path) -> Iterator[folders.Folders]:
    chosen = folders.Folders(output=tmp_path / "output", models=tmp_path / "models")
    with folders.using(chosen):
        yield chosen


def finetune(graph: dict[str, Any], **more: Any) -> Any:
    return VelaturaFinetuneLcm.execute(**{k: v for k, v in graph.items() if k != "negative"}, **FINETUNE | more)


def predicted(model: Any, graph: dict[str, Any]) -> torch.Tensor:
    return model.predict_noise(
        graph["latents"]["samples"], torch.full((4,), 500), HOST.condition(graph["positive"][:1])
    )


def test_distilling_leaves_a_lora_that_the_model_wears(graph, places):
    seen = []
    with running.reporting(lambda total: lambda step, of, preview: seen.append((step, of, preview))):
        model, file, curve = VelaturaDistillLcm.execute(**graph, **DISTILL)[:3]
    assert file == "mine.safetensors" and [step for step, *_ in seen] == [1, 2, 3]
    assert seen[-1][2].shape[0] == 3 and curve.shape[0] == 1 and curve.shape[-1] == 3
    assert 0 <= float(curve.min()) < float(curve.max()) <= 1
    tensors = load_file(places.models / "loras" / file)
    worn, _ = HOST.with_lora(graph["model"], None, read_lora(tensors), 1.0, 0.0)
    assert torch.equal(predicted(worn, graph), predicted(model, graph))
    assert not torch.equal(predicted(model, graph), predicted(graph["model"], graph))


def test_a_range_of_omega_makes_a_guidance_embedding(graph, places):
    model, file, _ = VelaturaDistillLcm.execute(**graph, **DISTILL | {"omega_min": 2.0, "omega_max": 6.0})[:3]
    loaded = VelaturaLcmModel.execute(graph["model"], f"loras/{file}", 1.0, -1.0, "from the file")[0]
    options = {"steps": 1, "denoise": 1.0, "original_steps": 20, "grid": "paper", "method": "lcm", "gamma": 0.0}
    drawn = [
        VelaturaLcmSample.execute(each, graph["positive"][:1], graph["latents"], 1, cfg=1.0, **options)[0]["samples"]
        for each in (model, loaded)
    ]
    assert torch.allclose(*drawn, atol=1e-5)


class Cancelled(Exception):
    pass


def cancel_at(step: int):
    def progress(done: int, total: int, preview: Any = None) -> None:
        if done == step:
            raise Cancelled

    return lambda total: progress


def test_a_cancelled_run_goes_on_to_the_same_file(graph, places):
    finetune(graph, name="whole")
    with pytest.raises(Cancelled), running.reporting(cancel_at(1)):
        finetune(graph, name="broken")
    assert not (places.models / "loras" / "broken.safetensors").exists()
    finetune(graph, name="broken")
    whole, broken = (load_file(places.models / "loras" / f"{name}.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(value, broken[key]) for key, value in whole.items())
    before = (places.models / "loras" / "whole.safetensors").read_bytes()
    finetune(graph, name="whole")  # queued again: nothing to do
    assert (places.models / "loras" / "whole.safetensors").read_bytes() == before


def test_a_name_that_is_taken_is_refused(graph, places):
    path = places.models / "loras" / "mine.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"another")
    with pytest.raises(ValueError, match="name: there is another file"):
        finetune(graph)
    assert path.read_bytes() == b"another"
    finetune(graph, name="run", steps=1)
    with pytest.raises(ValueError, match=r"name: 'run' has a run that cannot go on.*rank 2 then, 3 now"):
        finetune(graph, name="run", steps=1, rank=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../mine"}, "name: expected letters"),
        ({"skip": 30}, "skip: expected a divisor of the schedule's 1000 timesteps, got 30"),
        ({"latents": {"samples": torch.zeros(2, 16, 8, 8)}}, r"latents: expected a batch \[B, 4, h, w\]"),
        (
            {"latents": {"samples": torch.zeros(3, 4, 8, 8)}},
            "positive: expected one prompt, .* each of 3 latents .*, got 4",
        ),
        ({"omega_min": 5.0}, "omega_min, omega_max: expected 0 <= omega_min <= omega_max, got 5.0, 4.0"),
        ({"solver": "euler"}, "solver: expected one of ddim"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(graph, places, change, message):
    with pytest.raises(ValueError, match=message):
        VelaturaDistillLcm.execute(**graph | DISTILL | change)
    assert not places.output.exists() and not places.models.exists()


def test_more_than_one_negative_is_refused(graph, places):
    with pytest.raises(ValueError, match="negative: expected one prompt, got 4"):
        VelaturaDistillLcm.execute(**graph | {"negative": graph["positive"]}, **DISTILL)


def test_prompts_are_for_equal_shares_of_the_latents_in_order(graph):
    rows = _training.conditions(graph["positive"][:2], 4).embedding
    first, second = (HOST.condition([entry]).embedding[0] for entry in graph["positive"][:2])
    assert [torch.equal(row, first) for row in rows] == [True, True, False, False]
    assert torch.equal(rows[3], second)
