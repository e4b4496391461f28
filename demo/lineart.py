"""The Sprites world as line art: ink on white paper, from the straight layers of a scene."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import data, sprites

INK = 0.16
PAPER = (0.83, 0.85, 0.88)  # as light as the shipped autoencoder goes


def captioned(seed: int, indices: Tensor, bare: float, size: int = 128) -> tuple[Tensor, list[str]]:
    """Line drawings [B, 3, S, S] in -1 .. 1 of the scenes that `data.captioned` paints, with the same captions."""
    scenes = sprites.draw(seed, indices, size)
    only = data.is_bare(seed, indices, bare)
    alpha = torch.where(only[:, None, None, None], 0.0, scenes.foreground[:, 3:])
    drawn = compose(scenes.foreground[:, :3], alpha, scenes.background)
    both = zip(only.tolist(), scenes.background_captions, scenes.captions, strict=True)
    return drawn * 2 - 1, [nothing if empty else whole for empty, nothing, whole in both]


def compose(colour: Tensor, alpha: Tensor, background: Tensor) -> Tensor:
    """An object (colour, alpha [B, 1, S, S]) before a background, all in 0 .. 1, as a drawing: a broad outline in ink,
    thin lines inside, a wash of the object's own colour so that its name stays true, the place in pencil."""
    outline = line(alpha, 3.0, broad=True)
    inside = line(colour * alpha, 1.6)
    far = line(background, 1.6, broad=True) * (1 - alpha)
    paper = colour.new_tensor(PAPER).view(1, 3, 1, 1)
    wash = paper * (1 - 0.8 * alpha * (1 - colour))
    ink = (outline + 0.6 * inside + 0.5 * far).clamp(0, 1)
    return torch.lerp(wash, torch.full_like(wash, INK), ink)


def line(picture: Tensor, strength: float, broad: bool = False) -> Tensor:
    """Edges [B, 1, S, S] in 0 .. 1: the largest Sobel gradient of the channels, three pixels wide or, `broad`, five."""
    kernel = picture.new_tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]]) / 4
    channels = picture.shape[1]
    kernels = torch.stack([kernel, kernel.T])[:, None].repeat(channels, 1, 1, 1)
    gradient = F.conv2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), kernels, groups=channels)
    slope = gradient.unflatten(1, (channels, 2)).square().sum(2).sqrt().amax(1, keepdim=True)
    edge = (strength * slope - 0.08).clamp(0, 1)
    return F.max_pool2d(edge, 3, stride=1, padding=1) if broad else edge
