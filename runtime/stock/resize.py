"""Resampling of images and latents, by ComfyUI's names for the methods."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

IMAGE_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]
LATENT_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "bislerp"]
CROPS = ["disabled", "center"]


def resize(batch: Tensor, width: int, height: int, method: str, crop: str = "disabled") -> Tensor:
    """[B, C, H, W] -> [B, C, height, width].

    `crop` "center" first cuts the middle to the new proportions, else they change. "lanczos" rounds to 8 bits.
    """
    if crop == "center":
        batch = _middle(batch, width / height)
    if method == "lanczos":
        return _lanczos(batch, width, height)
    if method == "bislerp":
        return _slerped(_slerped(batch, -1, width), -2, height)
    return interpolate(batch, size=(height, width), mode=method)


def _middle(batch: Tensor, aspect: float) -> Tensor:
    """The largest centred part, give or take a pixel, with width / height = `aspect`."""
    height, width = batch.shape[-2:]
    old = width / height
    x = round((width - width * (aspect / old)) / 2) if old > aspect else 0
    y = round((height - height * (old / aspect)) / 2) if old < aspect else 0
    return batch[..., y : height - y, x : width - x]


def _lanczos(batch: Tensor, width: int, height: int) -> Tensor:
    import numpy as np
    from PIL import Image

    rows = []
    for image in batch:
        pixels = np.clip(255.0 * image.movedim(0, -1).float().cpu().numpy(), 0, 255).astype(np.uint8)
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
        rows.append(torch.from_numpy(np.array(resized).astype(np.float32) / 255.0).movedim(-1, 0))
    return torch.stack(rows).to(batch)


def _slerped(batch: Tensor, dim: int, size: int) -> Tensor:
    """Bilinear interpolation along one axis in which direction and length of the channel vectors turn separately."""
    old = batch.shape[dim]
    place = ((torch.arange(size, dtype=torch.float32) + 0.5) * (old / size) - 0.5).clamp(0, old - 1).to(batch.device)
    low = place.floor().long()
    shape = [1] * batch.ndim
    shape[dim] = size
    ratio = (place - low).reshape(shape)
    a, b = (batch.float().index_select(dim, i) for i in (low, (low + 1).clamp(max=old - 1)))
    return _slerp(a, b, ratio).to(batch.dtype)


def _slerp(a: Tensor, b: Tensor, ratio: Tensor) -> Tensor:
    """Along the great circle (Shoemake 1985) between the directions of a and b over dim 1; lengths linearly."""
    length_a, length_b = (each.norm(dim=1, keepdim=True) for each in (a, b))
    unit_a, unit_b = (each / length.where(length > 0, 1) for each, length in ((a, length_a), (b, length_b)))
    cosine = (unit_a * unit_b).sum(dim=1, keepdim=True)
    angle = cosine.clamp(-1, 1).acos()
    arc = (((1 - ratio) * angle).sin() * unit_a + (ratio * angle).sin() * unit_b) / angle.sin()
    turned = arc * (length_a * (1 - ratio) + length_b * ratio)
    # No circle is defined through equal or opposite directions.
    turned = turned.where(cosine <= 1 - 1e-5, a)
    return turned.where(cosine >= 1e-5 - 1, a * (1 - ratio) + b * ratio)
