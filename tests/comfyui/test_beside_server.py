"""Several of ours on one model in one graph of a real server, and one after another, with every way that ComfyUI has of
keeping results: the same pictures to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ..hosts import test_frame_patch as thin
from .conftest import LAYER, Server, lora_of, serving
from .matrix import works
from .test_train_lcm import node

LORA, FRAMES = "beside.safetensors", "frames.safetensors"
TEXTS = {"ball": "a red ball", "feather": "a blue feather", "none": ""}
HOW = {"seed": 4, "steps": 2, "cfg": 3.0}


@pytest.fixture(scope="module")
def files(server: Server, random_folder: Path) -> None:
    """A LoRA; and a model of SD 1.5's blocks, thin, with a patch of its form."""
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(lora_of(LAYER, 0.5, torch.Generator().manual_seed(8)), folder / LORA)
    save_file(thin.file(2, False), folder / FRAMES)
    thin.write(random_folder, server.base / "thin")


def start(base: Path) -> dict[str, Any]:
    return {
        "load": node("VelaturaDemoModel", model="sprites"),
        "load-thin": node("ProbeFolder", folder=str(base / "thin")),
        **{name: node("CLIPTextEncode", clip=["load", 1], text=text) for name, text in TEXTS.items()},
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=2),
        "stock": node("LoraLoaderModelOnly", model=["load", 0], lora_name=LORA, strength_model=1.0),
    }


def sampler(model: str) -> dict[str, Any]:
    wires = {"positive": ["ball", 0], "negative": ["none", 0], "latent_image": ["empty", 0]}
    rest = {"sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return node("KSampler", model=[model, 0], **wires, **HOW, **rest)


def lcm() -> dict[str, Any]:
    model = node("VelaturaLcmModel", model=["load", 0], file="sprites-lcm (demo)", strength=1.0, guidance=4.0,
                 convention="from the file")  # fmt: skip
    rest = {"denoise": 1.0, "original_steps": 50, "grid": "paper", "method": "lcm", "gamma": 0.3, "cfg": 1.0}
    draw = node("VelaturaLcmSample", model=["lcm-model", 0], positive=["ball", 0], latent_image=["empty", 0],
                seed=4, steps=2, **rest)  # fmt: skip
    return {"lcm-model": model, "lcm": draw}


def inverted() -> dict[str, Any]:
    """The plain picture there, back, and edited, with the smooth model."""
    invert = node(
        "VelaturaInvert", model=["smooth-model", 0], positive=["ball", 0], negative=["none", 0], latent=["plain", 0],
        method="null text", steps=2, guidance=3.0, seed=0, noised_steps=0, tolerance=0.005, iterations=1,
        corrected=True,
    )  # fmt: skip
    edit = node("VelaturaPromptSwitchEdit", model=["smooth-model", 0], inversion=["invert", 0], target=["feather", 0],
                ratio=0.9)  # fmt: skip
    return {"invert": invert, "inverted": edit, "plain": sampler("load"), **smooth()}


def smooth() -> dict[str, Any]:
    model = node("VelaturaSmoothLora", model=["stock", 0], file="sprites-smooth (demo)", strength=1.0)
    return {"smooth-model": model, "smooth": sampler("smooth-model")}


def shared() -> dict[str, Any]:
    model = node("VelaturaShareAttention", model=["stock", 0], foreground_lora=LORA, background_lora="none",
                 strength=1.0)  # fmt: skip
    return {"shared-model": model, "shared": sampler("shared-model")}


def joint() -> dict[str, Any]:
    wires = {"model": ["load", 0], "foreground": ["ball", 0], "background": ["feather", 0], "negative": ["none", 0]}
    loras = {"foreground_lora": LORA, "background_lora": "none"}
    return {"joint": node("VelaturaJointLayers", **wires, latent_image=["empty", 0], **loras, **HOW)}


def transparent() -> dict[str, Any]:
    patch = node("VelaturaLoadLayerPatch", file=f"loras/{LORA}")
    model = node("VelaturaApplyTransparency", model=["load", 0], patch=["patch", 0], strength=1.0, start_percent=0.0,
                 end_percent=0.7)  # fmt: skip
    return {"patch": patch, "transparent-model": model, "transparent": sampler("transparent-model")}


def framed() -> dict[str, Any]:
    """In SD 1.5's form, two layers."""
    patch = node("VelaturaLoadLayerPatch", file=f"loras/{FRAMES}")
    model = node("VelaturaApplyTransparency", model=["load-thin", 0], patch=["frames", 0], strength=0.5,
                 start_percent=0.0, end_percent=1.0)  # fmt: skip
    return {"frames": patch, "framed-model": model, "framed": sampler("framed-model")}


def mapped() -> dict[str, Any]:
    """In tiles, by a map of its own for each of the two."""
    file = "sprites-semantic (demo)"
    text = "sunny meadow far\nstar: star 0.3 0.4 0.2"
    paint = node("VelaturaPaintMap", text=text, width=64, height=64, file=file)
    model = node("VelaturaSemanticMap", model=["stock", 0], map=["paint", 0], file=file, strength=1.0, tile=32,
                 overlap=16, batch_size=2)  # fmt: skip
    return {"paint": paint, "mapped-model": model, "mapped": sampler("mapped-model")}


def dragged() -> dict[str, Any]:
    """The plain pictures."""
    image = node("VAEDecode", samples=["plain", 0], vae=["load", 2])
    drawing = '{"points": [{"from": [20, 20], "to": [40, 28]}]}'
    points = node("VelaturaDragEditor", image=["dragged-from", 0], drag=drawing)
    wires = {"positive": ["ball", 0], "vae": ["load", 2], "points": ["points", 0], "image": ["points", 2]}
    how = {"mode": "quality", "steps": 2, "strength": 1.0, "iterations": 2, "rate": 0.1, "cut_out": False,
           "snap": False, "fill_steps": 1, "fill_strength": 0.4, "seed": 0, "low_memory": False}  # fmt: skip
    drag = node("VelaturaDrag", model=["stock", 0], **wires, **how)
    return {"plain": sampler("load"), "dragged-from": image, "points": points, "dragged": drag}


def trained() -> dict[str, Any]:
    """On the plain pictures; a run of this name that has ended gives its result again."""
    train = node(
        "VelaturaTrainSmoothLora", model=["stock", 0], latents=["plain", 0], positive=["ball", 0], steps=2, batch=2,
        learning_rate=0.05, rank=4, weight=1.0, accumulate=1, low_memory=False, seed=3, name="beside-trained",
    )  # fmt: skip
    return {"plain": sampler("load"), "train": train, "trained": sampler("train")}


BRANCHES: dict[str, dict[str, Any]] = {
    "plain": {"plain": sampler("load")}, "smooth": smooth(), "lcm": lcm(), "shared": shared(), "joint": joint(),
    "transparent": transparent(), "inverted": inverted(), "framed": framed(), "mapped": mapped(),
    "dragged": dragged(), "trained": trained(),
}  # fmt: skip
TOOLS = {
    "smooth": "lora", "lcm": "lcm", "shared": "share", "joint": "joint", "transparent": "transparency",
    "inverted": "invert", "framed": "frames", "mapped": "spatial", "dragged": "drag", "trained": "train",
}  # fmt: skip
LATENT = {"dragged": 1}
"""Which output of a branch's node is its latent, if not the first."""


def graph(base: Path, *names: str) -> dict[str, Any]:
    prompt = start(base)
    for name in names:
        prompt |= BRANCHES[name]
        prompt[f"{name}-image"] = node("VAEDecode", samples=[name, LATENT.get(name, 0)], vae=["load", 2])
        prompt[f"{name}-saved"] = node("SaveImage", images=[f"{name}-image", 0], filename_prefix=f"beside/{name}")
    return prompt


def pictures(server: Server, *names: str) -> dict[str, np.ndarray]:
    """Two pictures of each branch, all of them from one graph."""
    files = server.pictures(graph(server.base, *names))
    pixels = [np.asarray(Image.open(file).convert("RGB"), np.int16) for file in files]
    return {name: np.stack(pixels[2 * number : 2 * number + 2]) for number, name in enumerate(names)}


@pytest.fixture(scope="module")
def alone(server: Server, files: None) -> dict[str, np.ndarray]:
    """Each branch in a graph of its own, one after another."""
    return {name: pictures(server, name)[name] for name in BRANCHES}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    unlike = [name for name, pixels in found.items() if not bool((pixels == expected[name]).all())]
    assert unlike == []


def together(other: str) -> Any:
    return [pytest.param(name, marks=works(tool, other)) for name, tool in TOOLS.items()]


@pytest.mark.parametrize("name", together("two_samplers"))
def test_two_samplers_share_a_model(server: Server, alone: dict[str, np.ndarray], name: str) -> None:
    # The plain one before and after it: nothing of ours stays on the model.
    same(pictures(server, name, "plain"), alone)
    same(pictures(server, "plain"), alone)
    assert np.abs(alone[name] - alone["plain"]).max() > 4


@pytest.fixture(scope="module", params=["--cache-none", "--cache-lru 2"], ids=["none", "lru"])
def caching(request: pytest.FixtureRequest, pack: Path, files: None) -> Iterator[Server]:
    options = request.param.split()
    with serving(pack, f"log{options[0]}.txt", *options) as running:
        yield running


@works("lora", "caches")
@works("lcm", "caches")
@works("share", "caches")
@works("joint", "caches")
@works("transparency", "caches")
@works("invert", "caches")
@works("frames", "caches")
@works("spatial", "caches")
@works("drag", "caches")
@works("train", "caches")
def test_every_cache_draws_the_same(caching: Server, alone: dict[str, np.ndarray]) -> None:
    for names in (tuple(BRANCHES), ("smooth", "shared"), ("inverted",), tuple(reversed(BRANCHES))):
        same(pictures(caching, *names), alone)
