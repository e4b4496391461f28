"""Ways between latents and between prompts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import interpolation
from ..hosts import host
from ._api import io, schema

Latent = dict[str, Any]


def _alpha(what: str) -> io.Input:
    return io.Float.Input(
        "alpha", default=0.5, min=0.0, max=1.0, step=0.01, round=0.001, tooltip=f"Where between: 0 is {what} a, 1 is b."
    )


def _keep_norm() -> io.Input:
    return io.Boolean.Input(
        "keep_norm",
        default=True,
        tooltip="With slerp: turn at constant speed while the length goes straight from one to the other. Off: "
        "Shoemake's formula on the vectors as they are.",
    )


def _samples(latent: Latent, name: str) -> Tensor:
    samples = latent["samples"]
    if not bool(torch.isfinite(samples).all()):
        raise ValueError(f"{name}: it has NaN or infinite values; look at what made it")
    return samples


class VelaturaSlerpLatents(io.ComfyNode):
    """A latent between two."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaSlerpLatents",
            display_name="Slerp Latents (Velatura)",
            category="Velatura/smooth",
            description="A latent between two, each sample of the batch turned as one vector. Between two noises this "
            "stays noise, where a plain mixture would lose its contrast.",
            search_aliases=["interpolate latents", "latent blend", "lerp", "latent travel", "spherical"],
            inputs=[
                io.Latent.Input("latent_a", tooltip="Latents at alpha 0."),
                io.Latent.Input("latent_b", tooltip="Latents at alpha 1: as many as a, or one of the two has one."),
                _alpha("latent"),
                io.Combo.Input(
                    "mode",
                    options=["slerp", "lerp"],
                    default="slerp",
                    tooltip="slerp turns, which is right for noise; lerp mixes straight.",
                ),
                _keep_norm(),
            ],
            outputs=[io.Latent.Output(tooltip="One latent for each pair.")],
        )

    @classmethod
    def execute(cls, latent_a: Latent, latent_b: Latent, alpha: float, mode: str, keep_norm: bool) -> io.NodeOutput:
        a, b = _samples(latent_a, "latent_a"), _samples(latent_b, "latent_b")
        rows = max(len(a), len(b))
        if a.shape[1:] != b.shape[1:] or {len(a), len(b)} - {1, rows}:
            raise ValueError(
                f"latent_b: expected latents of latent_a's size {tuple(a.shape)}, as many or one, got {tuple(b.shape)}"
            )
        a, b = (each.expand(rows, *each.shape[1:]) for each in (a, b))
        if mode == "lerp":
            return io.NodeOutput({"samples": interpolation.lerp(a, b, alpha)})
        return io.NodeOutput({"samples": interpolation.slerp(a, b, alpha, keep_norm=keep_norm)})


class VelaturaSlerpConditioning(io.ComfyNode):
    """A prompt between two."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaSlerpConditioning",
            display_name="Slerp Conditioning (Velatura)",
            category="Velatura/smooth",
            description="A prompt between two, its pooled vector too. Prompts of different length are repeated as a "
            "whole to one length, which leaves their meaning exactly as it was.",
            search_aliases=["interpolate prompts", "conditioning average", "prompt blend", "prompt travel"],
            inputs=[
                io.Conditioning.Input("conditioning_a", tooltip="The prompt at alpha 0."),
                io.Conditioning.Input("conditioning_b", tooltip="The prompt at alpha 1."),
                _alpha("prompt"),
                io.Combo.Input(
                    "mode",
                    options=["slerp", "lerp"],
                    default="slerp",
                    tooltip="slerp turns each token's vector and keeps its length; lerp mixes straight, as the paper "
                    "on Smooth Diffusion does.",
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="The prompt between; only the first entry of each input counts.")],
        )

    @classmethod
    def execute(cls, conditioning_a: Any, conditioning_b: Any, alpha: float, mode: Any) -> io.NodeOutput:
        here = host()
        a, b = here.condition(conditioning_a), here.condition(conditioning_b)
        return io.NodeOutput(here.conditioning(interpolation.mix_conditions(a, b, alpha, mode)))


class VelaturaLatentPath(io.ComfyNode):
    """Many latents along a path through key frames."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaLatentPath",
            display_name="Latent Path (Velatura)",
            category="Velatura/smooth",
            description="A batch of latents along a path through the key frames, equally far apart: noises for an "
            "animation that moves at an even speed.",
            search_aliases=["latent travel", "keyframes", "interpolate latents", "noise walk", "animation"],
            inputs=[
                io.Latent.Input("keyframes", tooltip="The key frames: a batch, in order."),
                io.Int.Input("frames", default=16, min=1, max=4096, tooltip="How many latents to make."),
                io.Combo.Input(
                    "mode", options=["slerp", "lerp"], default="slerp", tooltip="slerp for noise; lerp goes straight."
                ),
                io.Combo.Input(
                    "easing",
                    options=["linear", "smooth"],
                    default="linear",
                    tooltip="linear moves at one speed; smooth starts and ends slowly.",
                ),
                _keep_norm(),
                io.Boolean.Input(
                    "loop", default=False, tooltip="Lead back to the first key frame, for an animation that repeats."
                ),
                io.Latent.Input("more", optional=True, tooltip="More key frames, after the first ones."),
            ],
            outputs=[io.Latent.Output(tooltip="The batch of frames; the first is the first key frame.")],
        )

    @classmethod
    def execute(
        cls, keyframes: Latent, frames: int, mode: Any, easing: Any, keep_norm: bool, loop: bool,
        more: Latent | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        keys = _samples(keyframes, "keyframes")
        if more is not None:
            rest = _samples(more, "more")
            if rest.shape[1:] != keys.shape[1:]:
                raise ValueError(
                    f"more: expected latents of the keyframes' size {tuple(keys.shape[1:])}, got "
                    f"{tuple(rest.shape[1:])}"
                )
            keys = torch.cat([keys, rest.to(keys)])
        path = interpolation.latent_path(keys, frames, mode=mode, easing=easing, keep_norm=keep_norm, loop=loop)
        return io.NodeOutput({"samples": path})
