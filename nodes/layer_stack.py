"""A picture built layer by layer, each drawn on everything below it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.alpha import over
from ..core.layers import BLENDS, Layer, Layers
from ..hosts import host
from . import _joint
from ._api import io, schema
from ._joint import LAYERS, draw, single
from ._rgba import image_of, rgba_of
from ._shown import stack
from .layers import LayersType
from .transparency import Transparency, TransparencyType, VelaturaDecodeTransparent

GREY = 0.5


class VelaturaLayerStack(io.ComfyNode):
    """A new layer, drawn to fit what lies below."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaLayerStack",
            display_name="Layer Stack (Velatura)",
            category="Velatura/layers",
            description="Adds a layer to others: a transparent object, drawn in sight of everything below it. Chain "
            "one node for each layer; a change of one draws that layer and those above it again, never those below.",
            search_aliases=["iterative layers", "layerdiffuse stack", "add object", "n layers", "psd"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRAs were trained for."),
                TransparencyType.Input("transparency", tooltip="From Load Transparency; its decoder is used."),
                io.Vae.Input("vae", tooltip="The model's VAE."),
                LayersType.Input(
                    "layers", tooltip="What is there: Composite Layers of a background, or the last node of this kind."
                ),
                io.Conditioning.Input("positive", tooltip="What the new layer shall show."),
                io.Conditioning.Input("negative", tooltip="What guidance leads away from; empty text will do."),
                *(_joint.lora_input(layer) for layer in LAYERS),
                *_joint.sampling_inputs(),
                io.String.Input("name", default="layer", optional=True, tooltip="The layer's name, in the file too."),
                io.Float.Input(
                    "opacity", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, tooltip="1 covers, 0 hides it."
                ),
                io.Int.Input(
                    "x",
                    default=0,
                    min=-16384,
                    max=16384,
                    optional=True,
                    tooltip="Moves it to the right, in pixels, after it was drawn.",
                ),
                io.Int.Input("y", default=0, min=-16384, max=16384, optional=True, tooltip="Moves it down."),
                io.Combo.Input(
                    "blend",
                    options=list(BLENDS),
                    default="normal",
                    optional=True,
                    tooltip="How its colour meets what is below, as in painting programs.",
                ),
                io.Int.Input(
                    "place",
                    default=-1,
                    min=-1,
                    max=1000,
                    optional=True,
                    tooltip="How many of the layers lie below it: it is drawn on those. −1: all of them.",
                ),
                io.Conditioning.Input(
                    "below", optional=True, tooltip="What lies below shows this. Unconnected: the negative prompt."
                ),
                _joint.strength_input(),
            ],
            outputs=[
                LayersType.Output(display_name="layers", tooltip="All layers: for the next, and for Save Layers."),
                io.Image.Output(display_name="image", tooltip="All layers together; black where there is nothing."),
                io.Mask.Output(display_name="mask", tooltip="Where they leave it transparent: 1 is transparent."),
                io.Image.Output(display_name="rgba", tooltip="The new layer alone, colour and alpha in one."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, foreground_lora: str, background_lora: str, **_: Any) -> list[float]:
        return [_joint.changed(*each) for each in zip(LAYERS, (foreground_lora, background_lora), strict=True)]

    @classmethod
    @torch.no_grad()
    def execute(
        cls, model: Any, transparency: Transparency, vae: Any, layers: Layers, positive: Any, negative: Any,
        foreground_lora: str, background_lora: str, seed: int, steps: int, cfg: float, name: str = "layer",
        opacity: float = 1.0, x: int = 0, y: int = 0, blend: str = "normal", place: int = -1, below: Any = None,
        strength: float = 1.0,
    ) -> io.NodeOutput:  # fmt: skip
        count = len(layers.layers)
        if place > count:
            raise ValueError(f"place: expected at most {count}, as many as there are layers, got {place}")
        at = count if place < 0 else place
        told = single("negative", negative) if below is None else single("below", below)
        loras = dict(zip(LAYERS, (foreground_lora, background_lora), strict=True))
        seen = _seen(replace(layers, layers=layers.layers[:at]), layers.batch())
        codec = host().codec(vae, model)
        latent = codec.unscale(codec.encode(_padded(seen, codec.factor) * 2 - 1)).float().cpu()
        prompts = [single("positive", positive), told]
        drawn = draw(model, prompts, negative, cfg, latent, seed, steps, loras, strength, clean={1: latent})[0]
        colour, alpha = _decoded(transparency, vae, drawn, seen.shape[2:])
        made = layers.added(Layer(name.strip() or "layer", colour, alpha, opacity, x, y, blend), at)
        flat, shown = made.flatten()
        return io.NodeOutput(
            made, image_of(flat * (shown > 0)), 1 - shown[:, 0], rgba_of(colour, alpha), ui=stack(made)
        )


def _seen(layers: Layers, count: int) -> Tensor:
    """What the network is shown of what lies below: on grey where it is transparent."""
    colour, alpha = layers.flatten()
    shown, _ = over(colour, alpha, torch.full_like(colour, GREY))
    return shown.expand(count, -1, -1, -1)


def _padded(picture: Tensor, factor: int) -> Tensor:
    """With its edges repeated up to the autoencoder's multiple."""
    h, w = picture.shape[2:]
    return F.pad(picture, (0, -w % factor, 0, -h % factor), mode="replicate")


def _decoded(transparency: Transparency, vae: Any, latent: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Straight colour and alpha of the canvas's size."""
    found = VelaturaDecodeTransparent.execute(transparency, vae, {"samples": latent}, "auto", "median", 1024, 128)
    rgba = found.args[2].movedim(-1, 1)[..., : size[0], : size[1]]
    return rgba[:, :3], rgba[:, 3:]
