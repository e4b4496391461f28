"""Painted maps and larger pictures in a real ComfyUI, with the models that ship: its own sampler draws by the map and
from the small picture, in tiles too, the pictures are those of the embedded host, and wrong input is told on the node.
"""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest

from .conftest import ROOT, SEMANTIC_FILE, SMOOTH_FILE, SUPERRES_FILE, Server
from .test_lcm import by_name, in_both, node, psnr, save, start

GROUND = "sunny meadow far\nsunny meadow ground: hills 0.62 0.02\n"
TEXT = "a red mushroom, sunny meadow from the left"
MAP = {"file": "sprites-semantic (demo)", "strength": 1.0, "tile": 128, "overlap": 64, "batch_size": 1}
LARGE = {"file": "sprites-superres (demo)", "strength": 1.0, "tile": 128, "overlap": 64}


def painted(left: float, side: int = 128) -> dict[str, Any]:
    """A mushroom on a meadow."""
    text = f"{GROUND}mushroom: mushroom {left} 0.55 0.2"
    return node("VelaturaPaintMap", text=text, width=side, height=side, file=MAP["file"])


def mapped(picture: str, **more: Any) -> dict[str, Any]:
    return node("VelaturaSemanticMap", model=["load", 0], map=[picture, 0], **MAP | more)


def sampled(
    model: str, latent: list[Any], sampler: str = "ddim", denoise: float = 1.0, steps: int = 6
) -> dict[str, Any]:
    how = {"seed": 2, "steps": steps, "cfg": 3.0, "sampler_name": sampler, "scheduler": "normal", "denoise": denoise}
    wires = {"positive": ["text", 0], "negative": ["none", 0], "latent_image": latent}
    return node("KSampler", model=[model, 0], **wires, **how)


def drawn(graph: dict[str, Any], name: str, model: str, latent: list[Any] | None = None, **how: Any) -> None:
    graph[name] = sampled(model, latent or [model, 1], **how)
    graph |= save(name, name)


def test_the_stock_sampler_draws_by_the_map_alike_in_both_hosts(server: Server) -> None:
    graph = {**start(TEXT), "left-map": painted(0.28), "right-map": painted(0.72)}
    for side in ("left", "right"):
        graph[side] = mapped(f"{side}-map", batch_size=2)
        drawn(graph, f"{side}-ddim", side)
        drawn(graph, f"{side}-euler", side, sampler="euler")
    # What is drawn for one map, drawn anew from halfway for the other one.
    drawn(graph, "moved", "right", ["left-ddim", 0], denoise=0.7)
    drawn(graph, "moved-euler", "right", ["left-ddim", 0], sampler="euler", denoise=0.7)
    graph["off"] = mapped("left-map", strength=0.0, batch_size=2)
    drawn(graph, "off-ddim", "off")
    drawn(graph, "plain", "load", ["off", 1])
    theirs, ours = in_both(server, graph, "map")
    for name, pictures in theirs.items():
        assert len(pictures) == 2 and pictures.std() > 1
        assert psnr(ours[name], pictures) >= 40, name
    assert psnr(theirs["off-ddim"], theirs["plain"]) > 60
    assert psnr(theirs["left-ddim"][0], theirs["left-ddim"][1]) < 40  # each with its own noise
    for name in ("ddim", "euler"):
        assert redness(theirs[f"left-{name}"], "left") and redness(theirs[f"right-{name}"], "right")
    assert redness(theirs["moved"], "right") and redness(theirs["moved-euler"], "right")


def redness(pictures: np.ndarray, side: str) -> bool:
    """Whether the red mushroom is on that side, in every picture."""
    red = (pictures[..., 0] - pictures[..., 1:3].max(-1)).clip(min=0)
    left, right = red[..., :64].sum((1, 2)), red[..., 64:].sum((1, 2))
    return bool(((left > 2 * right) if side == "left" else (right > 2 * left)).all())


def test_a_map_of_twice_the_size_is_drawn_in_tiles_alike_in_both_hosts(server: Server) -> None:
    graph = {**start(TEXT), "map": painted(0.28, 256), "tiled": mapped("map"), "at-once": mapped("map", tile=0)}
    for model in ("tiled", "at-once"):
        drawn(graph, f"{model}-drawn", model, steps=3)
    graph["overview"] = node("SaveImage", images=["tiled", 2], filename_prefix="overview")
    graph["given"] = node("SaveImage", images=["map", 0], filename_prefix="given")
    theirs, ours = in_both(server, graph, "tiles")
    assert all(pictures.shape == (1, 256, 256, 3) for pictures in theirs.values())
    assert bool((theirs["overview"] == theirs["given"]).all())
    assert psnr(theirs["tiled-drawn"], theirs["at-once-drawn"]) < 35
    for name in theirs:
        assert psnr(ours[name], theirs[name]) >= 40, name


def small(side: int) -> dict[str, Any]:
    """Two pictures drawn, and made so small."""
    graph = {**start(TEXT), "first": sampled("load", ["empty", 0], steps=8), **save("first", "first")}
    scale = {"image": ["first-pixels", 0], "upscale_method": "area", "width": side, "height": side, "crop": "disabled"}
    return graph | {"small": node("ImageScale", **scale)}


def enlarged(image: str = "small", **more: Any) -> dict[str, Any]:
    wires = {"model": ["load", 0], "vae": ["load", 2], "image": [image, 0], "positive": ["text", 0]}
    return node("VelaturaSuperResolution", **wires, **LARGE | {"seed": 1, "steps": 2, "denoise": 0.1} | more)


def test_small_pictures_are_enlarged_alike_in_both_hosts(server: Server) -> None:
    graph = small(32)
    classic = {"upscale_method": "bicubic", "width": 128, "height": 128, "crop": "disabled"}
    graph["classic"] = node("ImageScale", image=["small", 0], **classic)
    wires = {"model": ["load", 0], "vae": ["load", 2], "image": ["small", 0]}
    graph["told"] = node("VelaturaSuperResolutionModel", **wires, **LARGE)
    for name in ("ddim", "euler"):
        drawn(graph, f"{name}-anew", "told", sampler=name)
        drawn(graph, f"{name}-kept", "told", sampler=name, denoise=0.2, steps=2)
    for name, denoise in (("large", 0.1), ("large-anew", 1.0)):
        graph[name] = enlarged(denoise=denoise, steps=2 if denoise < 1 else 6)
    for name in ("classic", "large", "large-anew"):
        graph[f"{name}-save"] = node("SaveImage", images=[name, 0], filename_prefix=name)
    theirs, ours = in_both(server, graph, "enlarged")
    for name, pictures in theirs.items():
        assert pictures.shape == (2, 128, 128, 3)
        assert psnr(ours[name], pictures) >= 40, name
    near = {name: psnr(theirs[name], theirs["first"]) for name in theirs}
    assert near["large"] > near["classic"]
    anew = ("ddim-anew", "euler-anew", "large-anew")
    assert all(near[name] > 15 for name in anew) and psnr(theirs["large"], theirs["large-anew"]) < 40


def test_a_picture_larger_than_a_tile_is_enlarged_alike_in_both_hosts(server: Server) -> None:
    graph = small(64)
    for name, tile in (("tiled", 128), ("at-once", 0)):
        graph[name] = enlarged(tile=tile, denoise=0.3)
        graph[f"{name}-save"] = node("SaveImage", images=[name, 0], filename_prefix=name)
    del graph["first-save"]
    theirs, ours = in_both(server, graph, "enlarged-in-tiles")
    assert all(pictures.shape == (2, 256, 256, 3) for pictures in theirs.values())
    assert 20 < psnr(theirs["tiled"], theirs["at-once"]) < 60
    for name in theirs:
        assert psnr(ours[name], theirs[name]) >= 40, name


def test_nothing_stays_on_the_model_after_maps_and_enlargements(server: Server) -> None:
    def plain() -> np.ndarray:
        graph = start(TEXT)
        drawn(graph, "plain", "load", ["empty", 0])
        graph["plain"]["inputs"]["seed"] = 11
        return by_name(server.pictures(graph))["plain"]

    before = plain()
    graph = {**start(TEXT), "map": painted(0.5), "told": mapped("map")}
    drawn(graph, "between", "told", steps=2)
    server.pictures(graph)  # and the sampler's results of before are forgotten
    assert bool((plain() == before).all())
    assert server.get(f"probe?root={server.pack}")["intruders"] == []


@pytest.fixture(scope="module")
def files(server: Server) -> None:
    """What a user might pick by mistake."""
    folder, models = server.base / "models" / "loras", ROOT / "demo" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in (("enlarges", SUPERRES_FILE), ("follows", SEMANTIC_FILE), ("untold", SMOOTH_FILE)):
        shutil.copy(models / file, folder / f"{name}.safetensors")
    whole = (models / SEMANTIC_FILE).read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"map": 0x102030}, ["map: 1 of its colours is no class's: #102030 (100.0% of it", "hard brush"]),
        ({"map": (100, 128)}, ["map: expected sides that are multiples of 8, got 100x128"]),
        ({"map": (64, 64)}, ["latent: expected 8x8 cells, as the given layer has, got 16x16"]),
        ({"file": "loras/enlarges.safetensors"}, ["told small picture, expected one that is told classes"]),
        ({"file": "loras/untold.safetensors"}, ["untold.safetensors", "velatura_told in its header"]),
        ({"file": "loras/cut.safetensors"}, ["cut.safetensors", "not a whole safetensors file"]),
        ({"overlap": 128}, ["overlap: expected 0 .. 15 cells of a tile of 16, got 16"]),
        ({"tile": 8}, ["tile: expected at least 2 cells"]),
    ],
    ids=["colours", "sides", "latent", "told", "lora", "cut", "overlap", "tile"],
)
def test_a_wrong_map_or_file_is_told_once_on_the_node(server: Server, changes: dict[str, Any], said: list[str]) -> None:
    graph = {**start(TEXT)}
    size = changes.get("map", 0xFFCC00)
    width, height = size if isinstance(size, tuple) else (128, 128)
    colour = 0xFFCC00 if isinstance(size, tuple) else size
    graph["map"] = node("EmptyImage", width=width, height=height, batch_size=1, color=colour)
    graph["told"] = mapped("map", **{key: value for key, value in changes.items() if key != "map"})
    drawn(graph, "bad", "told", ["empty", 0], steps=2)
    error = refused(server, graph)
    assert all(part in error["exception_message"] for part in said), error["exception_message"]
    assert error["node_id"] == ("bad" if "latent: " in said[0] else "told")


def refused(server: Server, graph: dict[str, Any]) -> dict[str, Any]:
    history = server.run(graph)
    assert history["status"]["status_str"] == "error"
    (error,) = (message for kind, message in history["status"]["messages"] if kind == "execution_error")
    assert error["exception_type"] in ("ValueError", "FileNotFoundError")
    return error


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"file": "loras/follows.safetensors"}, "told classes, expected one that is told small picture"),
        ({"file": "loras/untold.safetensors"}, "velatura_told in its header"),
    ],
)
def test_a_wrong_file_does_not_enlarge(server: Server, changes: dict[str, Any], said: str) -> None:
    image = node("EmptyImage", width=32, height=32, batch_size=1, color=0x808080)
    graph = {**start(), "small": image, "large": enlarged(**changes)}
    graph["save"] = node("SaveImage", images=["large", 0], filename_prefix="never")
    assert said in refused(server, graph)["exception_message"]
