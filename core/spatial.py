"""Spatial conditions by concatenation: what the network's first convolution reads beside the noisy latent.

(Latent Diffusion, section 3.3 and 4.3.) A condition that lies on the picture, a semantic map or a small picture to be
enlarged, is brought to the latent's size and concatenated to it; the first convolution gets a column of weights for
each new channel, zero at first. So the base model is where training starts, and its text goes on to work.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

HALF = 2
"""Places a side in a latent cell at which a condition is read: its channels are the cell's quarters."""


def class_cells(classes: Tensor, count: int, factor: int) -> Tensor:
    """A map of class numbers [B, H, W] -> [B, 4 count, H / factor, W / factor]: the share of each class in each of the
    four quarters of every latent cell. ValueError for a side that does not divide, or a class that is not there."""
    height, width = classes.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"map: expected sides that are multiples of {factor}, got {width}x{height}")
    low, high = int(classes.min()), int(classes.max())
    if low < 0 or high >= count:
        raise ValueError(f"map: expected classes 0 .. {count - 1}, found {low if low < 0 else high}")
    each = torch.arange(count, device=classes.device).view(1, -1, 1, 1)
    shares = [F.avg_pool2d((part[:, None] == each).float(), factor // HALF) for part in classes.split(1)]
    return F.pixel_unshuffle(torch.cat(shares), HALF)


def pixel_cells(picture: Tensor) -> Tensor:
    """A small picture [B, 3, h, w] -> [B, 12, h / 2, w / 2]: the pixels of each latent cell side by side."""
    if picture.shape[-2] % HALF or picture.shape[-1] % HALF:
        height, width = picture.shape[-2:]
        raise ValueError(f"picture: expected sides that are multiples of {HALF}, got {width}x{height}")
    return F.pixel_unshuffle(picture, HALF)


@contextmanager
def told(first: torch.nn.Module, columns: Tensor, given: Tensor) -> Iterator[None]:
    """While open, the first convolution reads `given` [B, C', h, w] too, through `columns` [out, C', k, k]: gradients
    reach both."""

    def add(layer: torch.nn.Conv2d, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        more = F.conv2d(given.to(output), columns.to(output), None, layer.stride, layer.padding, layer.dilation)
        return output + more

    hook = first.register_forward_hook(add)  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        hook.remove()
