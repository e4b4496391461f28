"""LCM's guidance embedding in ComfyUI, which has no input for it: full LCM checkpoints lose it there."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.guidance import check_projection, guidance_scale_embedding
from . import unet

KEY = "velatura.guidance"


class Guidance:
    """A wrapper around ComfyUI's UNet that adds `embedding(omega) @ projection.T` to the timestep embedding.

    It hooks the network for the length of one call. `omega` [B] or [1]; None adds nothing.
    """

    def __init__(self, projection: Tensor, omega: Tensor | None) -> None:
        self.projection = projection
        self.shift: Tensor | None = None
        if omega is not None:
            embedding = guidance_scale_embedding(omega, projection.shape[1])
            self.shift = embedding @ projection.to("cpu", torch.float32).T  # [B, C]

    def __call__(self, run: Any, *args: Any, **kwargs: Any) -> Tensor:
        shift = self.shift
        if shift is None:
            return run(*args, **kwargs)
        hook = run.class_obj.time_embed.register_forward_pre_hook(lambda _, inputs: (inputs[0] + shift.to(inputs[0]),))
        try:
            return run(*args, **kwargs)
        finally:
            hook.remove()


def with_guidance(model: Any, projection: Tensor, omega: float | None) -> Any:
    """A clone of MODEL that takes omega through `projection` [C, W], in place of one it may have."""
    check_projection(projection, unet.unet_of(model.model).model_channels)
    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, KEY)
    wrapper = Guidance(projection, None if omega is None else torch.tensor([omega]))
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, wrapper)
    return clone


def projection_of(model: Any) -> Tensor | None:
    """The projection that a MODEL was given, None if it has no guidance input."""
    wrappers = model.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY)
    return wrappers[-1].projection if wrappers else None
