"""Layers that are drawn together, for ComfyUI's own samplers."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...core.lora import LowRankDeltas
from ...core.shared_attention import Factors, check_free, hooked, per_layer, shared_attention
from . import unet
from .rows import rows_of, whole_batches

KEY = "velatura.layers"


class Layers:
    """A wrapper around ComfyUI's UNet: for the length of one call the rows of a sample share their self attention, and
    each has its layer's LoRA.

    The rule is put over what stands in the attentions' place in that very call: patches that come later on the model,
    or for one call as PAG's do, are under it too. Cross attention, which adapters replace, is left to them.
    """

    def __init__(self, base: Any, rows: int, factors: Mapping[str, Factors]) -> None:
        names, self.rows = unet.names_of(base), rows
        self.factors = {names[name]: each for name, each in factors.items()}
        self.rule, network = shared_attention(rows), unet.unet_of(base)
        self.sites = [(site, block) for site, block in unet.sites_of(network) if site.kind == "self"]

    def __call__(self, run: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        options = unet.options_of(args, kwargs)
        unet.check_batch(self.rows, x, options)
        present = options.get("patches_replace", {})
        unet.check_own_rows(present)
        ruled = {**options, "patches_replace": unet.replacements(self.sites, self.rule, present)}
        args, kwargs = unet.with_options(args, kwargs, ruled)
        modules = {path: run.class_obj.get_submodule(path) for path in self.factors}
        with hooked(modules, self.factors):
            return run(x, *args, **kwargs)


def with_layers(model: Any, loras: Sequence[LowRankDeltas | None], strengths: Sequence[float]) -> Any:
    """A clone of MODEL that draws batches in rows (sample, layer). ValueError if a LoRA does not fit, or the model
    draws layers together already.

    ComfyUI may join the rows of several prompts: each prompt's are whole samples, so that rows keep their layers.
    """
    check_free(rows_of(model))
    factors = per_layer(unet.layers_of(model.model), loras, strengths, model.load_device)
    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, Layers(model.model, len(loras), factors))
    whole_batches(clone)
    return clone
