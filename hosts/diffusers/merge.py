"""Deltas merged into a network, on a copy that shares every tensor that does not change."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from ...core.layer_patch import LayerPatch
from ...core.lora import LowRank


def twin_of(network: nn.Module) -> nn.Module:
    """A copy of the modules around the very same parameters and buffers."""
    shared = {id(t): t for t in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, memo=shared)


def merged(network: nn.Module, deltas: Mapping[str, LowRank], strength: float) -> nn.Module:
    """A copy of `network` with `W + strength * delta` in the layers named by underscored module name.

    Untouched parameters and buffers are the original's own tensors, so the copy costs the changed layers only. Raises
    ValueError if nothing fits, or a name or shape does not.
    """
    weights = {
        name.removesuffix(".weight").replace(".", "_"): weight
        for name, weight in network.named_parameters()
        if name.endswith(".weight")
    }
    missing = sorted(set(deltas) - set(weights))
    if missing:
        raise ValueError(
            f"LoRA: {len(missing)} of {len(deltas)} layers are not in this {type(network).__name__}, {missing[0]} "
            "among them; the file was made for another model family"
        )
    twin = twin_of(network)
    twins = {name.replace(".", "_"): module for name, module in twin.named_modules()}
    for name, low in deltas.items():
        weight = weights[name]
        with torch.no_grad():
            delta = low.delta(weight.shape).to(weight.device)
            changed = (weight.float() + strength * delta).to(weight.dtype)
        twins[name].weight = nn.Parameter(changed, requires_grad=False)
    return twin


def grown(network: nn.Module, patch: LayerPatch, strength: float) -> nn.Module:
    """A copy of `network` with a patch that is `fitted` to it; what does not change is shared."""
    twin = twin_of(network)
    modules = {name.replace(".", "_"): module for name, module in twin.named_modules()}

    def grow(name: str, kind: str, delta: torch.Tensor) -> None:
        old = getattr(modules[name], kind)
        with torch.no_grad():
            changed = (old.float() + strength * delta.to(old.device, torch.float32)).to(old.dtype)
        setattr(modules[name], kind, nn.Parameter(changed, requires_grad=False))

    for name, low in patch.low.items():
        weight: torch.Tensor = modules[name].weight  # pyright: ignore[reportAssignmentType]
        grow(name, "weight", low.delta(weight.shape))
    for kind, diffs in (("weight", patch.weights), ("bias", patch.biases)):
        for name, diff in diffs.items():
            grow(name, kind, diff)
    return twin
