"""Transparent pictures at the border: IMAGE [B, H, W, C] and MASK [B, H, W] here, colour and alpha in the engine."""

from __future__ import annotations

import torch
from torch import Tensor

CONVENTION = (
    "What is transparent: 1 is transparent and 0 opaque, as Load Image gives it. Unconnected: the alpha of an image "
    "with four channels."
)


def alpha_of(image: Tensor, mask: Tensor | None) -> Tensor | None:
    """Alpha [B, 1, H, W] in 0 .. 1 for an IMAGE, from its mask or its fourth channel; None if there is neither.
    ValueError if the mask is of another size or batch."""
    if mask is None:
        return image[..., 3:4].float().cpu().movedim(-1, 1).clamp(0, 1) if image.shape[-1] == 4 else None
    mask = mask.reshape(-1, *mask.shape[-2:])
    if mask.shape[1:] != image.shape[1:3]:
        stand_in = tuple(mask.shape[1:]) == (64, 64) and not bool(mask.any())
        raise ValueError(
            f"mask: expected the image's size {image.shape[2]}x{image.shape[1]}, got {mask.shape[2]}x{mask.shape[1]}; "
            + ("Load Image gives this one for a picture without transparency" if stand_in else "resize one of them")
        )
    if len(mask) not in (1, len(image)):
        raise ValueError(f"mask: expected {len(image)}, as many as pictures, or 1, got {len(mask)}")
    return (1 - mask.float().cpu().clamp(0, 1)).expand(len(image), -1, -1)[:, None]


def image_of(colour: Tensor) -> Tensor:
    """Colour [B, 3, H, W] as an IMAGE."""
    return colour.float().cpu().clamp(0, 1).movedim(1, -1)


def rgba_of(colour: Tensor, alpha: Tensor) -> Tensor:
    """An IMAGE of four channels."""
    return image_of(torch.cat([colour, alpha], 1))
