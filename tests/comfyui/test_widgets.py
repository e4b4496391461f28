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


async def heard(server: Server, asked: str, listening: str, graph: dict[str, Any] = GRAPH) -> list[dict[str, Any]]:
    """What the client `listening` is told while a graph runs that `asked` has queued."""
    from aiohttp import ClientSession

    told: list[dict[str, Any]] = []
    async with ClientSession(server.url) as client, client.ws_connect(f"/ws?clientId={listening}") as socket:
        async with client.post("/prompt", json={"prompt": graph, "client_id": asked}) as answer:
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


def is_shown(server: Server, file: dict[str, str]) -> bool:
    """Whether a file that a node has told of can be had."""
    query = f"view?filename={file['filename']}&subfolder={file['subfolder']}&type={file['type']}"
    return get(server, query).startswith(b"\x89PNG")


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
            assert is_shown(server, file)


def test_nobody_else_is_told(server: Server) -> None:
    GRAPH["4"]["inputs"]["seed"] = 1
    told = asyncio.run(heard(server, "painter", "passer-by"))
    assert not [each for each in told if each["type"].startswith("velatura.")]


def test_the_drag_editor_gives_its_picture_before_it_asks_for_a_drawing(server: Server) -> None:
    graph = {"3": GRAPH["3"], "8": {"class_type": "VelaturaDragEditor", "inputs": {"image": ["3", 0], "drag": ""}}}
    told = asyncio.run(heard(server, "painter", "painter", graph))
    (asked,) = [each["data"] for each in told if each["type"] == "velatura.editor"]
    assert asked["node"] == "8" and is_shown(server, asked["image"])
    (wrong,) = [each["data"] for each in told if each["type"] == "execution_error"]
    assert wrong["node_id"] == "8" and "nothing is drawn yet" in wrong["exception_message"]
    graph["8"]["inputs"]["drag"] = '{"points": [{"from": [10, 10], "to": [30, 20]}]}'
    told = asyncio.run(heard(server, "painter", "painter", graph))
    (output,) = [each["data"]["output"] for each in told if each["type"] == "executed"]
    assert is_shown(server, output["velatura_editor"][0]["image"])


def test_layers_come_one_by_one(server: Server) -> None:
    graph = {
        "3": GRAPH["3"],
        "4": {"class_type": "VelaturaCompositeLayers", "inputs": {"image": ["3", 0], "name": "ground"}},
        "5": {
            "class_type": "VelaturaCompositeLayers",
            "inputs": {"image": ["3", 0], "layers": ["4", 0], "name": "top", "x": 5, "opacity": 0.5, "blend": "screen"},
        },
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["5", 1]}},
    }
    told = asyncio.run(heard(server, "painter", "painter", graph))
    outputs = {each["data"]["node"]: each["data"]["output"] for each in told if each["type"] == "executed"}
    (stack,) = outputs["5"]["velatura_layers"]
    assert [(each["name"], each["x"], each["opacity"], each["blend"]) for each in stack["layers"]] == [
        ("ground", 0, 1.0, "normal"), ("top", 5, 0.5, "screen"),
    ]  # fmt: skip
    assert all(is_shown(server, each["image"]) for each in stack["layers"])
