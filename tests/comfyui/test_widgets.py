"""What the widgets in web/ are given by a real ComfyUI: files it serves, and messages on its websocket."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from typing import Any

from .conftest import NAME, Server

GRAPH = {
    "1": {"class_type": "VelaturaDemoModel", "inputs": {"model": "sprites"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a red ball"}},
    "3": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0x3060C0}},
    "4": {
        "class_type": "VelaturaInvert",
        "inputs": {
            "model": ["1", 0], "positive": ["2", 0], "image": ["3", 0], "vae": ["1", 2], "method": "negative prompt",
            "steps": 4, "guidance": 2.0, "seed": 0, "noised_steps": 0, "tolerance": 0.005, "iterations": 1,
            "corrected": True,
        },
    },
    "5": {"class_type": "VelaturaReconstruct", "inputs": {"model": ["1", 0], "inversion": ["4", 0], "vae": ["1", 2]}},
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {"class_type": "VelaturaCompareImages", "inputs": {"image_a": ["3", 0], "image_b": ["6", 0], "gain": 4.0}},
}  # fmt: skip


def get(server: Server, path: str) -> bytes:
    with urllib.request.urlopen(f"{server.url}/{path}", timeout=60) as reply:
        return reply.read()


async def heard(server: Server, asked: str, listening: str) -> list[dict[str, Any]]:
    """What the client `listening` is told while a graph runs that `asked` has queued."""
    from aiohttp import ClientSession

    told: list[dict[str, Any]] = []
    async with ClientSession(server.url) as client, client.ws_connect(f"/ws?clientId={listening}") as socket:
        async with client.post("/prompt", json={"prompt": GRAPH, "client_id": asked}) as answer:
            id_ = (await answer.json())["prompt_id"]
        while True:
            try:
                message = await socket.receive(timeout=1)
                if isinstance(message.data, str):
                    told.append(json.loads(message.data))
            except asyncio.TimeoutError:
                async with client.get(f"/history/{id_}") as answer:
                    if await answer.json():
                        return told


def test_the_widgets_and_their_style_are_served(server: Server) -> None:
    served = json.loads(get(server, "extensions"))
    assert f"/extensions/{NAME}/velatura.js" in served
    for path in ("velatura.js", "widgets/compare.js", "velatura.css"):
        assert get(server, f"extensions/{NAME}/{path}")


def test_curves_reach_whoever_queued_and_pictures_can_be_had(server: Server) -> None:
    told = asyncio.run(heard(server, "painter", "painter"))
    curves = [each["data"] for each in told if each["type"] == "velatura.curves"]
    assert curves and {each["node"] for each in curves} == {"4"}
    outputs = {each["data"]["node"]: each["data"]["output"] for each in told if each["type"] == "executed"}
    (kept,) = outputs["4"]["velatura_curves"]
    assert [x for x, _ in kept["lines"][0]["points"]] == [1, 2, 3, 4]
    for node, names in (("5", ["before", "after"]), ("7", ["A", "B"])):
        (shown,) = outputs[node]["velatura_compare"]
        assert shown["names"] == names
        for file in shown["a"] + shown["b"]:
            query = f"view?filename={file['filename']}&subfolder={file['subfolder']}&type={file['type']}"
            assert get(server, query).startswith(b"\x89PNG")


def test_nobody_else_is_told(server: Server) -> None:
    GRAPH["4"]["inputs"]["seed"] = 1
    told = asyncio.run(heard(server, "painter", "passer-by"))
    assert not [each for each in told if each["type"].startswith("velatura.")]
