"""A spatial condition taught inside a real ComfyUI, which runs graphs in inference mode: its file is loaded by our
nodes there, and the stock sampler draws by it."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from .conftest import Server, wait_for
from .test_train_lcm import node, pixels, start

CLASSES = "sky=66bbff\nground=55aa33"
TAUGHT = {
    "steps": 3, "batch": 2, "learning_rate": 0.05, "rank": 2, "prompt_dropout": 0.3, "low_memory": False, "seed": 1,
    "classes": CLASSES,
}  # fmt: skip


def wired(**inputs: Any) -> dict[str, Any]:
    """The start, four pictures with a map that all have, and the node."""
    wires = {"model": ["load", 0], "vae": ["load", 2], "positive": ["both", 0], "negative": ["none", 0]}
    return start() | {
        "pictures": node("VAEDecode", samples=["drawn", 0], vae=["load", 2]),
        "sky": node("EmptyImage", width=64, height=64, batch_size=4, color=0x66BBFF),
        "train": node("VelaturaTrainSpatial", **wires, images=["pictures", 0], **TAUGHT, **inputs),
        "given": node("SaveImage", images=["train", 1], filename_prefix="spatial/given"),
        "curve": node("SaveImage", images=["train", 2], filename_prefix="spatial/curve"),
    }


def learned(server: Server, name: str) -> bool:
    tensors = load_file(server.base / "models" / "loras" / f"{name}.safetensors")
    columns = tensors.pop("lora_unet_conv_in.diff")
    return bool(columns[:, 4:].any()) and any(bool(t.any()) for key, t in tensors.items() if "lora_up" in key)


def drawn(server: Server, prompt: dict[str, Any], model: list[Any], latent: list[Any]) -> np.ndarray:
    prompt["drawn"]["inputs"] |= {"model": model, "latent_image": latent}
    prompt["image"] = node("VAEDecode", samples=["drawn", 0], vae=["load", 2])
    prompt["save"] = node("SaveImage", images=["image", 0], filename_prefix="spatial/drawn")
    return pixels(server.pictures(prompt))


def test_maps_are_taught_here_and_drawn_by(server: Server) -> None:
    files = server.pictures(wired(told="classes", given=["sky", 0], name="places"))
    assert [Image.open(each).getpixel((5, 5)) for each in files[:4]] == [(0x66, 0xBB, 0xFF)] * 4
    assert pixels(files[4:]).shape[-1] == 3 and learned(server, "places")
    found = []
    for code in (0x66BBFF, 0x55AA33):
        prompt = start() | {
            "map": node("EmptyImage", width=64, height=64, batch_size=1, color=code),
            "told": node("VelaturaSemanticMap", model=["load", 0], map=["map", 0], file="loras/places.safetensors",
                         strength=1.0, tile=0, overlap=0, batch_size=2),
        }  # fmt: skip
        found.append(drawn(server, prompt, ["told", 0], ["told", 1]))
    assert found[0].shape == (2, 64, 64, 3) and np.abs(found[0] - found[1]).max() > 2


def test_enlarging_is_taught_here_and_used(server: Server) -> None:
    files = server.pictures(wired(told="small picture", name="larger"))
    assert [Image.open(each).size for each in files[:4]] == [(16, 16)] * 4
    assert learned(server, "larger")
    prompt = start() | {
        "small": node("EmptyImage", width=18, height=16, batch_size=1, color=0x66BBFF),
        "told": node("VelaturaSuperResolutionModel", model=["load", 0], vae=["load", 2], image=["small", 0],
                     file="loras/larger.safetensors", strength=1.0, tile=0, overlap=0),
    }  # fmt: skip
    assert drawn(server, prompt, ["told", 0], ["told", 1]).shape == (1, 64, 72, 3)


def test_bad_input_names_the_input_and_leaves_nothing(server: Server) -> None:
    for inputs, said in (({"given": ["pictures", 0]}, "given: picture 1: "), ({}, "given: expected the painted maps")):
        history = server.run(wired(told="classes", name="nothing", **inputs))
        errors = [message for kind, message in history["status"]["messages"] if kind == "execution_error"]
        assert errors[0]["exception_message"].startswith(said)
    assert not list(server.base.rglob("*nothing*"))


def test_cancel_is_heard_and_the_run_kept(server: Server) -> None:
    prompt = wired(told="small picture", name="never")
    prompt["train"]["inputs"]["steps"] = 2000
    body = json.dumps({"prompt": prompt}).encode()
    request = urllib.request.Request(f"{server.url}/prompt", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        id_ = json.load(reply)["prompt_id"]
    # Once there is a checkpoint it is in the middle of its steps.
    kept = server.base / "output" / "velatura" / "never" / "checkpoint.safetensors"
    interrupt = urllib.request.Request(f"{server.url}/interrupt", b"", method="POST")
    wait_for(kept.exists, server.log, "no step was taken")
    urllib.request.urlopen(interrupt, timeout=60).close()
    history = wait_for(lambda: server.get(f"history/{id_}").get(id_), server.log, "the cancel was not heard")
    assert any(kind == "execution_interrupted" for kind, _ in history["status"]["messages"])
    assert kept.exists() and not list((server.base / "models").rglob("*never*"))
