"""The trainers as functions of a scene: each gives what is in the file that it leaves."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .beside import Scene, seeded

X = seeded(2, 4, 16, 16, seed=71)
SHORT = {"steps": 1, "batch": 2, "learning_rate": 0.1, "rank": 1, "seed": 1}
"""Both latents in each step."""
LCM = SHORT | {"skip": 50, "loss": "huber"}


def files() -> list[Path]:
    """The LoRAs in the first of the host's folders, the newest last."""
    import folder_paths  # pyright: ignore[reportMissingImports]

    found = Path(folder_paths.get_folder_paths("loras")[0]).glob("*.safetensors")
    return sorted(found, key=lambda each: each.stat().st_mtime_ns)


def learned(module: str, node: str, scene: Scene, **inputs: Any) -> Tensor:
    """What a trainer's node leaves, under a new name."""
    made = getattr(importlib.import_module(f"velatura.nodes.{module}"), node)
    made.execute(scene.model, {"samples": X}, scene.positive, **inputs, name=f"one-{len(files())}")
    tensors = load_file(files()[-1])
    return torch.cat([tensors[key].float().flatten() for key in sorted(tensors)])


def smooth(scene: Scene, vae: Any) -> Tensor:
    more = {"weight": 1.0, "accumulate": 1, "low_memory": False}
    return learned("train_smooth", "VelaturaTrainSmoothLora", scene, **SHORT, **more)


def distill(scene: Scene, vae: Any) -> Tensor:
    more = {"solver": "ddim", "omega_min": 4.0, "omega_max": 4.0, "negative": scene.negative}
    return learned("train_lcm", "VelaturaDistillLcm", scene, **LCM, **more)


def finetune(scene: Scene, vae: Any) -> Tensor:
    return learned("train_lcm", "VelaturaFinetuneLcm", scene, **LCM)


def layers(scene: Scene, vae: Any) -> Tensor:
    """Two LoRAs that are drawn together; one of the layers may be given."""
    behind = {"backgrounds": {"samples": X.flip(0)}, "background_positive": scene.positive}
    more = {"given": 0.5, "low_memory": False, **behind}
    return learned("train_layers", "VelaturaTrainLayerLora", scene, **SHORT, **more)
