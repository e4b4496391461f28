"""Drawing layers together: what the nodes that do so share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.ddim import ddim_timesteps
from ..core.joint_layers import joint_sample
from ..core.lora import LowRankDeltas, read_lora
from ..core.protocols import Condition
from ..core.shared_attention import layer_loras, shared_attention
from ..hosts import host
from ..hosts.weights import read_weights
from . import load
from ._api import io

NONE = "none"
LAYERS: tuple[str, str] = ("foreground", "background")
DEMO = {name: f"sprites-layer-{name} (demo)" for name in LAYERS}
DEMO_FILES = {name: f"sprites-layer-{name}.safetensors" for name in LAYERS}


def lora_input(layer: str) -> io.Input:
    """The combo of a layer's LoRA."""
    demo = [DEMO[layer]] if (load.DEMO_MODELS / DEMO_FILES[layer]).exists() else []
    return io.Combo.Input(
        f"{layer}_lora",
        options=[*demo, NONE, *host().models("loras")],
        tooltip=f"What teaches the model to draw a {layer} that fits the other layer; trained together with the other "
        "one's.",
    )


def strength_input() -> io.Input:
    """How strongly the LoRAs hold."""
    return io.Float.Input(
        "strength",
        default=1.0,
        min=-10.0,
        max=10.0,
        step=0.01,
        optional=True,
        tooltip="How strongly the LoRAs change the model; 1 is what they were trained for.",
    )


def sampling_inputs() -> list[io.Input]:
    """Seed, steps and guidance."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=True,
            tooltip="The noise: the same seed, the same layers.",
        ),
        io.Int.Input("steps", default=20, min=1, max=1000, tooltip="DDIM steps: 20 is usual."),
        io.Float.Input(
            "cfg",
            default=5.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="Classifier-free guidance: how closely the prompts are followed. 1: not, in half the time.",
        ),
    ]


def lora_path(layer: str, file: str) -> Path | None:
    """Where a layer's LoRA is; None for none."""
    if file == NONE:
        return None
    return load.DEMO_MODELS / DEMO_FILES[layer] if file == DEMO[layer] else host().model_file("loras", file)


def changed(layer: str, file: str) -> float:
    """When the file was changed last, for `fingerprint_inputs`."""
    path = lora_path(layer, file)
    return path.stat().st_mtime if path is not None and path.exists() else 0.0


def read_layer_lora(layer: str, file: str) -> LowRankDeltas | None:
    """A layer's LoRA. FileNotFoundError or ValueError names the input and the file."""
    path = lora_path(layer, file)
    if path is None:
        return None
    if not path.exists():
        raise FileNotFoundError(f"{layer}_lora: {path} is not there; install the pack again, or choose another file")
    try:
        return read_lora(read_weights(path))
    except ValueError as error:
        raise ValueError(f"{layer}_lora: {path}: {error}") from error


def single(name: str, native: Any, positive: Any = None) -> Condition:
    """A CONDITIONING of one prompt, as the negative one where `positive` is given. ValueError for what a row of a joint
    batch cannot have."""
    if len(native) != 1:
        raise ValueError(f"{name}: expected one prompt, got {len(native)} combined; connect a text encoder's")
    condition = host().condition(native) if positive is None else host().negative(native, positive)
    if "control" in condition.extras:
        raise ValueError(f"{name}: a ControlNet would hold for all layers; put it on a layer that is drawn alone")
    return condition


def draw(
    model: Any,
    prompts: Sequence[Condition],
    negative: Any,
    cfg: float,
    latent: Tensor,
    seed: int,
    steps: int,
    loras: Mapping[str, str],
    strength: float,
    *,
    clean: Mapping[int, Tensor] | None = None,
    shared: bool = True,
) -> list[Tensor]:
    """A foreground and a background, as unscaled latents [S, C, h, w] of the size and number of `latent`. `clean` has
    unscaled latents of layers that are given; `loras` the file for each layer's name."""
    if cfg != 1 and negative is None:
        raise ValueError(f"negative: cfg {cfg:g} needs a negative prompt; connect one, or set cfg to 1")
    engine = host().engine(model)
    null = None if cfg == 1 else single("negative", negative, negative)
    deltas = [read_layer_lora(layer, loras[layer]) for layer in LAYERS]
    size = (len(latent), len(LAYERS), engine.latent_channels, *latent.shape[2:])
    noise = torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(engine.device)
    given = {layer: engine.scale(each.to(engine.device, torch.float32)) for layer, each in (clean or {}).items()}
    bar, look = host().progress(steps), host().preview(model)

    def report(step: int, total: int, x_0: Tensor) -> None:
        shown = [look(layer) for layer in x_0[0]]
        bar(step, total, torch.cat([each for each in shown if each is not None], 2) if shown[0] is not None else None)

    # Apart the layers go through a rule as well, which refuses a model whose attention is no longer theirs.
    rule = engine.attention(shared_attention(len(LAYERS) if shared else 1))
    with torch.no_grad(), rule, layer_loras(engine, deltas, [strength] * len(LAYERS)):
        times = ddim_timesteps(len(engine.schedule), steps, "trailing")
        done = joint_sample(engine, noise, prompts, null, w=cfg, timesteps=times, clean=given, report=report)
    return [engine.unscale(layer.float()).cpu() for layer in done.unbind(1)]
