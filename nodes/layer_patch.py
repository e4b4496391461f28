"""Patches that make a model draw transparent pictures, or layers that fit others: load them and put them on a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.frame_patch import FramePatch, frame_patch_from, is_frame_patch
from ..core.joint_layers import stacked
from ..core.layer_patch import LayerPatch, read_layer_patch
from ..hosts import host
from ..hosts.weights import read_weights
from . import load
from ._api import io, schema
from ._joint import single

LayerPatchType = io.Custom("VELATURA_LAYER_PATCH")
DEMO = "sprites-transparent (demo)"
DEMO_FILE = "sprites-transparent.safetensors"
KINDS = ("layer_model", "loras")


@dataclass(frozen=True)
class Loaded:
    """A patch, and the file it came from."""

    patch: LayerPatch | FramePatch
    name: str


class VelaturaLoadLayerPatch(io.ComfyNode):
    """A released SDXL patch, or a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        demo = [DEMO] if (load.DEMO_MODELS / DEMO_FILE).exists() else []
        return schema(
            "VelaturaLoadLayerPatch",
            display_name="Load Layer Patch (Velatura)",
            category="Velatura/load",
            description="Loads what teaches a model transparent pictures, or layers that fit others: the released "
            "LayerDiffuse files for SDXL, and LoRAs.",
            search_aliases=["layerdiffuse", "layer diffusion", "transparent lora", "layer_xl"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[*demo, *(f"{kind}/{name}" for kind in KINDS for name in host().models(kind))],
                    tooltip="Files in models/layer_model, the released layer_xl_transparent_attn, "
                    "layer_xl_transparent_conv, layer_xl_fg2ble, layer_xl_bg2ble, layer_xl_fgble2bg, "
                    "layer_xl_bgble2fg; or LoRAs in models/loras.",
                )
            ],
            outputs=[LayerPatchType.Output(display_name="patch", tooltip="For Apply Transparency.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> float:
        path = _path(file)
        return path.stat().st_mtime if path.exists() else 0.0

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        path = _path(file)
        if not path.exists():
            raise FileNotFoundError(f"file: {path} is not there; install the pack again, or choose another file")
        try:
            with torch.inference_mode(False):
                return io.NodeOutput(Loaded(_read(read_weights(path)), path.name))
        except ValueError as error:
            raise ValueError(f"file: {path}: {error}") from error


def _read(tensors: Mapping[str, Tensor]) -> LayerPatch | FramePatch:
    return frame_patch_from(tensors) if is_frame_patch(tensors) else read_layer_patch(tensors)


def _path(file: str) -> Path:
    return load.DEMO_MODELS / DEMO_FILE if file == DEMO else host().model_file(*file.split("/", 1))


class VelaturaApplyTransparency(io.ComfyNode):
    """A patch on a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaApplyTransparency",
            display_name="Apply Transparency (Velatura)",
            category="Velatura/layers",
            description="Makes a model draw transparent pictures, or pictures that fit given layers, in KSampler and "
            "every other sampler. Decode Transparent then gives colour and alpha. The original stays as it is.",
            search_aliases=["layerdiffuse apply", "layer diffuse", "transparent background", "rgba generation"],
            inputs=[
                io.Model.Input("model", tooltip="The model to change, of the family that the patch was made for."),
                LayerPatchType.Input("patch", tooltip="From Load Layer Patch."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How strongly it changes the model: 1 is what it was trained for, 0 changes nothing.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="From which share of the denoising it holds. 0: from the beginning.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Up to which share it holds (stop at); after that the model is exactly itself. 1: to the "
                    "end.",
                ),
                io.Latent.Input(
                    "given",
                    optional=True,
                    tooltip="For patches that are told of a layer: VAE Encode's of the foreground or background, "
                    "transparent ones on grey.",
                ),
                io.Latent.Input(
                    "given_blend",
                    optional=True,
                    tooltip="For patches that are told of a layer and the blend (fgble2bg, bgble2fg): the blend's.",
                ),
                io.Image.Input(
                    "given_image",
                    optional=True,
                    tooltip="For the SD 1.5 patches that are told of a layer (fg2bg, bg2fg): its picture.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The patched model, for any sampler.")],
        )

    @classmethod
    def execute(
        cls, model: Any, patch: Loaded, strength: float, start_percent: float, end_percent: float,
        given: dict[str, Any] | None = None, given_blend: dict[str, Any] | None = None,
        given_image: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        if start_percent > end_percent:
            raise ValueError(
                f"start_percent: expected at most end_percent {end_percent:g}, got {start_percent:g}; swap them"
            )
        try:
            with torch.inference_mode(False):
                how = strength, start_percent, end_percent
                if isinstance(patch.patch, FramePatch):
                    made = host().with_frame_patch(model, patch.patch, *how, _picture(patch.patch, given, given_image))
                else:
                    told = _side_by_side(given, given_blend, given_image)
                    made = host().with_layer_patch(model, patch.patch, *how, told)
        except ValueError as error:
            raise ValueError(f"{patch.name}: {error}") from error
        return io.NodeOutput(made)


class VelaturaLayerPrompts(io.ComfyNode):
    """A prompt for each layer of a batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaLayerPrompts",
            display_name="Layer Prompts (Velatura)",
            category="Velatura/layers",
            description="Prompts for the layers of a batch: its first picture follows the first prompt, the second one "
            "the second, and so on again. For KSampler with patches that draw several layers at once.",
            search_aliases=["layerdiffuse joint prompts", "batch prompts", "conditioning batch", "per layer prompt"],
            inputs=[
                io.Conditioning.Input("layer_1", tooltip="The first layer's prompt."),
                io.Conditioning.Input("layer_2", tooltip="The second layer's prompt."),
                io.Conditioning.Input(
                    "layer_3", optional=True, tooltip="The third layer's prompt, if there are three."
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="For the sampler's positive input.")],
        )

    @classmethod
    def execute(cls, layer_1: Any, layer_2: Any, layer_3: Any = None) -> io.NodeOutput:
        wired = [each for each in (layer_1, layer_2, layer_3) if each is not None]
        prompts = [single(f"layer_{number + 1}", each) for number, each in enumerate(wired)]
        return io.NodeOutput(host().conditioning(stacked(prompts)))


def _picture(patch: FramePatch, given: Any, image: Tensor | None) -> Tensor | None:
    """The given layer's picture in -1 .. 1."""
    if given is not None:
        raise ValueError("given: the SD 1.5 patches are told of a picture; connect it to given_image")
    if patch.told != (image is not None):
        raise ValueError(
            "given_image: this patch is told of a given layer; connect its picture"
            if patch.told
            else "given_image: this patch is told of no given layer; disconnect it"
        )
    return None if image is None else image[..., :3].float().movedim(-1, 1).clone() * 2 - 1


def _side_by_side(given: dict[str, Any] | None, blend: dict[str, Any] | None, image: Tensor | None) -> Tensor | None:
    """The given latents joined in the order that the patches take."""
    if image is not None:
        raise ValueError("given_image: this patch is told of latents; connect VAE Encode to given")
    if given is None:
        if blend is not None:
            raise ValueError("given: expected the layer's latent beside given_blend; connect it")
        return None
    latents = [each["samples"].float() for each in (given, blend) if each is not None]
    if len({each.shape[2:] for each in latents}) > 1:
        raise ValueError("given_blend: expected the given layer's size; encode pictures of one size")
    count = max(len(each) for each in latents)
    return torch.cat([each[torch.arange(count) % len(each)] for each in latents], 1)
