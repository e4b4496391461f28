"""The backgrounds of the Sprites world: smooth analytic places, each with light of its own.

A place is drawn with its light from the left; a sample lit from the right is mirrored. Coordinates run from 0 to 1,
y down.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .objects import smooth

Rgb = tuple[float, float, float]


class Place(NamedTuple):
    """Where a background is drawn: x [n, H, W] (mirrored where the light is from the right), y [1, H, W], `u` [n, K]
    uniform numbers, `pixel` the width of one."""

    x: Tensor
    y: Tensor
    u: Tensor
    pixel: float

    def random(self, k: int, low: float, high: float) -> Tensor:
        """The k-th random number of each sample, [n, 1, 1]."""
        return low + (high - low) * self.u[:, k, None, None]


@dataclass(frozen=True)
class Light:
    """`tint` RGB; `direction` towards the light (from the left; y down); `ambient` and `diffuse` strengths."""

    tint: Rgb
    direction: tuple[float, float]
    ambient: float
    diffuse: float


@dataclass(frozen=True)
class Background:
    draw: Callable[[Place], tuple[Tensor, Tensor]]
    light: Light


def rgb(p: Place, *colour: float) -> Tensor:
    return torch.tensor(colour, device=p.x.device).view(1, 3, 1, 1)


def blend(p: Place, a: Rgb | Tensor, b: Rgb | Tensor, t: Tensor) -> Tensor:
    """From a to b by t [n, H, W]; a and b are colours or pictures."""
    first = rgb(p, *a) if isinstance(a, tuple) else a
    second = rgb(p, *b) if isinstance(b, tuple) else b
    return torch.lerp(first, second, t.unsqueeze(1))


def fall(p: Place, top: float | Tensor, bottom: float | Tensor) -> Tensor:
    """0 at the height `top`, 1 at `bottom`, clamped."""
    return ((p.y - top) / (bottom - top)).clamp(0, 1)


def below(p: Place, line: Tensor, blur: float = 1.5) -> Tensor:
    """1 under a line [n, 1 or H, W], 0 above it, soft over `blur` pixels."""
    return (0.5 + (p.y - line) / (blur * p.pixel)).clamp(0, 1)


def wave(p: Place, base: Tensor, height: float, frequency: float, k: int) -> Tensor:
    """A hill line, [n, 1, W]."""
    return base + height * torch.sin(frequency * p.x[:, :1] + 2 * math.pi * p.u[:, k, None, None])


def bell(p: Place, x: Tensor | float, y: Tensor | float, size: float) -> Tensor:
    return torch.exp(-((p.x - x) ** 2 + (p.y - y) ** 2) / (2 * size * size))


def disc(p: Place, x: Tensor | float, y: Tensor | float, size: float) -> Tensor:
    return (0.5 + (size - ((p.x - x) ** 2 + (p.y - y) ** 2).sqrt()) / (1.5 * p.pixel)).clamp(0, 1)


def warm_sunset(p: Place) -> tuple[Tensor, Tensor]:
    horizon = p.random(0, 0.60, 0.66)
    x, y = p.random(1, 0.12, 0.22), horizon - p.random(2, 0.08, 0.14)
    sky = blend(p, (0.47, 0.30, 0.56), (1.0, 0.62, 0.35), fall(p, 0.0, horizon))
    sky = sky + rgb(p, 0.35, 0.25, 0.05) * bell(p, x, y, 0.17).unsqueeze(1)
    sky = blend(p, sky, (1.0, 0.96, 0.75), disc(p, x, y, 0.085))
    land = blend(p, (0.62, 0.33, 0.26), (0.27, 0.13, 0.19), fall(p, horizon, 1.0))
    ground = below(p, wave(p, horizon, 0.015, 7.0, 3))
    return blend(p, sky, land, ground), ground


def cold_night(p: Place) -> tuple[Tensor, Tensor]:
    horizon = p.random(0, 0.62, 0.68)
    sky = blend(p, (0.03, 0.05, 0.17), (0.14, 0.23, 0.44), fall(p, 0.0, horizon))
    x, y = p.random(1, 0.13, 0.24), p.random(2, 0.12, 0.2)
    sky = sky + rgb(p, 0.16, 0.18, 0.2) * bell(p, x, y, 0.12).unsqueeze(1)
    sky = blend(p, sky, (0.95, 0.95, 0.86), disc(p, x, y, 0.07))
    for k in range(4):
        sky = sky + 0.6 * bell(
            p, 0.3 + 0.17 * k + p.random(3 + k, 0, 0.12), p.random(4 + k, 0.05, 0.4), 0.010
        ).unsqueeze(1)
    land = blend(p, (0.16, 0.23, 0.38), (0.05, 0.08, 0.17), fall(p, horizon, 1.0))
    ground = below(p, wave(p, horizon, 0.02, 6.0, 6))
    return blend(p, sky, land, ground), ground


def sunny_meadow(p: Place) -> tuple[Tensor, Tensor]:
    horizon = p.random(0, 0.58, 0.66)
    sky = blend(p, (0.33, 0.63, 0.97), (0.80, 0.92, 1.0), fall(p, 0.0, horizon))
    cloud = bell(p, p.random(1, 0.5, 0.85), p.random(2, 0.12, 0.24), 0.07)
    cloud = cloud + bell(p, p.random(1, 0.42, 0.77), 0.2, 0.06)
    sky = blend(p, sky, (1.0, 1.0, 1.0), cloud.clamp(max=0.9))
    far = below(p, wave(p, horizon - 0.03, 0.03, 5.0, 3))
    land = blend(p, (0.55, 0.80, 0.32), (0.24, 0.55, 0.17), fall(p, horizon, 1.0))
    picture = blend(p, sky, (0.44, 0.70, 0.42), far)
    ground = below(p, wave(p, horizon + 0.02, 0.02, 6.5, 4))
    return blend(p, picture, land, ground), torch.maximum(far, ground)


def snowy_field(p: Place) -> tuple[Tensor, Tensor]:
    horizon = p.random(0, 0.58, 0.66)
    sky = blend(p, (0.60, 0.71, 0.85), (0.88, 0.92, 0.97), fall(p, 0.0, horizon))
    sky = blend(p, sky, (0.70, 0.77, 0.87), below(p, wave(p, horizon - 0.08, 0.05, 8.0, 1)))
    land = blend(p, (0.98, 0.99, 1.0), (0.80, 0.87, 0.95), fall(p, horizon, 1.0))
    ground = below(p, wave(p, horizon, 0.02, 5.0, 2))
    return blend(p, sky, land, ground), ground


def dry_desert(p: Place) -> tuple[Tensor, Tensor]:
    horizon = p.random(0, 0.58, 0.66)
    sky = blend(p, (0.52, 0.78, 0.90), (0.98, 0.91, 0.74), fall(p, 0.0, horizon))
    far = below(p, wave(p, horizon - 0.02, 0.035, 7.0, 1))
    picture = blend(p, sky, (0.86, 0.66, 0.42), far)
    land = blend(p, (0.95, 0.77, 0.47), (0.76, 0.51, 0.27), fall(p, horizon, 1.0))
    ground = below(p, wave(p, horizon + 0.05, 0.03, 5.0, 2))
    return blend(p, picture, land, ground), torch.maximum(far, ground)


def deep_sea(p: Place) -> tuple[Tensor, Tensor]:
    horizon = p.random(0, 0.72, 0.78)
    water = blend(p, (0.12, 0.60, 0.68), (0.02, 0.17, 0.38), fall(p, 0.0, 0.8))
    rays = 0.5 + 0.5 * torch.sin(11 * (p.x - 0.55 * p.y) + 2 * math.pi * p.u[:, 1, None, None])
    water = water + rgb(p, 0.12, 0.2, 0.18) * (rays * (1 - fall(p, 0.0, 0.75))).unsqueeze(1)
    bed = blend(p, (0.16, 0.38, 0.42), (0.06, 0.18, 0.26), fall(p, horizon, 1.0))
    ground = below(p, wave(p, horizon, 0.02, 8.0, 2), blur=4)
    return blend(p, water, bed, ground), ground


def lamplit_room(p: Place) -> tuple[Tensor, Tensor]:
    floor = p.random(0, 0.64, 0.70)
    x, y = p.random(1, 0.10, 0.2), p.random(2, 0.18, 0.28)
    wall = blend(p, (0.42, 0.29, 0.24), (0.34, 0.22, 0.18), fall(p, 0.0, floor))
    wall = wall + rgb(p, 0.52, 0.34, 0.12) * bell(p, x, y, 0.24).unsqueeze(1)
    wall = blend(p, wall, (1.0, 0.93, 0.68), disc(p, x, y, 0.06))
    boards = blend(p, (0.50, 0.29, 0.15), (0.26, 0.14, 0.08), fall(p, floor, 1.0))
    ground = below(p, floor.expand(-1, 1, p.x.shape[-1]))
    skirting = below(p, (floor - 0.035).expand(-1, 1, p.x.shape[-1]))
    return blend(p, blend(p, wall, (0.24, 0.14, 0.10), skirting), boards, ground), ground


def plain_studio(p: Place) -> tuple[Tensor, Tensor]:
    line = p.random(0, 0.62, 0.70)
    wall = blend(p, (0.66, 0.66, 0.69), (0.80, 0.80, 0.82), fall(p, 0.0, line))
    wall = wall + 0.17 * bell(p, p.random(1, 0.1, 0.25), 0.25, 0.28).unsqueeze(1)
    floor = blend(p, (0.90, 0.90, 0.91), (0.74, 0.74, 0.76), fall(p, line, 1.0))
    ground = below(p, line.expand(-1, 1, p.x.shape[-1]), blur=14)
    return blend(p, wall, floor, ground), ground


def misty_forest(p: Place) -> tuple[Tensor, Tensor]:
    horizon = p.random(0, 0.66, 0.72)
    air = blend(p, (0.60, 0.71, 0.66), (0.80, 0.86, 0.82), fall(p, 0.0, horizon))
    air = air + 0.1 * bell(p, 0.1, 0.1, 0.25).unsqueeze(1)
    for k in range(5):
        width = 0.018 + 0.02 * p.u[:, 6 - k, None, None]
        at = 0.06 + 0.2 * k + p.random(1 + k, -0.05, 0.05)
        trunk = (0.5 + (width - (p.x[:, :1] - at).abs()) / (2 * p.pixel)).clamp(0, 1)
        air = blend(p, air, (0.33, 0.41, 0.37), (0.35 + 0.12 * (k % 3)) * trunk)
    land = blend(p, (0.46, 0.56, 0.42), (0.22, 0.32, 0.22), fall(p, horizon, 1.0))
    ground = below(p, wave(p, horizon, 0.015, 6.0, 6), blur=4)
    return blend(p, air, land, ground), ground


def grey_storm(p: Place) -> tuple[Tensor, Tensor]:
    horizon = p.random(0, 0.64, 0.70)
    sky = blend(p, (0.22, 0.24, 0.29), (0.58, 0.61, 0.65), fall(p, 0.0, horizon))
    rolls = torch.sin(9 * p.x + 6.28 * p.u[:, 1, None, None]) * torch.sin(
        16 * p.y + 3 * p.x + 6.28 * p.u[:, 2, None, None]
    )
    sky = sky + 0.06 * (rolls * (1 - fall(p, 0.1, 0.6))).unsqueeze(1) + 0.08 * bell(p, 0.15, 0.2, 0.2).unsqueeze(1)
    land = blend(p, (0.36, 0.39, 0.40), (0.17, 0.19, 0.20), fall(p, horizon, 1.0))
    ground = below(p, wave(p, horizon, 0.008, 5.0, 3))
    return blend(p, sky, land, ground), ground


PLACES: tuple[Background, ...] = (
    Background(warm_sunset, Light((1.15, 0.84, 0.62), (-0.95, -0.30), 0.50, 0.60)),
    Background(cold_night, Light((0.74, 0.82, 1.06), (-0.65, -0.75), 0.45, 0.52)),
    Background(sunny_meadow, Light((1.05, 1.02, 0.95), (-0.50, -0.85), 0.62, 0.48)),
    Background(snowy_field, Light((0.94, 1.00, 1.08), (-0.60, -0.80), 0.66, 0.36)),
    Background(dry_desert, Light((1.10, 0.99, 0.80), (-0.70, -0.70), 0.60, 0.50)),
    Background(deep_sea, Light((0.72, 0.95, 1.05), (-0.35, -0.95), 0.52, 0.52)),
    Background(lamplit_room, Light((1.12, 0.88, 0.60), (-0.85, -0.50), 0.40, 0.65)),
    Background(plain_studio, Light((1.00, 1.00, 1.00), (-0.70, -0.70), 0.60, 0.48)),
    Background(misty_forest, Light((0.90, 1.00, 0.94), (-0.40, -0.90), 0.66, 0.24)),
    Background(grey_storm, Light((0.86, 0.92, 0.98), (-0.50, -0.85), 0.60, 0.28)),
)
"""In the order of `captions.BACKGROUNDS`."""

__all__ = ["PLACES", "Background", "Light", "Place", "smooth"]
