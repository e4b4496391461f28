"""Smoothness inside a real ComfyUI, which runs graphs in inference mode: gradients of gradients are taken there, what
is trained is what every loader reads, the meter agrees with the embedded host, cancel is heard, memory is given back.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import gc
import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from velatura import hosts
from velatura.core.protocols import Condition
from velatura.runtime import workflow
from velatura.training import adapters, smooth, students

from .conftest import ROOT, Server, velatura, wait_for
from .test_native import CONDITION, seeded, tiny
from .test_train_lcm import node, start

SHORT = {
    "steps": 4, "batch": 2, "learning_rate": 0.1, "rank": 8, "weight": 1.0, "accumulate": 1, "low_memory": False,
    "seed": 3, "name": "smooth",
}  # fmt: skip


def train(**given: Any) -> dict[str, Any]:
    wires = {"model": ["load", 0], "latents": ["drawn", 0], "positive": ["both", 0], "negative": ["none", 0]}
    return node("VelaturaTrainSmoothLora", **wires, **SHORT | given)


def meter(**given: Any) -> dict[str, Any]:
    inputs = {"model": ["load", 0], "positive": ["both", 0], "negative": ["none", 0], "vae": ["load", 2]}
    inputs |= {"latent_image": ["empty", 0], "seed": 1, "steps": 2, "cfg": 4.0, "frames": 3, "pairs": 1}
    return node("VelaturaSmoothnessMeter", **inputs | {"batch_size": 2} | given)


def pixels(path: Any) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), np.float64)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.square(a - b).mean(), 1e-6)))


def test_what_is_trained_is_what_every_loader_puts_on(server: Server) -> None:
    prompt = start() | {"train": train(), "saving": train(low_memory=True, name="saving")}
    prompt["measured"] = meter(model_b=["train", 0])
    prompt["again"] = meter(model_b=["saving", 0])
    for name in ("measured", "again"):
        prompt[f"{name}-save"] = node("SaveImage", images=[name, 3], filename_prefix=f"smooth/{name}")
    prompt["curve"] = node("SaveImage", images=["train", 2], filename_prefix="smooth/curve")
    first, second, third, fourth, curve = (pixels(each) for each in server.pictures(prompt))
    assert first.shape == (2 * 64, 3 * 64, 3) and curve.shape[-1] == 3
    assert np.abs(first[:64] - first[64:]).max() > 4  # the LoRA shows
    assert psnr(first, third) > 40 and psnr(second, fourth) > 40  # and is the same with less memory
    loaders = start() | {
        "ours": node("VelaturaSmoothLora", model=["load", 0], file="smooth.safetensors", strength=1.0),
        "stock": node("LoraLoaderModelOnly", model=["load", 0], strength_model=1.0, lora_name="smooth.safetensors"),
    }
    for name in ("ours", "stock"):
        loaders[f"{name}-measured"] = meter(model_b=[name, 0])
        loaders[f"{name}-save"] = node("SaveImage", images=[f"{name}-measured", 3], filename_prefix=f"smooth/{name}")
    ours, _, stock, _ = (pixels(each) for each in server.pictures(loaders))
    assert np.abs(ours - first).max() <= 2 and np.abs(stock - first).max() <= 2
    assert "lora key not loaded" not in server.log.read_text()
    tensors = load_file(server.base / "models" / "loras" / "smooth.safetensors")
    assert all("_attn1_" in key or "_attn2_" in key for key in tensors)


def test_both_hosts_walk_the_same_walk(server: Server, pack: Any) -> None:
    prompt = start()
    del prompt["drawn"], prompt["both"]
    prompt["measured"] = meter(positive=["one", 0])
    prompt["save"] = node("SaveImage", images=["measured", 3], filename_prefix="smooth/walk")
    theirs = [pixels(each) for each in server.pictures(prompt)]
    file = server.base / "walk.json"
    file.write_text(json.dumps(prompt))
    files = velatura(pack, "run", str(file), "--out", str(server.base / "runtime"))["files"]
    assert all(psnr(pixels(a), b) > 40 for a, b in zip(files, theirs, strict=True))


@pytest.mark.parametrize("name", ["train_smooth_lora", "smooth_or_not"])
def test_the_workflows_are_sound_and_run_shortened(server: Server, name: str) -> None:
    loaded = workflow.load(ROOT / "example_workflows" / f"{name}.json", server.get("object_info"))
    assert loaded.problems == []
    for each in loaded.prompt.values():
        if each["class_type"] == "VelaturaTrainSmoothLora":
            each["inputs"] |= {"steps": 1, "batch": 1, "name": "shortened-smooth"}
        if each["class_type"] == "VelaturaSmoothnessMeter":
            each["inputs"] |= {"steps": 2, "frames": 3}
    assert len(server.pictures(loaded.prompt)) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_smooth_lora", "smooth_or_not"])
def test_the_workflows_run(server: Server, name: str) -> None:
    loaded = workflow.load(ROOT / "example_workflows" / f"{name}.json", server.get("object_info"))
    assert len(server.pictures(loaded.prompt)) >= 2


@pytest.mark.parametrize("kind", ["VelaturaTrainSmoothLora", "VelaturaSmoothnessMeter"])
def test_cancel_is_heard(server: Server, kind: str) -> None:
    long = train(steps=5000, name="never") if kind == "VelaturaTrainSmoothLora" else meter(steps=1000, frames=101)
    prompt = start() | {"long": long}
    prompt["save"] = node("SaveImage", images=["long", 2], filename_prefix="smooth/never")
    body = json.dumps({"prompt": prompt}).encode()
    request = urllib.request.Request(f"{server.url}/prompt", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        id_ = json.load(reply)["prompt_id"]
    wait_for(lambda: kind in str(server.get("queue")["queue_running"]), server.log, "it did not start")
    time.sleep(2)
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/interrupt", b"", method="POST"), timeout=60).close()
    history = wait_for(lambda: server.get(f"history/{id_}").get(id_), server.log, "the cancel was not heard")
    assert any(kind == "execution_interrupted" for kind, _ in history["status"]["messages"])
    assert not (server.base / "models" / "loras" / "never.safetensors").exists()


# In this process, on native objects.


def data(first: int, count: int) -> tuple[torch.Tensor, Condition]:
    return seeded(count, 4, 8, 8, seed=first), CONDITION


def trained(patcher: Any, folder: Path, **options: Any) -> Any:
    host = hosts.load("comfyui")
    model = host.model(patcher)
    settings = smooth.SmoothSettings(steps=2, batch=2, rate=1e-3, warmup=0, memory=0.1)
    with torch.inference_mode():
        student = students.Student(lora=adapters.LowRankLayers(model.layers(), 2, which="attention"))
        return smooth.train(model, student, data, None, settings, folder, **options)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.usefixtures("comfyui")
def test_it_trains_on_a_native_model_in_inference_mode(prediction: str, tmp_path: Path) -> None:
    patcher = tiny("BaseModel", prediction)
    done = trained(patcher, tmp_path)
    assert float(done.modules["running"].a) > 0
    assert all(bool(up.abs().max() > 0) for up in done.modules["student"].lora.up.values())


@pytest.mark.parametrize("low_memory", [False, True])
@pytest.mark.usefixtures("comfyui")
def test_nothing_of_a_training_stays(low_memory: bool, tmp_path: Path) -> None:
    """No hook, no forward of ours, no gradient, no graph: the host's model is as before and the memory its own."""
    patcher = tiny("BaseModel")
    network = patcher.model.diffusion_model
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        trained(patcher, tmp_path / "cancelled", low_memory=low_memory, progress=cancel)
    gc.collect()
    count = tensors_alive()
    trained(patcher, tmp_path / "again", low_memory=low_memory)
    gc.collect()
    assert tensors_alive() <= count + 5
    for module in network.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in network.parameters())


def cancel(step: int, total: int, preview: Any = None) -> None:
    raise KeyboardInterrupt


def tensors_alive() -> int:
    return sum(isinstance(each, torch.Tensor) for each in gc.get_objects())


@pytest.mark.usefixtures("comfyui")
def test_attention_obeys_the_kernels_that_are_allowed_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU ComfyUI's own call chooses kernels that have no second derivative. Here it would be noticed."""
    import comfy.ops

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("ComfyUI's own choice of kernels")

    monkeypatch.setattr(comfy.ops, "scaled_dot_product_attention", forbidden)
    model = hosts.load("comfyui").model(tiny("BaseModel"))
    with model.differentiable():
        assert model.predict_noise(*data(0, 2)[:1], torch.tensor([5, 900]), CONDITION).isfinite().all()
