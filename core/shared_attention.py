"""Layers that are denoised together: one attention over the tokens of all of them, and a LoRA for each.

The rows of every batch are layer by layer within sample by sample: row = sample * layers + layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lora import LowRank, LowRankDeltas, diffusers_name, layers_per_block, low_rank
from .protocols import Attend, AttentionRule, LatentModel, Site

Factors = list[LowRank | None]
"""For one module: what each layer of the picture adds, the strength within `scale`."""


def shared_attention(layers: int) -> AttentionRule:
    """In every self attention the queries, keys and values of a sample's layers are concatenated, so that the layers
    see each other (Latent Transparency, Eq. 8, 9). Cross attention stays each row's own.

    ValueError if a batch is no multiple of `layers`.
    """
    if layers < 1:
        raise ValueError(f"layers: expected at least 1, got {layers}")

    def rule(site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind == "cross" or layers == 1:
            return attend(q, k, v)
        _check(len(q), layers)

        def joined(each: Tensor) -> Tensor:  # (S F) N C -> S (F N) C; a patch of others may leave fewer queries
            return each.reshape(len(each) // layers, layers * each.shape[1], -1)

        return attend(joined(q), joined(k), joined(v)).reshape(q.shape)

    return rule


@contextmanager
def layer_loras(
    model: LatentModel, loras: Sequence[LowRankDeltas | None], strengths: Sequence[float]
) -> Iterator[None]:
    """While open, row r of every `predict_noise` runs with loras[r % len(loras)], None being the model alone. Hooks on
    `model.layers()`; the network is not changed.

    Where the model is differentiable, gradients reach the deltas' tensors. ValueError if a LoRA does not fit.
    """
    layers = model.layers()
    with hooked(layers, per_layer(layers, loras, strengths, model.device)):
        yield


@contextmanager
def hooked(modules: Mapping[str, nn.Module], factors: Mapping[str, Factors]) -> Iterator[None]:
    """`layer_loras` with factors from `per_layer`."""
    with ExitStack() as hooks:
        for name, each in factors.items():
            hooks.callback(modules[name].register_forward_hook(_adding(each, modules[name])).remove)
        yield


def per_layer(
    modules: Mapping[str, nn.Module],
    loras: Sequence[LowRankDeltas | None],
    strengths: Sequence[float],
    device: torch.device,
) -> dict[str, Factors]:
    """The factors by module name, on the device. ValueError if a LoRA has nothing for the network or does not fit."""
    if not loras or len(loras) != len(strengths):
        raise ValueError(f"strengths: expected one for each of {len(loras)} LoRAs, got {len(strengths)}")
    found: dict[str, Factors] = {}
    depth = layers_per_block(modules)
    for number, (deltas, strength) in enumerate(zip(loras, strengths, strict=True)):
        if deltas is None:
            continue
        entries = {diffusers_name(name, depth): low for name, low in deltas.of("unet").items()}
        if not entries:
            raise ValueError(f"LoRA of layer {number + 1}: there is nothing for the UNet in it")
        missing = sorted(set(entries) - set(modules))
        if missing:
            raise ValueError(
                f"LoRA of layer {number + 1}: {len(missing)} of {len(entries)} layers are not in this network, "
                f"{missing[0]} among them; it was made for another model family"
            )
        for name, low in entries.items():
            if strength != 0:
                factors = found.setdefault(name, [None] * len(loras))
                factors[number] = _fitted(name, low, modules[name], strength, device)
    return found


def _fitted(name: str, low: LowRank, module: Any, strength: float, device: torch.device) -> LowRank:
    weight = module.weight
    up, down = low.up, low.down
    if (up.shape[0], down[0].numel(), up.shape[1]) != (weight.shape[0], weight[0].numel(), down.shape[0]):
        raise ValueError(
            f"LoRA: {name} has factors {tuple(up.shape)} and {tuple(down.shape)}, which do not fit a weight "
            f"{tuple(weight.shape)}; it was made for another model family"
        )
    return LowRank(up.to(device), down.to(device), low.scale * strength)


def _adding(factors: Factors, module: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook for the module: W' x = W x + scale * up(down(x)), with each row's own factors."""
    count, pointwise = len(factors), isinstance(module, nn.Linear)
    if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
        pointwise = module.stride == (1, 1) and module.padding == (0, 0)
    kept: list[tuple[Tensor, Tensor]] = []

    def one_by_one(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        _check(len(output), count)
        x, parts = inputs[0], []
        for number, low in enumerate(factors):
            part = output[number::count]
            parts.append(part if low is None else part + low_rank(module, low, x[number::count]))
        return torch.stack(parts, 1).flatten(0, 1)

    def at_once(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        _check(len(output), count)
        x = inputs[0] if isinstance(module, nn.Linear) else inputs[0].flatten(2).mT  # (S F) N C
        if torch.is_grad_enabled():
            down, up = side_by_side(factors, x)
        else:
            if not kept or (kept[0][0].dtype, kept[0][0].device) != (x.dtype, x.device):
                kept[:] = [side_by_side(factors, x)]
            down, up = kept[0]
        rows = x.unflatten(0, (-1, count)).transpose(0, 1).reshape(count, -1, x.shape[-1])  # F (S N) C
        more = torch.bmm(torch.bmm(rows, down), up).view(count, -1, *x.shape[1:-1], up.shape[-1])  # F S N C
        more = more.transpose(0, 1).flatten(0, 1)
        return output + (more if isinstance(module, nn.Linear) else more.mT.reshape(output.shape))

    return at_once if pointwise else one_by_one


def side_by_side(factors: Factors, x: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of layers that see each place by itself, as [F, in, r] and [F, r, out] of x's kind, the scales within
    them; lower ranks are filled up with zeros."""
    there = next(low for low in factors if low is not None)
    none = LowRank(torch.zeros_like(there.up), torch.zeros_like(there.down))
    rank = max(len(low.down) for low in factors if low is not None)
    downs, ups = [], []
    for low in (none if low is None else low for low in factors):
        missing = rank - len(low.down)
        downs.append(F.pad(low.down.flatten(1).to(x), (0, 0, 0, missing)).mT)  # autocast stacks no half precision
        ups.append(F.pad(low.scale * low.up.flatten(1).to(x), (0, missing)).mT)
    return torch.stack(downs), torch.stack(ups)


def check_single(rows: int) -> None:
    """ValueError if a model takes `rows` rows for one sample, where one picture is one sample."""
    if rows > 1:
        raise ValueError(
            f"model: it draws {rows} layers together, in samplers, and this node takes a model that draws one picture "
            "at a time; connect the model from before that patch"
        )


def check_free(rows: int) -> None:
    """ValueError if a model takes `rows` rows for one sample already, where it is to take several."""
    if rows > 1:
        raise ValueError(
            f"model: it draws {rows} layers together already, and a batch can be in layers once only; connect the "
            "model from before that patch"
        )


def _check(rows: int, layers: int) -> None:
    if rows % layers:
        raise ValueError(f"x: expected a batch in multiples of {layers}, one row for each layer, got {rows}")
