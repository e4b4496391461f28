"""A picture as layers: what lies where, in what order, and what they look like together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .alpha import check_alpha, unpremultiply

BLENDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "normal": lambda below, above: above,
    "multiply": lambda below, above: below * above,
    "screen": lambda below, above: below + above - below * above,
    "overlay": lambda below, above: torch.where(below <= 0.5, 2 * below * above, 1 - 2 * (1 - below) * (1 - above)),
    "darken": torch.minimum,
    "lighten": torch.maximum,
    "add": lambda below, above: (below + above).clamp(max=1),
}
"""Colour where both layers are opaque, by the colours below and above (W3C Compositing and Blending, section 10)."""


@dataclass(frozen=True)
class Layer:
    """Straight `colour` [B, 3, h, w] and `alpha` [B, 1, h, w] in 0 .. 1, for a batch of pictures; the upper left corner
    lies at (`x`, `y`) of the canvas and may lie outside. `opacity` is 0 .. 1."""

    name: str
    colour: Tensor
    alpha: Tensor
    opacity: float = 1.0
    x: int = 0
    y: int = 0
    blend: str = "normal"

    def __post_init__(self) -> None:
        check_alpha(self.colour, self.alpha)
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"opacity: expected 0 .. 1, got {self.opacity}")
        if self.blend not in BLENDS:
            raise ValueError(f"blend: expected one of {', '.join(BLENDS)}, got {self.blend!r}")


@dataclass(frozen=True)
class Layers:
    """A canvas and what lies on it, the lowest first. Every change makes a new one; the layers are shared."""

    height: int
    width: int
    layers: tuple[Layer, ...] = ()

    def batch(self) -> int:
        """How many pictures: as many as its layers have, those of one picture being in all of them."""
        return max((len(each.colour) for each in self.layers), default=1)

    def added(self, layer: Layer, at: int | None = None) -> Layers:
        """With a layer on top, or at a place. ValueError if its batch fits no other layer's."""
        counts = {self.batch(), len(layer.colour)} - {1}
        if len(counts) > 1:
            raise ValueError(
                f"layer {layer.name!r}: expected a batch of {self.batch()} as below, or 1, got {len(layer.colour)}"
            )
        at = len(self.layers) if at is None else at
        return replace(self, layers=(*self.layers[:at], layer, *self.layers[at:]))

    def without(self, at: int) -> Layers:
        """Without the layer of this place."""
        return replace(self, layers=(*self.layers[:at], *self.layers[at + 1 :]))

    def flatten(self) -> tuple[Tensor, Tensor]:
        """Straight colour [B, 3, H, W] and alpha [B, 1, H, W] of all layers together."""
        shape = (self.batch(), 1, self.height, self.width)
        kind = self.layers[0].colour if self.layers else torch.zeros(())
        alpha = torch.zeros(shape, dtype=kind.dtype, device=kind.device)
        premultiplied = alpha.repeat(1, 3, 1, 1)
        for layer in self.layers:
            target, source = overlap(self, layer)
            if target is None:
                continue
            below, under = premultiplied[target], alpha[target]
            above = layer.colour[source].to(premultiplied)
            share = layer.alpha[source].to(alpha) * layer.opacity
            mixed = BLENDS[layer.blend](unpremultiply(below, under), above)
            premultiplied[target] = share * torch.lerp(above, mixed, under) + below * (1 - share)
            alpha[target] = share + under * (1 - share)
        return unpremultiply(premultiplied, alpha), alpha


def overlap(canvas: Layers, layer: Layer) -> tuple[tuple | None, tuple]:
    """Where the layer lies on the canvas, and which part of it does."""
    target, source = [], []
    for start, size, limit in zip(
        (layer.y, layer.x), layer.colour.shape[2:], (canvas.height, canvas.width), strict=True
    ):
        low, high = max(0, start), min(limit, start + size)
        if low >= high:
            return None, ()
        target.append(slice(low, high))
        source.append(slice(low - start, high - start))
    return (..., *target), (..., *source)
