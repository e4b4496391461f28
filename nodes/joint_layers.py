"""Layers drawn together: an object and what lies behind it, or one of them to fit the other."""

from __future__ import annotations

from typing import Any

import torch

from ..hosts import host
from . import _joint
from ._api import io, schema
from ._joint import LAYERS, draw, single


class VelaturaJointLayers(io.ComfyNode):
    """Foreground and background at once, with shared attention."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaJointLayers",
            display_name="Joint Layers (Velatura)",
            category="Velatura/layers",
            description="Draws a transparent object and the background behind it together: each with its own prompt "
            "and LoRA, while both see each other in every self attention, so that light and place agree.",
            search_aliases=["layerdiffuse joint", "foreground background", "shared attention", "attention sharing"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRAs were trained for."),
                io.Conditioning.Input("foreground", tooltip="What the object shall be."),
                io.Conditioning.Input("background", tooltip="What lies behind it: the place, not the object."),
                io.Conditioning.Input("negative", tooltip="What guidance leads away from, in both layers."),
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent of the layers' size and number; its contents do not count."
                ),
                *(_joint.lora_input(layer) for layer in LAYERS),
                *_joint.sampling_inputs(),
                _joint.strength_input(),
                io.Boolean.Input(
                    "shared",
                    default=True,
                    optional=True,
                    tooltip="Off: the layers do not see each other, from the same noise: to compare.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="foreground", tooltip="For Decode Transparent."),
                io.Latent.Output(display_name="background", tooltip="For VAE Decode."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, foreground_lora: str, background_lora: str, **_: Any) -> list[float]:
        return [_joint.changed(*each) for each in zip(LAYERS, (foreground_lora, background_lora), strict=True)]

    @classmethod
    def execute(
        cls, model: Any, foreground: Any, background: Any, negative: Any, latent_image: dict[str, Any],
        foreground_lora: str, background_lora: str, seed: int, steps: int, cfg: float, strength: float = 1.0,
        shared: bool = True,
    ) -> io.NodeOutput:  # fmt: skip
        prompts = [single("foreground", foreground), single("background", background)]
        loras = dict(zip(LAYERS, (foreground_lora, background_lora), strict=True))
        size = latent_image["samples"]
        done = draw(model, prompts, negative, cfg, size, seed, steps, loras, strength, shared=shared)
        return io.NodeOutput(*({"samples": each} for each in done))


class VelaturaConditionOnLayer(io.ComfyNode):
    """One layer given, the other drawn to fit it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaConditionOnLayer",
            display_name="Condition on Layer (Velatura)",
            category="Velatura/layers",
            description="Draws the background for an object, or a transparent object for a background: the layer that "
            "is given stays clean while the other one is denoised in sight of it.",
            search_aliases=["foreground to background", "background to foreground", "layerdiffuse", "fg2bg", "bg2fg"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRAs were trained for."),
                io.Conditioning.Input("positive", tooltip="What the layer that is drawn shall show."),
                io.Conditioning.Input("negative", tooltip="What guidance leads away from; empty text will do."),
                io.Latent.Input(
                    "given",
                    tooltip="The layer that is there: an object from Encode Transparent or from a model that generates "
                    "transparent pictures, or a background from VAE Encode.",
                ),
                io.Combo.Input("given_layer", options=list(LAYERS), default="foreground", tooltip="Which one it is."),
                *(_joint.lora_input(layer) for layer in LAYERS),
                *_joint.sampling_inputs(),
                io.Conditioning.Input(
                    "given_positive",
                    optional=True,
                    tooltip="What the given layer shows: the network then sees it better. Unconnected: the negative "
                    "prompt.",
                ),
                _joint.strength_input(),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="layer",
                    tooltip="The layer that was drawn: a foreground for Decode Transparent, a background for VAE "
                    "Decode.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, foreground_lora: str, background_lora: str, **_: Any) -> list[float]:
        return [_joint.changed(*each) for each in zip(LAYERS, (foreground_lora, background_lora), strict=True)]

    @classmethod
    def execute(
        cls, model: Any, positive: Any, negative: Any, given: dict[str, Any], given_layer: str, foreground_lora: str,
        background_lora: str, seed: int, steps: int, cfg: float, given_positive: Any = None, strength: float = 1.0,
    ) -> io.NodeOutput:  # fmt: skip
        told = single("negative", negative) if given_positive is None else single("given_positive", given_positive)
        at = LAYERS.index(given_layer)
        prompts = [single("positive", positive)] * 2
        prompts[at] = told
        loras = dict(zip(LAYERS, (foreground_lora, background_lora), strict=True))
        latent = given["samples"].float()
        done = draw(model, prompts, negative, cfg, latent, seed, steps, loras, strength, clean={at: latent})
        return io.NodeOutput({"samples": done[1 - at]})


class VelaturaShareAttention(io.ComfyNode):
    """Joint layers for any sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaShareAttention",
            display_name="Share Attention (Velatura)",
            category="Velatura/layers",
            description="A model that draws foreground and background together in KSampler and every other sampler: a "
            "batch of two is a pair of layers. What Joint Layers does, with your own sampler and schedule.",
            search_aliases=["attention sharing", "layerdiffuse joint", "joint layers ksampler"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRAs were trained for. It stays as it is."),
                *(_joint.lora_input(layer) for layer in LAYERS),
                _joint.strength_input(),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="For any sampler: the batch is foreground, background, foreground, background, ...; Layer "
                    "Prompts gives each its prompt, Latent From Batch takes them apart."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, foreground_lora: str, background_lora: str, **_: Any) -> list[float]:
        return [_joint.changed(*each) for each in zip(LAYERS, (foreground_lora, background_lora), strict=True)]

    @classmethod
    def execute(cls, model: Any, foreground_lora: str, background_lora: str, strength: float = 1.0) -> io.NodeOutput:
        files = zip(LAYERS, (foreground_lora, background_lora), strict=True)
        with torch.inference_mode(False):
            loras = [_joint.read_layer_lora(*each) for each in files]
        return io.NodeOutput(host().with_layers(model, loras, [strength] * len(LAYERS)))
