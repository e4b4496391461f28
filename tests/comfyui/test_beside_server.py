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

from .conftest import LAYER, Server, lora_of, serving
from .matrix import works
from .test_train_lcm import node

LORA = "beside.safetensors"
TEXTS = {"ball": "a red ball", "feather": "a blue feather", "none": ""}
HOW = {"seed": 4, "steps": 2, "cfg": 3.0}


@pytest.fixture(scope="module")
def files(server: Server) -> None:
    folder = server.base / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(lora_of(LAYER, 0.5, torch.Generator().manual_seed(8)), folder / LORA)


def start() -> dict[str, Any]:
    return {
        "load": node("VelaturaDemoModel", model="sprites"),
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


BRANCHES: dict[str, dict[str, Any]] = {
    "plain": {"plain": sampler("load")}, "smooth": smooth(), "lcm": lcm(), "shared": shared(), "joint": joint(),
    "transparent": transparent(), "inverted": inverted(),
}  # fmt: skip
TOOLS = {"smooth": "lora", "lcm": "lcm", "shared": "share", "joint": "joint", "transparent": "transparency",
         "inverted": "invert"}  # fmt: skip


def graph(*names: str) -> dict[str, Any]:
    prompt = start()
    for name in names:
        prompt |= BRANCHES[name]
        prompt[f"{name}-image"] = node("VAEDecode", samples=[name, 0], vae=["load", 2])
        prompt[f"{name}-saved"] = node("SaveImage", images=[f"{name}-image", 0], filename_prefix=f"beside/{name}")
    return prompt


def pictures(server: Server, *names: str) -> dict[str, np.ndarray]:
    """Two pictures of each branch, all of them from one graph."""
    files = server.pictures(graph(*names))
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
def test_every_cache_draws_the_same(caching: Server, alone: dict[str, np.ndarray]) -> None:
    for names in (tuple(BRANCHES), ("smooth", "shared"), ("inverted",), tuple(reversed(BRANCHES))):
        same(pictures(caching, *names), alone)
