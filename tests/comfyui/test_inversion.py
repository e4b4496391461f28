"""Inversion inside a real ComfyUI, which runs graphs in inference mode: null texts are optimised there, the picture
comes back, and the user's cancel is heard."""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Any

import numpy as np
from PIL import Image

from .conftest import Server, velatura, wait_for
from .test_train_lcm import node, start


def inverted(method: str = "null text", **given: Any) -> dict[str, Any]:
    """A picture drawn, inverted from the empty prompt (so that every step is optimised), and edited."""
    settings = {"steps": 6, "guidance": 4.0, "seed": 0, "noised_steps": 0, "tolerance": 0.0, "iterations": 2}
    wires = {"model": ["load", 0], "positive": ["one", 0], "negative": ["none", 0], "vae": ["load", 2]}
    prompt = start()
    prompt["empty"]["inputs"]["batch_size"] = 1
    del prompt["both"]
    return prompt | {
        "image": node("VAEDecode", samples=["drawn", 0], vae=["load", 2]),
        "invert": node(
            "VelaturaInvert", method=method, corrected=True, image=["image", 0], **wires, **settings | given
        ),
        "again": node("VelaturaReconstruct", model=["load", 0], inversion=["invert", 0]),
        "edit": node(
            "VelaturaPromptSwitchEdit", model=["load", 0], inversion=["invert", 0], target=["two", 0], ratio=0.8
        ),
    }


def with_pictures(prompt: dict[str, Any]) -> dict[str, Any]:
    for name, latent in (("said", ["invert", 1]), ("made", ["again", 0]), ("edited", ["edit", 0])):
        prompt[f"{name}-image"] = node("VAEDecode", samples=latent, vae=["load", 2])
        prompt[f"{name}-save"] = node("SaveImage", images=[f"{name}-image", 0], filename_prefix=f"inversion/{name}")
    prompt["first-save"] = node("SaveImage", images=["image", 0], filename_prefix="inversion/first")
    prompt["plot-save"] = node("SaveImage", images=["invert", 2], filename_prefix="inversion/plot")
    return prompt


def pixels(path: Any) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), np.float64)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.square(a - b).mean(), 1e-6)))


def test_a_picture_is_inverted_remade_and_edited(server: Server) -> None:
    said, made, edited, first, plot = (pixels(each) for each in server.pictures(with_pictures(inverted())))
    assert np.abs(said - made).max() <= 1
    assert psnr(made, first) > psnr(edited, first)
    assert plot.shape == (360, 640, 3)


def test_a_direct_inversion_is_the_same_in_both_hosts(server: Server, pack: Any) -> None:
    prompt = with_pictures(inverted("direct"))
    theirs = [pixels(each) for each in server.pictures(prompt)]
    assert np.abs(theirs[0] - theirs[1]).max() <= 1
    file = server.base / "inversion.json"
    file.write_text(json.dumps(prompt))
    ours = velatura(pack, "run", str(file), "--out", str(server.base / "runtime"))["files"]
    for name in ("made", "edited", "first"):
        (mine,) = (pixels(each) for each in ours if f"/{name}_" in each)
        other = theirs[{"made": 1, "edited": 2, "first": 3}[name]]
        assert psnr(mine, other) > 40


def test_cancel_ends_an_inversion(server: Server) -> None:
    prompt = inverted(steps=900, iterations=50)
    prompt["save"] = node("VelaturaSaveInversion", inversion=["invert", 0], name="never")
    body = json.dumps({"prompt": prompt}).encode()
    request = urllib.request.Request(f"{server.url}/prompt", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        id_ = json.load(reply)["prompt_id"]
    wait_for(lambda: "VelaturaInvert" in str(server.get("queue")["queue_running"]), server.log, "it did not start")
    time.sleep(2)
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/interrupt", b"", method="POST"), timeout=60).close()
    history = wait_for(lambda: server.get(f"history/{id_}").get(id_), server.log, "the cancel was not heard")
    assert any(kind == "execution_interrupted" for kind, _ in history["status"]["messages"])
    assert not (server.base / "output" / "inversions" / "never.safetensors").exists()
