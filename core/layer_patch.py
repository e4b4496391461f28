"""Patches that teach a network transparent pictures and layers: the released SDXL files, and plain LoRAs.

A released file (LayerDiffuse, `layer_xl_*`) has keys `MODEL KEY::TYPE::INDEX`: `::lora::0` is UP [out, r] and
`::lora::1` DOWN [r, in] of a linear layer's weight, scale 1; `::diff::0` is added to a weight or bias. Where the diff
of the first convolution has more channels than the network, these read what is given beside the noise (`inputs`): the
network's own weight is taken as 0 there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lora import LowRank, diffusers_name, holds_lora, layers_per_block, low_rank, read_lora

FIRST = "conv_in"
_SEPARATOR = "::"
_PREFIX = "diffusion_model."


@dataclass(frozen=True)
class LayerPatch:
    """What is added to a network, by module name with dots as underscores, diffusers' or the original LDM one.

    `low` are low-rank deltas of weights; `weights` and `biases` are whole ones.
    """

    low: Mapping[str, LowRank] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    biases: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.low) + len(self.weights) + len(self.biases)

    def inputs(self, channels: int) -> int:
        """How many latents the network is given beside the noisy one, for latents of so many channels: 0, 1 or 2 in
        the released files. ValueError if the first convolution's diff has no such number of channels."""
        first = self.named(2).weights.get(FIRST)
        if first is None:
            return 0
        extra = first.shape[1] - channels
        if extra < 0 or extra % channels:
            raise ValueError(
                f"patch: its first convolution reads {first.shape[1]} channels, expected a multiple of the model's "
                f"{channels}; it was made for another model family"
            )
        return extra // channels

    def named(self, layers_per_block: int) -> LayerPatch:
        """The same with diffusers' module names."""

        def renamed(given: Mapping[str, Any]) -> dict[str, Any]:
            return {diffusers_name(name, layers_per_block): value for name, value in given.items()}

        return LayerPatch(renamed(self.low), renamed(self.weights), renamed(self.biases))

    def split(self, channels: int) -> tuple[LayerPatch, LayerPatch]:
        """What hooks must do, and what weights can hold. The first convolution of a patch that reads more than the
        noise is for hooks: a weight of another shape would be in the way of every other patch of the network."""
        if not self.inputs(channels):
            return LayerPatch(), self
        rest = {name: weight for name, weight in self.weights.items() if name != FIRST}
        return LayerPatch(weights={FIRST: self.weights[FIRST]}), LayerPatch(self.low, rest, self.biases)

    def fitted(self, modules: Mapping[str, Any]) -> LayerPatch:
        """With diffusers' names, after a look at every shape. `modules` are the network's by name.

        ValueError if a name or shape does not fit: nothing is left out in silence.
        """
        named = self.named(layers_per_block(modules))
        for kind, given in (("weight", {**named.low, **named.weights}), ("bias", named.biases)):
            missing = sorted(name for name in given if getattr(modules.get(name), kind, None) is None)
            if missing:
                raise ValueError(
                    f"patch: {len(missing)} of {len(given)} {kind}s are not in this network, {missing[0]} among them; "
                    "it was made for another model family"
                )
        for name, low in named.low.items():
            weight = modules[name].weight
            if (low.up.shape[0], low.down[0].numel()) != (weight.shape[0], weight[0].numel()):
                raise _misfit(name, (*low.up.shape[:1], *low.down.shape[1:]), weight)
        for name, diff in named.weights.items():
            weight = modules[name].weight
            if diff.shape != weight.shape and not (name == FIRST and _wider(diff, weight)):
                raise _misfit(name, tuple(diff.shape), weight)
        for name, diff in named.biases.items():
            if diff.shape != modules[name].bias.shape:
                raise _misfit(name, tuple(diff.shape), modules[name].bias)
        return named


def _wider(diff: Tensor, weight: Tensor) -> bool:
    return diff.shape[0] == weight.shape[0] and diff.shape[2:] == weight.shape[2:] and diff.shape[1] > weight.shape[1]


def _misfit(name: str, shape: tuple[int, ...], weight: Tensor) -> ValueError:
    return ValueError(
        f"patch: {name} is of shape {tuple(shape)}, the network's of {tuple(weight.shape)}; it was made for another "
        "model family"
    )


def read_layer_patch(weights: Mapping[str, Tensor]) -> LayerPatch:
    """A released SDXL patch, or a LoRA of any layout that `read_lora` knows.

    Raises ValueError if a key is of neither kind, a factor lacks its partner, or nothing is there.
    """
    if any(_SEPARATOR in key for key in weights):
        return _released(weights)
    if holds_lora(weights):
        deltas = read_lora(weights)
        low = deltas.of("unet")
        if not low:
            raise ValueError("patch: this LoRA changes text encoders only, nothing of the model")
        return LayerPatch(low)
    some = next(iter(weights), "no tensor at all")
    raise ValueError(f"patch: expected a released layer file (MODEL KEY::lora::0, ::diff::0) or a LoRA, got {some}")


def _released(tensors: Mapping[str, Tensor]) -> LayerPatch:
    factors: dict[str, dict[int, Tensor]] = {}
    whole: dict[str, dict[str, Tensor]] = {"weight": {}, "bias": {}}
    for key, value in tensors.items():
        name, parameter, kind, index = _parsed(key)
        if (kind, parameter) == ("lora", "weight") and index in (0, 1):
            factors.setdefault(name, {})[index] = value
        elif kind == "diff" and index == 0 and parameter in whole:
            whole[parameter][name] = value
        else:
            raise ValueError(f"patch: key {key!r} is of no known kind, expected ::lora::0, ::lora::1 or ::diff::0")
    return LayerPatch({name: _pair(name, each) for name, each in factors.items()}, whole["weight"], whole["bias"])


def _parsed(key: str) -> tuple[str, str, str, int]:
    """Module, parameter, kind and index of `diffusion_model.out.2.weight::diff::0`."""
    parts = key.split(_SEPARATOR)
    if len(parts) != 3 or not parts[2].isdecimal() or not parts[0].startswith(_PREFIX):
        raise ValueError(f"patch: key {key!r} is of no known layout, expected {_PREFIX}MODULE.weight::TYPE::INDEX")
    module, _, parameter = parts[0].removeprefix(_PREFIX).rpartition(".")
    return module.replace(".", "_"), parameter, parts[1], int(parts[2])


def _pair(name: str, factors: Mapping[int, Tensor]) -> LowRank:
    if len(factors) != 2:
        raise ValueError(f"patch: {name} has no {'up' if 1 in factors else 'down'} factor; the file is incomplete")
    up, down = factors[0], factors[1]
    if up.ndim < 2 or down.ndim < 2 or up.shape[1] != down.shape[0]:
        raise ValueError(f"patch: {name} has factors {tuple(up.shape)} and {tuple(down.shape)} of different rank")
    return LowRank(up, down)


def check_given(patch: LayerPatch, given: Tensor | None, channels: int) -> None:
    """ValueError unless `given` [B, k C, h, w] is what the patch takes beside latents of C channels."""
    takes, has = patch.inputs(channels), 0 if given is None else given.shape[1] / channels
    if takes != has:
        raise ValueError(
            f"patch: it takes {takes} given latents of {channels} channels beside the noise, got {has:g}; "
            + ("connect them" if takes > has else "it is none that is told of other layers")
        )


def check_inputs_free(reads: int, channels: int) -> None:
    """ValueError if a network's first convolution, which `reads` so many channels, has others than the latent's."""
    if reads != channels:
        raise ValueError(
            f"model: it reads {reads} channels, {channels} of which are the latent (an inpainting model, or one with a "
            "picture for its condition); a patch that is told of a layer needs a model that reads the latent alone"
        )


def check_size(given: Tensor, x: Tensor) -> None:
    """ValueError unless latents are of the given ones' size."""
    if given.shape[2:] != x.shape[2:]:
        own, size = ("x".join(str(side) for side in reversed(each.shape[2:])) for each in (given, x))
        raise ValueError(f"latent: expected {own} cells, as the given layer has, got {size}")


@contextmanager
def applied(
    modules: Mapping[str, Any], patch: LayerPatch, strength: float, given: Tensor | None = None
) -> Iterator[None]:
    """While open, the network computes with the patch, which is `fitted` to its modules; nothing of them is changed.

    Every module is linear in its weight and bias, so its output grows by what their growth makes of its input. `given`
    [B, C', h, w] is what the patch's first convolution reads beside the noise.
    """
    with ExitStack() as hooks:
        for name in {**patch.low, **patch.weights, **patch.biases}:
            hook = _adding(patch, name, strength, given if name == FIRST else None)
            hooks.callback(modules[name].register_forward_hook(hook).remove)
        yield


def _adding(patch: LayerPatch, name: str, strength: float, given: Tensor | None) -> Any:
    low, weight, bias = patch.low.get(name), patch.weights.get(name), patch.biases.get(name)

    def add(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        if low is not None:
            output = output + low_rank(module, low, x, strength)
        if weight is None and bias is None:
            return output
        if given is not None:
            x = torch.cat([x, given.to(x)], 1)
        # The product is a tensor of its own: a host's weights may be inference tensors, which no graph takes.
        grown = (None if each is None else strength * each.to(x) for each in (weight, bias))
        return output + _addition(module, x, *grown)

    return add


def _addition(module: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """What a module's output grows by when its weight and bias do."""
    if isinstance(module, nn.GroupNorm):
        unit = F.group_norm(x, module.num_groups, None, None, module.eps)
        return _scaled(unit, weight, bias, (1, -1) + (1,) * (x.ndim - 2))
    if isinstance(module, nn.LayerNorm):
        return _scaled(F.layer_norm(x, module.normalized_shape, None, None, module.eps), weight, bias, (-1,))
    weight = x.new_zeros(module.weight.shape) if weight is None else weight
    if isinstance(module, nn.Conv2d):
        return F.conv2d(x, weight, bias, module.stride, module.padding, module.dilation)
    return F.linear(x, weight, bias)


def _scaled(unit: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    out = torch.zeros_like(unit) if weight is None else unit * weight.reshape(shape)
    return out if bias is None else out + bias.reshape(shape)
