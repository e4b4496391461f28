"""The judge of generated pictures: kind, colour and background of a scene, and features for the Frechet distance."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..training.checkpoint import read_tensors, write_tensors
from ..training.share import Draw
from . import captions
from .sprites import Scenes

NO_OBJECT = len(captions.KINDS)
FEATURES = 128


class Verdict(NamedTuple):
    """Logits [B, kinds + 1] (the last is "no object"), [B, colours], [B, backgrounds], and features [B, 128]."""

    kind: Tensor
    colour: Tensor
    place: Tensor
    features: Tensor


class Classifier(nn.Module):
    """Pictures [B, 3, S, S] in 0 .. 1, S a multiple of 16."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, FEATURES)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 4, 2, 1), nn.GroupNorm(8, b), nn.SiLU()]
        layers += [nn.Conv2d(FEATURES, FEATURES, 3, 1, 1), nn.GroupNorm(8, FEATURES), nn.SiLU()]
        self.layers = nn.Sequential(*layers)
        self.mixed = nn.Linear(2 * FEATURES, FEATURES)
        self.heads = nn.ModuleList(
            nn.Linear(FEATURES, n) for n in (NO_OBJECT + 1, len(captions.COLOURS), len(captions.BACKGROUNDS))
        )

    def forward(self, image: Tensor) -> Verdict:
        maps = self.layers(image * 2 - 1)
        # The mean knows the background, the maximum the object, which fills only part of the picture.
        features = F.silu(self.mixed(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)))
        kind, colour, place = (head(features) for head in self.heads)
        return Verdict(kind, colour, place, features)


def blur_and_noise(image: Tensor, draw: Draw) -> Tensor:
    """What an autoencoder may do to a picture: each is softened and grained by its own random amount."""
    small = F.interpolate(F.avg_pool2d(image, 2), scale_factor=2, mode="bilinear")
    amount = draw(lambda count, generator: torch.rand(count, 2, 1, 1, generator=generator))
    soft = torch.lerp(image, small, amount[:, :1])
    grain = draw(lambda count, generator: torch.randn(count, *image.shape[1:], generator=generator))
    return (soft + grain * (0.06 * amount[:, 1:])).clamp(0, 1)


def targets(scenes: Scenes, bare: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Kind, colour (-100, ignored, where the scene is `bare`) and background, each [B]."""
    kind = torch.where(bare, torch.full_like(scenes.kind, NO_OBJECT), scenes.kind)
    return kind, torch.where(bare, torch.full_like(scenes.colour, -100), scenes.colour), scenes.place


def loss(verdict: Verdict, kind: Tensor, colour: Tensor, place: Tensor, coloured: float) -> Tensor:
    """Sum of the three cross entropies; that of the colours over the `coloured` pictures that have one."""
    colours = F.cross_entropy(verdict.colour.float(), colour, reduction="sum") / coloured
    return F.cross_entropy(verdict.kind.float(), kind) + colours + F.cross_entropy(verdict.place.float(), place)


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Weights as fp16 safetensors."""
    write_tensors(path, {name: value.half() for name, value in model.state_dict().items()}, {"what": "classifier"})


def load(path: str | os.PathLike[str]) -> Classifier:
    """The classifier in float32, ready to judge. CheckpointError if the file is not one."""
    tensors, _ = read_tensors(path)
    model = Classifier()
    model.load_state_dict({name: value.float() for name, value in tensors.items()})
    return model.eval().requires_grad_(False)
