"""Transparency taught inside a real ComfyUI, which runs graphs in inference mode: gradients go through its VAE, and the
files left there are read by its loaders and ours."""

from __future__ import annotations

import numpy as np
from PIL import Image
from safetensors.torch import load_file

from .conftest import Server
from .test_train_lcm import node, start

PAIR = {
    "steps": 3, "batch": 2, "learning_rate": 1e-3, "size": "small", "offset_scale": 10.0, "dropout": 0.3, "seed": 1,
    "name": "alpha",
}  # fmt: skip
LORA = {
    "steps": 3, "batch": 2, "learning_rate": 0.05, "rank": 2, "given": 0.5, "low_memory": False, "seed": 1,
    "name": "layers",
}  # fmt: skip


def test_a_pair_and_layer_loras_are_trained_here_and_used(server: Server) -> None:
    prompt = start() | {
        "picture": node("VAEDecode", samples=["drawn", 0], vae=["load", 2]),
        "mask": node("ImageToMask", image=["picture", 0], channel="red"),
        "pair": node("VelaturaTrainTransparency", vae=["load", 2], image=["picture", 0], mask=["mask", 0], **PAIR),
        "hidden": node(
            "VelaturaEncodeTransparent", transparency=["pair", 0], vae=["load", 2], image=["picture", 0],
            mask=["mask", 0], measure=False,
        ),
        "train": node(
            "VelaturaTrainLayerLora", model=["load", 0], latents=["hidden", 0], positive=["both", 0],
            negative=["none", 0], backgrounds=["drawn", 0], background_positive=["none", 0], **LORA,
        ),
        "curve": node("SaveImage", images=["train", 2], filename_prefix="layers/curve"),
    }  # fmt: skip
    (curve,) = server.pictures(prompt)
    assert np.asarray(Image.open(curve)).shape[-1] == 3
    folder = server.base / "models"
    for layer in ("foreground", "background"):
        tensors = load_file(folder / "loras" / f"layers-{layer}.safetensors")
        assert any(bool(value.abs().max() > 0) for name, value in tensors.items() if "lora_up" in name)
    assert bool(load_file(folder / "vae" / "alpha-encoder.safetensors")["blocks.16.weight"].abs().max() > 0)

    again = start() | {
        "lora": node("LoraLoaderModelOnly", model=["load", 0], strength_model=1.0,
                     lora_name="layers-foreground.safetensors"),
        "pair": node("VelaturaLoadTransparency", encoder="vae/alpha-encoder.safetensors",
                     decoder="vae/alpha-decoder.safetensors", offset_scale=0.0),
    }  # fmt: skip
    again["drawn"]["inputs"]["model"] = ["lora", 0]
    again["decoded"] = node(
        "VelaturaDecodeTransparent", transparency=["pair", 0], vae=["load", 2], samples=["drawn", 0], passes="1",
        average="mean", tile_size=0, overlap=0,
    )  # fmt: skip
    again["save"] = node("SaveImage", images=["decoded", 2], filename_prefix="layers/rgba")
    assert [np.asarray(Image.open(each)).shape for each in server.pictures(again)] == [(64, 64, 4)] * 4
    assert "lora key not loaded" not in server.log.read_text()
