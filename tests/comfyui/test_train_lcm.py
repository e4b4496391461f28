"""Training inside a real ComfyUI, which runs graphs in inference mode: what the nodes leave there is applied by its own
LoRA loader, and the shipped training workflow runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from velatura.runtime import workflow

from .conftest import ROOT, Server

SHORT = {"steps": 2, "batch": 2, "learning_rate": 0.02, "rank": 2, "skip": 50, "loss": "huber", "seed": 3}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def start() -> dict[str, Any]:
    return {
        "load": node("VelaturaDemoModel", model="sprites"),
        "one": node("CLIPTextEncode", clip=["load", 1], text="a red star in a cold night"),
        "two": node("CLIPTextEncode", clip=["load", 1], text="a blue fish in a deep sea"),
        "none": node("CLIPTextEncode", clip=["load", 1], text=""),
        "both": node("ConditioningCombine", conditioning_1=["one", 0], conditioning_2=["two", 0]),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=4),
        "drawn": node(
            "KSampler", model=["load", 0], seed=1, steps=3, cfg=4.0, sampler_name="euler", scheduler="normal",
            positive=["one", 0], negative=["none", 0], latent_image=["empty", 0], denoise=1.0,
        ),
    }  # fmt: skip


def distill(**inputs: Any) -> dict[str, Any]:
    wires = {"model": ["load", 0], "latents": ["drawn", 0], "positive": ["both", 0], "negative": ["none", 0]}
    rest = {"solver": "ddim", "omega_min": 4.0, "omega_max": 4.0, "name": "distilled"}
    return node("VelaturaDistillLcm", **wires, **SHORT, **rest | inputs)


def draw(prompt: dict[str, Any], name: str, model: list[Any]) -> None:
    prompt[f"{name}-latent"] = node(
        "VelaturaLcmSample", model=model, positive=["one", 0], latent_image=["empty", 0], seed=5, steps=2, denoise=1.0,
        original_steps=20, grid="paper", method="lcm", gamma=0.0, cfg=1.0,
    )  # fmt: skip
    prompt[f"{name}-image"] = node("VAEDecode", samples=[f"{name}-latent", 0], vae=["load", 2])
    prompt[name] = node("SaveImage", images=[f"{name}-image", 0], filename_prefix=name)


def pixels(paths: list[Any]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path), np.float32) for path in paths])


def test_a_model_distilled_here_is_the_one_its_file_makes(server: Server):
    prompt = start() | {"train": distill()}
    draw(prompt, "before", ["load", 0])
    draw(prompt, "after", ["train", 0])
    prompt["curve"] = node("SaveImage", images=["train", 2], filename_prefix="curve")
    files = server.pictures(prompt)
    before, after = pixels(files[:4]), pixels(files[4:8])
    assert np.abs(before - after).max() > 8
    assert pixels(files[8:]).shape[-1] == 3
    again = start() | {"lora": node("LoraLoaderModelOnly", model=["load", 0], strength_model=1.0,
                                    lora_name="distilled.safetensors")}  # fmt: skip
    draw(again, "loaded", ["lora", 0])
    assert np.abs(pixels(server.pictures(again)) - after).max() <= 1
    assert "lora key not loaded" not in server.log.read_text()


def test_a_range_of_omega_and_a_fine_tuning_on_top(server: Server):
    prompt = start() | {"train": distill(omega_min=2.0, omega_max=6.0, name="guided")}
    wires = {"model": ["train", 0], "latents": ["drawn", 0], "positive": ["one", 0]}
    prompt["more"] = node("VelaturaFinetuneLcm", **wires, **SHORT | {"name": "style"})
    draw(prompt, "styled", ["more", 0])
    assert pixels(server.pictures(prompt)).shape == (4, 64, 64, 3)
    loras = server.base / "models" / "loras"
    assert "time_embedding.cond_proj.weight" in load_file(loras / "guided.safetensors")
    assert "time_embedding.cond_proj.weight" not in load_file(loras / "style.safetensors")


def test_bad_input_names_the_input(server: Server):
    prompt = start() | {"train": distill(name="../x")}
    history = server.run(prompt)
    said = [message for kind, message in history["status"]["messages"] if kind == "execution_error"]
    assert said[0]["exception_message"].startswith("name: expected letters")


@pytest.mark.slow
def test_the_training_workflow_runs(server: Server):
    loaded = workflow.load(ROOT / "example_workflows" / "lcm_distill.json", server.get("object_info"))
    assert loaded.problems == []
    assert len(server.pictures(loaded.prompt)) >= 4


def test_the_training_workflow_is_sound_and_runs_shortened(server: Server):
    loaded = workflow.load(ROOT / "example_workflows" / "lcm_distill.json", server.get("object_info"))
    assert loaded.problems == []
    train = next(each for each in loaded.prompt.values() if each["class_type"] == "VelaturaDistillLcm")
    train["inputs"] |= {"steps": 1, "batch": 1, "name": "shortened"}
    assert len(server.pictures(loaded.prompt)) >= 4
