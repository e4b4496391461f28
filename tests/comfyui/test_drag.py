"""Drags in a real ComfyUI: gradients in its inference mode, the page told of each step, cancel heard."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from typing import Any

import numpy as np
from PIL import Image

from velatura.runtime import workflow

from .conftest import ROOT, Server, velatura, wait_for
from .test_widgets import heard


def example(server: Server, name: str, **settings: Any) -> dict[str, Any]:
    """A workflow of the pack with other settings of its drag nodes."""
    loaded = workflow.load(ROOT / "example_workflows" / f"{name}.json", server.get("object_info"))
    assert loaded.problems == []
    for node in loaded.prompt.values():
        if node["class_type"] == "VelaturaDrag":
            node["inputs"] |= settings
    return loaded.prompt


def test_the_careful_drag_is_told_step_by_step_and_alike_in_both_hosts(
    server: Server, pack: Any, tmp_path: Any
) -> None:
    prompt = example(server, "drag_object", steps=6, iterations=3)
    told = asyncio.run(heard(server, "painter", "painter", prompt))
    steps = [each["data"] for each in told if each["type"] == "velatura.drag"]
    assert steps and all(each["image"].startswith("data:image/jpeg") and len(each["handles"]) == 1 for each in steps)
    outputs = {each["data"]["node"]: each["data"]["output"] for each in told if each["type"] == "executed"}
    (saved,) = [output["images"][0] for output in outputs.values() if "drag_object" in str(output.get("images"))]
    file = tmp_path / "drag.json"
    file.write_text(json.dumps(prompt))
    (ours,) = velatura(pack, "run", str(file), "--out", str(tmp_path / "out"))["files"][:1]
    theirs = server.base / "output" / saved["subfolder"] / saved["filename"]
    a, b = (np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) for path in (ours, theirs))
    # Adam's first steps are the gradient's signs: rounding may turn the smallest of them.
    error = np.square(a - b).mean()
    assert error == 0 or 10 * np.log10(255**2 / error) >= 30


def test_cancel_ends_a_drag(server: Server) -> None:
    prompt = example(server, "drag_object", steps=8, iterations=1000, cut_out=False, rate=0.0001)
    body = json.dumps({"prompt": prompt}).encode()
    request = urllib.request.Request(f"{server.url}/prompt", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as reply:
        id_ = json.load(reply)["prompt_id"]
    wait_for(lambda: "VelaturaDrag" in str(server.get("queue")["queue_running"]), server.log, "it did not start")
    time.sleep(4)
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/interrupt", b"", method="POST"), timeout=60).close()
    history = wait_for(lambda: server.get(f"history/{id_}").get(id_), server.log, "the cancel was not heard")
    assert any(kind == "execution_interrupted" for kind, _ in history["status"]["messages"])


def test_an_identity_lora_goes_into_the_drag(server: Server) -> None:
    prompt = example(server, "drag_object", steps=4, iterations=1)
    (drag,) = [node for node in prompt.values() if node["class_type"] == "VelaturaDrag"]
    wires = {name: drag["inputs"][name] for name in ("model", "positive", "vae", "image")}
    settings = {"steps": 2, "rank": 4, "rate": 1e-3, "batch_size": 2, "seed": 0, "low_memory": False}
    prompt["known"] = {"class_type": "VelaturaDragIdentity", "inputs": wires | settings}
    drag["inputs"]["model"] = ["known", 0]
    assert server.pictures(prompt)
