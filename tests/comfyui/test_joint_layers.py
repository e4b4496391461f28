"""Layers inside a real ComfyUI: the nodes draw there what they draw in the embedded host, patches hold in the stock
sampler beside stock LoRAs, and a change of one layer of a stack draws nothing below it again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from velatura.core.transparency import Convention, TransparencyDecoder
from velatura.core.transparency_file import metadata_of

from .conftest import LAYER, Server, lora_of, velatura
from .test_train_lcm import node

LORAS = {"foreground_lora": "layer-front.safetensors", "background_lora": "layer-back.safetensors"}
HOW = {"seed": 5, "steps": 3, "cfg": 3.0}
FIRST = "diffusion_model.input_blocks.0.0.weight::diff::0"
NORM = "diffusion_model.input_blocks.3.0.in_layers.0.bias::diff::0"


@pytest.fixture(scope="module")
def files(server: Server) -> None:
    """LoRAs, a patch that is told of a layer, and a decoder of alpha, in the server's model folders."""
    models = server.base / "models"
    for folder in ("loras", "layer_model"):
        (models / folder).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(LORAS.values()):
        save_file(lora_of(LAYER, 0.3, torch.Generator().manual_seed(number)), models / "loras" / name)
    generator = torch.Generator().manual_seed(0)
    told = {FIRST: 0.05 * torch.randn(96, 8, 3, 3, generator=generator), NORM: torch.randn(96, generator=generator)}
    save_file(told, models / "layer_model" / "told.safetensors")
    decoder = TransparencyDecoder((8, 8, 8, 8), 4, 1).state_dict()
    tensors = {n: 0.1 * torch.randn(p.shape, generator=generator) + ("norm" in n) for n, p in decoder.items()}
    save_file(tensors, models / "layer_model" / "alpha.safetensors", metadata_of(Convention()))


def start() -> dict[str, Any]:
    return {
        "load": node("VelaturaDemoModel", model="sprites"),
        "ball": node("CLIPTextEncode", clip=["load", 1], text="a red ball"),
        "meadow": node("CLIPTextEncode", clip=["load", 1], text="a green meadow"),
        "none": node("CLIPTextEncode", clip=["load", 1], text=""),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=2),
    }


def saved(prompt: dict[str, Any], name: str, latent: list[Any]) -> None:
    prompt[f"{name}-image"] = node("VAEDecode", samples=latent, vae=["load", 2])
    prompt[name] = node("SaveImage", images=[f"{name}-image", 0], filename_prefix=f"joint/{name}")


def joint(**more: Any) -> dict[str, Any]:
    wires = {"model": ["load", 0], "foreground": ["ball", 0], "background": ["meadow", 0], "negative": ["none", 0]}
    return node("VelaturaJointLayers", latent_image=["empty", 0], **wires, **LORAS | HOW | more)


def sampled(model: list[Any]) -> dict[str, Any]:
    wires = {"positive": ["ball", 0], "negative": ["none", 0], "latent_image": ["empty", 0]}
    return node(
        "KSampler",
        model=model,
        **wires,
        seed=1,
        steps=3,
        cfg=4.0,
        sampler_name="euler",
        scheduler="normal",
        denoise=1.0,
    )


def pixels(path: Any) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), np.float64)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(np.square(a - b).mean(), 1e-6)))


def both(server: Server, prompt: dict[str, Any], name: str) -> list[np.ndarray]:
    """The prompt's pictures in ComfyUI, after a look that the embedded host makes the same ones."""
    theirs = [pixels(each) for each in server.pictures(prompt)]
    file = server.base / f"{name}.json"
    file.write_text(json.dumps(prompt))
    files = velatura(server.pack, "run", str(file), "--out", str(server.base / f"runtime-{name}"))["files"]
    ours = [pixels(each) for each in files]
    assert len(ours) == len(theirs) and all(psnr(a, b) > 40 for a, b in zip(ours, theirs, strict=True))
    return theirs


def test_joint_and_given_layers_are_the_same_in_both_hosts(server: Server, files: None) -> None:
    prompt = start() | {"joint": joint(), "apart": joint(shared=False)}
    wires = {"model": ["load", 0], "positive": ["meadow", 0], "negative": ["none", 0], "given": ["joint", 0]}
    prompt["behind"] = node("VelaturaConditionOnLayer", given_layer="foreground", **wires, **LORAS, **HOW)
    for name, latent in (("front", ["joint", 0]), ("back", ["joint", 1]), ("alone", ["apart", 0])):
        saved(prompt, name, latent)
    saved(prompt, "other", ["behind", 0])
    front, _, back, _, alone, _, other, _ = both(server, prompt, "joint")
    assert min(np.abs(front - back).max(), np.abs(front - alone).max(), np.abs(other - back).max()) > 8


def test_patches_hold_in_the_stock_sampler_beside_a_stock_lora(server: Server, files: None) -> None:
    prompt = start()
    prompt["patch"] = node("VelaturaLoadLayerPatch", file="layer_model/told.safetensors")
    prompt["lora"] = node(
        "LoraLoaderModelOnly", model=["load", 0], lora_name=LORAS["background_lora"], strength_model=1.0
    )
    prompt["given"] = sampled(["load", 0])
    for name, model, end in (("whole", "load", 1.0), ("part", "load", 0.3), ("with-lora", "lora", 1.0)):
        prompt[f"{name}-model"] = node(
            "VelaturaApplyTransparency", model=[model, 0], patch=["patch", 0], given=["given", 0], strength=1.0,
            start_percent=0.0, end_percent=end,
        )  # fmt: skip
        prompt[f"{name}-latent"] = sampled([f"{name}-model", 0])
        saved(prompt, name, [f"{name}-latent", 0])
    saved(prompt, "plain", ["given", 0])
    whole, _, part, _, with_lora, _, plain, _ = both(server, prompt, "patched")
    pairs = ((whole, plain), (part, plain), (whole, part), (whole, with_lora))
    assert all(np.abs(a - b).max() > 4 for a, b in pairs)


def stack(seed: int) -> dict[str, Any]:
    """Five layers, one node each; the seed is the fifth's."""
    prompt = start() | {"alpha": node("VelaturaLoadTransparency", encoder="none", offset_scale=0.0,
                                      decoder="layer_model/alpha.safetensors")}  # fmt: skip
    prompt["empty"]["inputs"]["batch_size"] = 1
    prompt["paper"] = node("EmptyImage", width=64, height=64, batch_size=1, color=0x446688)
    prompt["layer-1"] = node("VelaturaCompositeLayers", image=["paper", 0])
    for number in range(2, 6):
        wires = {"model": ["load", 0], "transparency": ["alpha", 0], "vae": ["load", 2], "positive": ["ball", 0]}
        wires |= {"layers": [f"layer-{number - 1}", 0], "negative": ["none", 0]}
        how = {**LORAS, **HOW, "seed": seed if number == 5 else number}
        prompt[f"layer-{number}"] = node("VelaturaLayerStack", **wires, **how)
    prompt["save"] = node("SaveImage", images=["layer-5", 1], filename_prefix="joint/stack")
    return prompt


def test_a_change_of_the_fifth_layer_draws_the_fifth_alone(server: Server, files: None) -> None:
    ran, pictures = [], []
    for seed in (11, 12):
        pictures.append(pixels(server.pictures(stack(seed))[0]))
        history = next(iter(server.get("history?max_items=1").values()))
        cached = next(said["nodes"] for kind, said in history["status"]["messages"] if kind == "execution_cached")
        ran.append({name for name in stack(seed) if name.startswith("layer-")} - set(cached))
    assert ran[0] == {f"layer-{n}" for n in range(1, 6)} and ran[1] == {"layer-5"}
    assert np.abs(pictures[0] - pictures[1]).max() > 1
