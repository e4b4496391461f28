"""A judge of maps: what class each pixel of a picture is of, by a small network that knows real pictures only."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.protocols import Progress, no_progress
from ..demo import classifier, measure, views
from ..training import supervised
from ..training.loop import Settings
from ..training.share import Draw

SEEN: dict[str, Any] = {"near": 0.2, "several": 0.35}
SEED = 905


class Segmenter(nn.Module):
    """Pictures [B, 3, S, S] in 0 .. 1 -> logits of views.CLASSES [B, K, S / 2, S / 2], S a multiple of 16."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 96)
        self.down = nn.ModuleList(_unit(a, b, 2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_unit(a + b, b, 1) for a, b in ((96, 64), (64, 48), (48, 24)))
        self.out = nn.Conv2d(24, len(views.CLASSES), 1)

    def forward(self, image: Tensor) -> Tensor:
        levels, x = [], image * 2 - 1
        for down in self.down:
            x = down(x)
            levels.append(x)
        # What the place is, is known from the whole picture.
        x = x + x.mean((2, 3), keepdim=True)
        for up, level in zip(self.up, levels[-2::-1], strict=True):
            x = up(torch.cat([F.interpolate(x, scale_factor=2.0), level], 1))
        return self.out(x)


def _unit(a: int, b: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.GroupNorm(8, b), nn.SiLU())


def trained(folder: str | Path, steps: int, progress: Progress = no_progress, batch: int = 16) -> Segmenter:
    """The judge, trained in a run folder, or read from it where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Segmenter()

    def loss(model: nn.Module, first: int, count: int, draw: Draw) -> Tensor:
        view = views.views(SEED, torch.arange(first, first + count), **SEEN)
        image = classifier.blur_and_noise(view.picture, draw).contiguous(memory_format=torch.channels_last)
        return F.cross_entropy(model(image).float(), _half(view.classes))

    settings = Settings(steps, batch, 3e-3, 20, 0.6, ema=0.98, save_every=steps, precision="bf16")
    resume = Path(folder, "checkpoint.safetensors").exists()
    done: Any = supervised.train(network, loss, settings, folder, progress=progress, resume=resume)
    return done.modules["network"].eval().requires_grad_(False)


@torch.no_grad()
def agreement(judge: Segmenter, pictures: Tensor, classes: Tensor) -> float:
    """The share of pixels [B, 3, S, S] that are of their map's class."""
    found = torch.cat([judge(part).argmax(1) for part in pictures.split(16)])
    return float((found == _half(classes)).float().mean())


def known(judge: Segmenter, count: int) -> float:
    """The same on real pictures that it was not trained on: what it can find at most."""
    view = views.views(measure.HELD_OUT, torch.arange(count), **SEEN)
    return agreement(judge, view.picture, view.classes)


def _half(classes: Tensor) -> Tensor:
    return classes[..., ::2, ::2]
