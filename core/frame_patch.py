"""The released SD 1.5 form of shared attention (LayerDiffuse, `layer_sd15_*`): a LoRA for each layer of the picture in
every attention, and an attention across the layers, token by token, after it.

Rows are row = sample * frames + frame. The frames of the released files: one transparent picture; foreground,
background and blend; or the layer that is drawn and the blend, where the other layer's picture is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lora import LowRank, low_rank

PLACES = (
    *(f"down_blocks_{level}_attentions_{layer}" for level in range(3) for layer in range(2)),
    *(f"up_blocks_{level}_attentions_{layer}" for level in range(1, 4) for layer in range(3)),
    "mid_block_attentions_0",
)
SITES = tuple(f"{place}_transformer_blocks_0_{kind}" for place in PLACES for kind in ("attn1", "attn2"))
"""The attentions in the order of the files."""

HEADS = 8
"""SD 1.5's."""

Signals = Mapping[int, Tensor]
"""What is told of the given picture [S, 256, h, w], by the number of tokens h w."""


class FramePatch(nn.Module):
    """The parameters under the names of the released files. `widths` holds an attention's channels and those of what
    it looks at, for each of SITES."""

    def __init__(self, widths: list[tuple[int, int]], frames: int, rank: int, told: bool) -> None:
        super().__init__()
        self.frames = frames
        self.hookers = nn.Module()
        self.hookers.layers = nn.ModuleList([_Layer(*each, frames, rank, told) for each in widths])
        self.kwargs_encoder = _Encoder() if told else None

    @property
    def told(self) -> bool:
        """Whether a layer's picture is given."""
        return self.kwargs_encoder is not None

    def signals(self, image: Tensor | None, x: Tensor) -> Signals:
        """What a given picture [S, 3, H, W] in -1 .. 1 says to the attentions of latents x [B, C, H/8, W/8]. ValueError
        for another size, for none where one is needed, and the other way round."""
        if self.kwargs_encoder is None and image is None:
            return {}
        if self.kwargs_encoder is None or image is None:
            raise ValueError(
                "patch: it is told of a given layer; connect its picture"
                if self.told
                else "patch: it is told of no given layer; disconnect the picture"
            )
        if image.shape[2:] != tuple(8 * side for side in x.shape[2:]):
            sizes = "x".join(str(8 * side) for side in reversed(x.shape[2:]))
            raise ValueError(f"given_image: expected {sizes}, as is drawn, got {image.shape[3]}x{image.shape[2]}")
        return self.kwargs_encoder(image.to(x))

    def fits(self, modules: Mapping[str, Any]) -> None:
        """ValueError unless the network, its modules by name, is what the patch was made for."""
        layers: Any = self.hookers.layers
        for site, layer in zip(SITES, layers, strict=True):
            there: Any = modules.get(f"{site}_to_q"), modules.get(f"{site}_to_k")
            sizes = None if None in there else (there[0].weight.shape[0], there[1].weight.shape[1])
            if sizes != layer.widths:
                raise ValueError(
                    f"patch: {site} has {layer.widths} channels in it, the network {sizes or 'no such attention'}; it "
                    "was made for another model family (SD 1.5)"
                )

    @contextmanager
    def applied(self, modules: Mapping[str, Any], strength: float, signals: Signals) -> Iterator[None]:
        """While open, the network computes with the patch: hooks on the projections of its attentions, so that what
        others put in the place of an attention stays. Nothing of it is changed."""
        layers: Any = self.hookers.layers
        with ExitStack() as hooks:
            for site, layer in zip(SITES, layers, strict=True):
                for hook in _Hooked(layer, self.frames, strength, signals).on(modules, site):
                    hooks.callback(hook.remove)
            yield


class _Factors(nn.Module):
    def __init__(self, wide: int, out: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(wide, rank, bias=False), nn.Linear(rank, out, bias=False)

    def low(self) -> LowRank:
        return LowRank(self.up.weight, self.down.weight)


class _Layer(nn.Module):
    def __init__(self, width: int, context: int, frames: int, rank: int, told: bool) -> None:
        super().__init__()
        self.widths = width, context
        for part, inner in (("q", width), ("k", context), ("v", context), ("out", width)):
            setattr(self, f"to_{part}_lora", nn.ModuleList([_Factors(inner, width, rank) for _ in range(frames)]))
        for part in "iqkvo":
            setattr(self, f"temporal_{part}", nn.Linear(width, width))
        self.temporal_n = nn.LayerNorm(width, eps=1e-6)
        if told:
            convs = (
                nn.Sequential(nn.Conv2d(256, 256, 3, 1, 1), nn.SiLU(), nn.Conv2d(256, width, 1)) for _ in range(frames)
            )
            self.control_convs = nn.ModuleList(convs)

    def across(self, h: Tensor, frames: int, heads: int) -> Tensor:
        """What the attention across the frames adds to h [(S F), N, C], each token with itself in the other frames."""
        rows = h.unflatten(0, (-1, frames)).transpose(1, 2).flatten(0, 1)  # (S F) N C -> (S N) F C
        norm = self.temporal_n
        inner = _linear(
            self.temporal_i,
            F.layer_norm(rows, norm.normalized_shape, _like(norm.weight, h), _like(norm.bias, h), norm.eps),
        )
        q, k, v = (
            _linear(each, inner).unflatten(-1, (heads, -1)).transpose(1, 2)
            for each in (self.temporal_q, self.temporal_k, self.temporal_v)
        )
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out = _linear(self.temporal_o, out)
        return out.unflatten(0, (-1, h.shape[1])).transpose(1, 2).flatten(0, 1)

    def control(self, signal: Tensor, frames: int, rows: int) -> Tensor:
        """What is added to the attention's input [rows, N, C], from a signal [S, 256, h, w]."""
        convs: Any = self.control_convs
        each = []
        for conv in convs:
            h = F.conv2d(signal, _like(conv[0].weight, signal), _like(conv[0].bias, signal), 1, 1)
            h = F.conv2d(F.silu(h), _like(conv[2].weight, signal), _like(conv[2].bias, signal))
            each.append(h.flatten(2).transpose(1, 2))
        told = torch.stack(each, 1).flatten(0, 1)  # S F N C -> (S F) N C
        return told[torch.arange(rows) % len(told)]


class _Encoder(nn.Module):
    """The given picture at an eighth, a sixteenth, ... of its side."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 32, 1), (32, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2), (128, 128, 1), (128, 256, 2))
        self.blocks_0 = _convs(*sizes, (256, 256, 1))
        for number in (1, 2, 3):
            setattr(self, f"blocks_{number}", _convs((256, 256, 2), (256, 256, 1)))

    def forward(self, image: Tensor) -> Signals:
        found, h = {}, image
        for number in range(4):
            for part in getattr(self, f"blocks_{number}"):
                if isinstance(part, nn.Conv2d):
                    h = F.conv2d(h, _like(part.weight, h), _like(part.bias, h), part.stride, part.padding)
                else:
                    h = F.silu(h)
            found[h.shape[2] * h.shape[3]] = h
        return found


def _convs(*sizes: tuple[int, int, int]) -> nn.Sequential:
    return nn.Sequential(*(part for a, b, s in sizes for part in (nn.Conv2d(a, b, 3, s, 1), nn.SiLU())))


class _Hooked:
    """One attention while its network runs once: its input is kept from the projections to the output."""

    def __init__(self, layer: _Layer, frames: int, strength: float, signals: Signals) -> None:
        self.layer, self.frames, self.strength, self.signals = layer, frames, strength, signals
        self.told: Tensor | float = 0.0
        self.seen: Tensor | None = None

    def on(self, modules: Mapping[str, Any], site: str) -> Iterator[Any]:
        own = {"q", "k", "v"} if site.endswith("attn1") else {"q"}  # these project the attention's own input
        for part, name in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("out", "to_out_0")):
            module = modules[f"{site}_{name}"]
            if part in own:
                yield module.register_forward_pre_hook(self._enter if part == "q" else self._add)
            yield module.register_forward_hook(self._grow(part))
        yield modules[f"{site}_to_out_0"].register_forward_hook(self._leave)

    def _enter(self, _: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h = inputs[0]
        if len(h) % self.frames:
            raise ValueError(
                f"latent: expected a batch in multiples of {self.frames}, one for each layer that the patch draws, got "
                f"{len(h)}"
            )
        signal = self.signals.get(h.shape[1])
        self.told = 0.0
        if signal is not None:
            self.told = self.strength * self.layer.control(signal.to(h), self.frames, len(h))
        self.seen = h + self.told
        return (self.seen,)

    def _add(self, _: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert self.seen is not None
        if inputs[0].shape != self.seen.shape:
            raise ValueError(
                "model: a patch on it changes the tokens of an attention (HyperTile, token merging), and layers meet "
                "token by token; connect the model from before that patch"
            )
        return (inputs[0] + self.told,)

    def _grow(self, part: str) -> Any:
        factors: Any = getattr(self.layer, f"to_{part}_lora")

        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x, n = inputs[0], self.frames
            grown = [low_rank(module, each.low(), x[f::n], self.strength) for f, each in enumerate(factors)]
            return output + torch.stack(grown, 1).flatten(0, 1)

        return hook

    def _leave(self, _: Any, inputs: Any, output: Tensor) -> Tensor:
        """What the block adds to its input: the control, the attention, and the attention across the frames."""
        assert self.seen is not None
        across = self.layer.across(self.seen + output, self.frames, HEADS)
        self.seen = None
        return self.told + output + self.strength * across


def _like(value: Any, x: Tensor) -> Tensor:
    return value.detach().to(x)


def _linear(module: Any, x: Tensor) -> Tensor:
    return F.linear(x, _like(module.weight, x), _like(module.bias, x))


def is_frame_patch(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file is of this form, whole or broken."""
    return any(key.startswith(("hookers.", "kwargs_encoder.")) for key in tensors)


def frame_patch_from(tensors: Mapping[str, Tensor]) -> FramePatch:
    """The patch that a file holds. ValueError if keys or shapes are not those of a released file."""
    first = "hookers.layers.{}.to_{}_lora.0.down.weight"
    try:
        widths = [
            (tensors[first.format(n, "q")].shape[1], tensors[first.format(n, "k")].shape[1]) for n in range(len(SITES))
        ]
        rank = tensors[first.format(0, "q")].shape[0]
    except KeyError as error:
        raise ValueError(f"patch: {error} is missing; expected the {len(SITES)} attentions of SD 1.5") from None
    frames = sum(key.startswith("hookers.layers.0.to_q_lora.") and key.endswith("down.weight") for key in tensors)
    told = any(key.startswith("kwargs_encoder.") for key in tensors)
    with torch.device("meta"):
        patch = FramePatch(widths, frames, rank, told)
    try:
        patch.load_state_dict(dict(tensors), strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"patch: it is none of the released SD 1.5 files: {error}") from None
    return patch.eval().requires_grad_(False)
