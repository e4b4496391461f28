"""New networks from configurations in diffusers' and transformers' own formats, and the folder they are saved to."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn


def new_unet(config: Mapping[str, Any]) -> nn.Module:
    """UNet2DConditionModel; `unet(x, t, encoder_hidden_states=c).sample`."""
    from diffusers import UNet2DConditionModel

    network: Any = UNet2DConditionModel.from_config(dict(config))
    return network


def new_autoencoder(config: Mapping[str, Any]) -> nn.Module:
    """AutoencoderKL, or VQModel where the configuration has `num_vq_embeddings`."""
    from diffusers import AutoencoderKL, VQModel

    network: Any = (VQModel if "num_vq_embeddings" in config else AutoencoderKL).from_config(dict(config))
    return network


def new_text_encoder(config: Mapping[str, Any]) -> nn.Module:
    """CLIPTextModel; `text_encoder(input_ids).last_hidden_state`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**config))


def save_folder(
    folder: str | os.PathLike[str],
    *,
    unet: nn.Module,
    vae: nn.Module,
    text_encoder: nn.Module,
    tokenizer_files: Mapping[str, str],
    scheduler_config: Mapping[str, Any],
) -> None:
    """Write a diffusers pipeline folder, whole or not at all: it is built beside its place and then moved there.

    `tokenizer_files` maps file names (vocab.json, merges.txt, tokenizer_config.json) to their text. Files that were in
    the folder and are not part of the pipeline stay.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    parts: dict[str, Any] = {"unet": unet, "vae": vae, "text_encoder": text_encoder}
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch, "new")
        for name, module in parts.items():
            module.save_pretrained(new / name, safe_serialization=True)
        (new / "tokenizer").mkdir()
        for name, text in tokenizer_files.items():
            (new / "tokenizer" / name).write_text(text, encoding="utf-8")
        (new / "scheduler").mkdir()
        (new / "scheduler" / "scheduler_config.json").write_text(
            json.dumps({"_class_name": "DDIMScheduler", **scheduler_config}, indent=2) + "\n", encoding="utf-8"
        )
        index = {
            "_class_name": "StableDiffusionPipeline",
            "unet": ["diffusers", type(unet).__name__],
            "vae": ["diffusers", type(vae).__name__],
            "text_encoder": ["transformers", type(text_encoder).__name__],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "safety_checker": [None, None],
            "feature_extractor": [None, None],
        }
        (new / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for item in new.iterdir():
            old = folder / item.name
            if old.is_dir():
                os.replace(old, Path(scratch, f"old-{item.name}"))
            os.replace(item, old)
