"""A LoRA that is trained: float32 factors, hooked onto a network that is neither copied nor changed.

One network in memory is then the teacher (nothing hooked), the student and its average (each its own factors).
`W' x = W x + scale * up(down(x))`, with scale = alpha / rank (Hu et al. 2021); a convolution's `down` is a convolution
of the same kernel and stride, its `up` a 1x1 one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from ..core.lora import LowRank, LowRankDeltas, Target
from .checkpoint import whole

KINDS = {
    "all": "",
    "attention": r"_attn[12]_to_(q|k|v|out_0)$",
    "cross": r"_attn2_to_(q|k|v|out_0)$",
}
"""Names for sets of layers; any other regular expression may be given in their place."""


class LowRankLayers(nn.Module):
    """Factors for some layers of a network, by `LatentModel.layers()`' names.

    `which` is one of KINDS or a regular expression searched in the name. `alpha` is the rank where it is not given. A
    layer narrower than the rank gets as many as it has. `down` starts as Kaiming-uniform noise of the seed, `up` at
    zero: the network starts unchanged. ValueError if no layer matches.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        rank: int,
        *,
        alpha: float | None = None,
        which: str = "all",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"rank: expected at least 1, got {rank}")
        self.scale = (rank if alpha is None else alpha) / rank
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        generator = torch.Generator().manual_seed(seed)
        # A host may run a whole graph in inference mode, whose tensors cannot be trained.
        with torch.inference_mode(False):
            for name in matching(layers, which):
                weight: Any = layers[name].weight
                wide = weight[0].numel()
                r = min(rank, weight.shape[0], wide)
                down = (torch.rand(r, *weight.shape[1:], generator=generator) * 2 - 1) * wide**-0.5
                self.down[name] = nn.Parameter(down)
                self.up[name] = nn.Parameter(torch.zeros(weight.shape[0], r, *(1,) * (weight.ndim - 2)))

    @contextmanager
    def applied(self, layers: Mapping[str, nn.Module]) -> Iterator[None]:
        """While open, the layers compute W' x. Gradients reach the factors where the network is differentiable."""
        with ExitStack() as hooks:
            for name in self.down:
                hooks.callback(layers[name].register_forward_hook(self._hook(name)).remove)
            yield

    def _hook(self, name: str) -> Any:
        def add(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0]
            down, up = self.down[name].to(x.dtype), (self.scale * self.up[name]).to(x.dtype)
            if down.ndim == 2:
                return output + F.linear(F.linear(x, down), up)
            return output + F.conv2d(F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation), up)

        return add

    def deltas(self) -> LowRankDeltas:
        """What the hooks add, as a file holds it; copies."""
        with torch.inference_mode(False), torch.no_grad():
            return LowRankDeltas(
                {
                    Target("unet", name): LowRank(self.up[name].detach().clone(), down.detach().clone(), self.scale)
                    for name, down in self.down.items()
                }
            )

    @torch.no_grad()
    def load(self, deltas: LowRankDeltas) -> None:
        """Go on from these deltas. ValueError unless they are for the same layers and of the same ranks."""
        given = deltas.of("unet")
        if set(given) != set(self.down):
            odd = sorted(set(given) ^ set(self.down))
            raise ValueError(f"LoRA: expected factors for the same layers, but {len(odd)} differ, {odd[0]} among them")
        for name, low in given.items():
            if low.down.numel() != self.down[name].numel() or low.up.numel() != self.up[name].numel():
                raise ValueError(
                    f"LoRA: {name} has rank {low.down.shape[0]} in the file; expected {self.down[name].shape[0]}: "
                    "choose that rank"
                )
            self.down[name].copy_(low.down.reshape_as(self.down[name]))
            self.up[name].copy_(low.up.reshape_as(self.up[name]) * (low.scale / self.scale))


def matching(layers: Mapping[str, nn.Module], which: str) -> list[str]:
    """The names that a kind or a regular expression selects, sorted: every host has the same.

    ValueError if there are none, or the expression is not one.
    """
    try:
        pattern = re.compile(KINDS.get(which, which))
    except re.error as error:
        raise ValueError(
            f"layers: expected one of {', '.join(KINDS)} or a regular expression, got {which!r}: {error}"
        ) from error
    # A grouped convolution has no factors of this form.
    found = sorted(name for name, layer in layers.items() if pattern.search(name) and getattr(layer, "groups", 1) == 1)
    if not found:
        some = ", ".join(sorted(layers)[:3])
        raise ValueError(f"layers: {which!r} matches none of the network's {len(layers)} layers ({some}, ...)")
    return found


def lora_tensors(deltas: LowRankDeltas) -> dict[str, Tensor]:
    """The UNet's deltas in kohya's layout, fp16, which every host's own LoRA loader reads."""
    tensors: dict[str, Tensor] = {}
    for name, low in deltas.of("unet").items():
        tensors[f"lora_unet_{name}.lora_down.weight"] = low.down.half()
        tensors[f"lora_unet_{name}.lora_up.weight"] = low.up.half()
        tensors[f"lora_unet_{name}.alpha"] = torch.tensor(low.scale * low.down.shape[0]).half()
    return tensors


def write_weights(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None
) -> None:
    """A safetensors file with a plain header, as other programs read it, whole or not at all."""
    packed = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    with whole(path) as scratch:
        # Not save_file: its files are for nobody but the user, and a model folder may be shared.
        Path(scratch).write_bytes(save(packed, metadata={"format": "pt", **(header or {})}))
