"""A MODEL that computes large latents in overlapping tiles, in every sampler of ComfyUI."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import comfy.model_management
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.tiles import Tiles, Window, tiled
from . import unet

KEY = "velatura.tiles"
_CONTROL = 3  # beside x: timesteps, context, y, control, transformer_options


class _Tiled:
    """A wrapper around ComfyUI's UNet: tile by tile, with what is concatenated to the latent."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles

    def __call__(self, run: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if (args[_CONTROL] if len(args) > _CONTROL else kwargs.get("control")) is not None:
            raise ValueError(
                "model: it is computed in tiles, which a ControlNet's whole picture does not fit; set tile to 0, or "
                "take the ControlNet away"
            )

        def predict(part: Tensor, _: Window) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            return run(part, *args, **kwargs)

        return tiled(predict, x, self.tiles)


def with_tiles(model: Any, tiles: Tiles) -> Any:
    """A clone of MODEL in tiles. Put patches that are given something on it afterwards: wrappers that are there first
    are outside. ValueError if it is no UNet, or in tiles already."""
    unet.unet_of(model.model)
    if model.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY):
        raise ValueError("model: it is computed in tiles already; set tile to 0 in one of the two nodes")
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _Tiled(tiles))
    return clone
