"""Layers that are drawn together, for ComfyUI's own samplers."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.lora import LowRankDeltas
from ...core.shared_attention import Factors, hooked, per_layer, shared_attention
from . import unet
from .model import patched

KEY = "velatura.layers"


class _Layers:
    """A wrapper around ComfyUI's UNet that gives each row its layer's LoRA, for the length of one call."""

    def __init__(self, base: Any, layers: int, factors: Mapping[str, Factors]) -> None:
        names, self.layers = unet.names_of(base), layers
        self.factors = {names[name]: each for name, each in factors.items()}

    def __call__(self, run: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        unet.check_batch(self.layers, x, unet.options_of(args, kwargs))
        modules = {path: run.class_obj.get_submodule(path) for path in self.factors}
        with hooked(modules, self.factors):
            return run(x, *args, **kwargs)


def with_layers(model: Any, loras: Sequence[LowRankDeltas | None], strengths: Sequence[float]) -> Any:
    """A clone of MODEL that draws batches in rows (sample, layer). ValueError if a LoRA does not fit.

    ComfyUI may join the rows of several prompts: each prompt's are whole samples, so that rows keep their layers.
    """
    factors = per_layer(unet.layers_of(model.model), loras, strengths, model.load_device)
    clone = patched(model, shared_attention(len(loras)))
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, _Layers(model.model, len(loras), factors))
    return clone
