"""A MODEL that computes large latents in overlapping tiles, in every sampler of ComfyUI."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.tiles import Tiles, Window, tiled
from . import unet

KEY = "velatura.tiles"
_CONTROL = 3  # beside x: timesteps, context, y, control, transformer_options


class Tiled:
    """A wrapper around ComfyUI's UNet: tile by tile, with what is concatenated to the latent."""

    def __init__(self, tiles: Tiles) -> None:
        self.tiles = tiles

    def __call__(self, run: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(self.tiles.windows(*x.shape[-2:])) == 1:
            return run(x, *args, **kwargs)
        _check_divisible(args, kwargs)

        def predict(part: Tensor, _: Window) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            return run(part, *args, **kwargs)

        return tiled(predict, x, self.tiles)


def _check_divisible(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """ValueError if something on the model or the prompt would take a tile for the whole, in silence."""
    options = unet.options_of(args, kwargs)
    around = options.get("wrappers", {}).get(WrappersMP.DIFFUSION_MODEL, {})
    whole = None
    if (args[_CONTROL] if len(args) > _CONTROL else kwargs.get("control")) is not None:
        whole = "a ControlNet's whole picture"
    elif any(getattr(each, "image", None) is not None for several in around.values() for each in several):
        whole = "a given layer's whole picture"
    elif unet.reads_own_rows(options.get("patches_replace", {})):
        whole = "SelfAttentionGuidance, which reads the attention of the whole picture,"
    elif "easycache" in around:
        whole = "EasyCache, which remembers the last answer for the whole picture,"
    if whole is not None:
        raise ValueError(
            f"model: it is computed in tiles, which {whole} does not fit; set tile to 0, or take that away"
        )


def tiles_of(model: Any) -> Tiles | None:
    """The tiles that a MODEL is computed in; None if it is not."""
    wrappers = model.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY)
    return wrappers[0].tiles if wrappers else None


def with_tiles(model: Any, tiles: Tiles) -> Any:
    """A clone of MODEL in tiles. Put patches that are given something on it afterwards: wrappers that are there first
    are outside. ValueError if it is no UNet, or in tiles already."""
    unet.unet_of(model.model)
    if model.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY):
        raise ValueError("model: it is computed in tiles already; set tile to 0 in one of the two nodes")
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, Tiled(tiles))
    return clone
