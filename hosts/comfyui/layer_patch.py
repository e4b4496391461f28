"""Patches of transparent pictures and layers in ComfyUI: weight adapters where they hold for all steps, hooks where
they hold for some."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor, nn

from ...core.frame_patch import FramePatch
from ...core.layer_patch import FIRST, LayerPatch, applied, check_given, check_inputs_free, check_size
from ...core.lora import LowRank
from ...core.shared_attention import check_free
from . import tiles, unet, windows
from .rows import rows_of, whole_batches

KEY = "velatura.layer_patch"


def with_layer_patch(
    model: Any, patch: LayerPatch, strength: float, start: float, end: float, given: Tensor | None
) -> Any:
    """A clone of MODEL with the patch. ValueError if a name or shape does not fit, or `given` is not what it takes."""
    base = model.model
    names, network = unet.names_of(base), unet.unet_of(base)
    fitted = patch.fitted({name: network.get_submodule(path) for name, path in names.items()})
    clone = model.clone()
    check_given(fitted, given, base.latent_format.latent_channels)
    if given is not None:
        check_inputs_free(network.get_submodule(names[FIRST]).weight.shape[1], base.latent_format.latent_channels)
        if "concat_cond" in model.object_patches:
            raise ValueError("model: another patch with a given latent is on it already; one is possible")
        clone.add_object_patch("concat_cond", _Given(base, given))
        windows.cut_given(clone)
    hooked, merged = fitted, LayerPatch()
    if (start, end) == (0, 1):
        hooked, merged = fitted.split(base.latent_format.latent_channels)
    clone.add_patches(_adapters(merged, names), strength)
    if len(hooked):
        _add_hooks(clone, hooked, names, strength, (start, end))
    return clone


class _Given:
    """In place of BaseModel's `concat_cond`: the given latents, which ComfyUI then cuts and repeats to its batches."""

    def __init__(self, base: Any, given: Tensor) -> None:
        parts = given.split(base.latent_format.latent_channels, 1)
        self.latent = torch.cat([base.process_latent_in(each) for each in parts], 1)

    def __call__(self, **known: Any) -> Tensor:
        check_size(self.latent, known["noise"])
        return self.latent.to(known["device"])


def _adapters(patch: LayerPatch, names: Mapping[str, str]) -> dict[str, Any]:
    adapters: dict[str, Any] = {}
    for name, low in patch.low.items():
        # ComfyUI divides alpha by the rank again.
        factors = (low.up, low.down, low.scale * low.down.shape[0], None, None, None)
        adapters[f"diffusion_model.{names[name]}.weight"] = LoRAAdapter(set(), factors)
    for kind, diffs in (("weight", patch.weights), ("bias", patch.biases)):
        for name, diff in diffs.items():
            key = f"diffusion_model.{names[name]}.{kind}"
            if key in adapters:
                raise ValueError(f"patch: {name} has both low-rank factors and a whole difference")
            adapters[key] = ("diff", (diff,))
    return adapters


class _Stored(nn.Module):
    """A patch's tensors, so that the host's memory manager moves them."""

    def __init__(self, patch: LayerPatch) -> None:
        super().__init__()
        self.scales = {name: low.scale for name, low in patch.low.items()}
        parts = {
            "up": {name: low.up for name, low in patch.low.items()},
            "down": {name: low.down for name, low in patch.low.items()},
            "weights": patch.weights,
            "biases": patch.biases,
        }
        for part, tensors in parts.items():
            frozen = {name: nn.Parameter(each, requires_grad=False) for name, each in tensors.items()}
            self.add_module(part, nn.ParameterDict(frozen))

    def patch(self) -> LayerPatch:
        up, down, weights, biases = (dict(getattr(self, part)) for part in ("up", "down", "weights", "biases"))
        low = {name: LowRank(up[name], down[name], scale) for name, scale in self.scales.items()}
        return LayerPatch(low, weights, biases)


class _Span:
    """A part of the denoising, from `start` to `end` of 0 .. 1, by the schedule that MODEL has when it is sampled: a
    node after ours may give it another one."""

    def __init__(self, base: Any, start: float, end: float) -> None:
        self.base, self.span = base, (start, end)

    def holds(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        # A given layer's row is at the last level; what counts is the one that is drawn.
        level = float(unet.options_of(args, kwargs)["sigmas"].max())
        start, end = (float(self.base.model_sampling.percent_to_sigma(each)) for each in self.span)
        return end <= level <= start


class _Hooks:
    """A wrapper around ComfyUI's UNet: the patch at the steps of a span, the network alone at the others."""

    def __init__(self, stored: _Stored, names: Mapping[str, str], strength: float, span: _Span, channels: int) -> None:
        self.stored, self.names, self.strength = stored, names, strength
        self.span, self.channels, self.takes = span, channels, stored.patch().inputs(channels)

    def __call__(self, run: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given = None
        if self.takes:
            x, given = x[:, : self.channels], x[:, self.channels :]
            if given.shape[1] != self.takes * self.channels:
                raise ValueError(
                    f"given: the network gets {given.shape[1]} channels beside the noise in place of the given layer's "
                    f"{self.takes * self.channels}: another patch, or the conditioning, puts its own there; take it off"
                )
        if not self.span.holds(args, kwargs):
            return run(x, *args, **kwargs)
        with applied(_modules(run, self.names), self.stored.patch(), self.strength, given):
            return run(x, *args, **kwargs)


class Frames:
    """The same for the SD 1.5 form."""

    def __init__(self, patch: FramePatch, names: Mapping[str, str], strength: float, span: _Span, image: Any) -> None:
        self.patch, self.names, self.strength, self.span, self.image = patch, names, strength, span, image
        self.rows = patch.frames

    def __call__(self, run: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.span.holds(args, kwargs):
            return run(x, *args, **kwargs)
        unet.check_batch(self.patch.frames, x, unet.options_of(args, kwargs))
        signals = self.patch.signals(self.image, x)
        with self.patch.applied(_modules(run, self.names), self.strength, signals):
            return run(x, *args, **kwargs)


def _modules(run: Any, names: Mapping[str, str]) -> dict[str, Any]:
    return {name: run.class_obj.get_submodule(path) for name, path in names.items()}


def with_frame_patch(
    model: Any, patch: FramePatch, strength: float, start: float, end: float, image: Tensor | None
) -> Any:
    """A clone of MODEL with an SD 1.5 patch. ValueError if it is for another network."""
    names, network = unet.names_of(model.model), unet.unet_of(model.model)
    patch.fits({name: network.get_submodule(path) for name, path in names.items()})
    clone = model.clone()
    if patch.frames > 1:
        check_free(rows_of(model))
        whole_batches(clone)
    _attach(clone, patch, Frames(patch, names, strength, _Span(model.model, start, end), image))
    return clone


def _add_hooks(
    clone: Any, patch: LayerPatch, names: Mapping[str, str], strength: float, span: tuple[float, float]
) -> None:
    stored, channels = _Stored(patch), clone.model.latent_format.latent_channels
    hooks = _Hooks(stored, names, strength, _Span(clone.model, *span), channels)
    _attach(clone, stored, hooks)
    if hooks.takes:
        _outside(clone, f"{KEY}.{id(stored)}")


def _attach(clone: Any, stored: nn.Module, wrapper: Any) -> None:
    """The wrapper on MODEL, its weights in the host's memory management."""
    key = f"{KEY}.{id(stored)}"
    store = comfy.model_patcher.ModelPatcher(stored, clone.load_device, clone.offload_device)
    clone.set_additional_models(key, [store])
    clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, key, wrapper)


def _outside(clone: Any, key: str) -> None:
    """Have the wrapper under `key` come before those of others, who expect a latent and nothing beside it; after tiles,
    which cut what is beside it as well."""
    by_key = clone.wrappers[WrappersMP.DIFFUSION_MODEL]
    first = [each for each in (tiles.KEY, key) if each in by_key]
    clone.wrappers[WrappersMP.DIFFUSION_MODEL] = {
        each: by_key[each] for each in (*first, *(other for other in by_key if other not in first))
    }
