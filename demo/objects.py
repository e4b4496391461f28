"""The foreground objects of the Sprites world: soft-edged analytic shapes on a grid, many samples at once.

A shape works in the object's own coordinates: the object fills about the unit disc, y points down. It returns its
opacity [n, H, W], its albedo [n, 3, H, W] (defined outside the silhouette too, so that nothing bleeds at the edge),
and how glossy it is. Edges are anti-aliased by the distance to the outline in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

PALETTE = (
    (0.88, 0.12, 0.12),
    (1.00, 0.50, 0.05),
    (0.98, 0.86, 0.12),
    (0.15, 0.70, 0.20),
    (0.10, 0.82, 0.85),
    (0.13, 0.25, 0.90),
    (0.55, 0.15, 0.80),
    (1.00, 0.48, 0.72),
)
"""RGB of `captions.COLOURS`, in their order."""


class Frame(NamedTuple):
    """Where a shape is drawn: object coordinates and radius [n, H, W], pixel width [n, 1, 1] in them, `u` [n, K]
    uniform numbers, light direction in the object's coordinates [n, 1, 1] each, colour [n, 3, 1, 1]."""

    x: Tensor
    y: Tensor
    radius: Tensor
    pixel: Tensor
    u: Tensor
    light_x: Tensor
    light_y: Tensor
    colour: Tensor


class Look(NamedTuple):
    alpha: Tensor
    albedo: Tensor
    gloss: Tensor | None = None


@dataclass(frozen=True)
class Kind:
    """A shape, five points inside it (object coordinates), and how it meets light: `emits` light or casts a
    `shadow`."""

    draw: Callable[[Frame], Look]
    points: tuple[tuple[float, float], ...]
    emits: bool = False
    shadow: float = 1.0
    tilt: float = 0.35


def cover(distance: Tensor, pixel: Tensor | float) -> Tensor:
    """Opacity of a signed distance (negative inside), blurred over a pixel and a half."""
    return (0.5 - distance / (1.5 * pixel)).clamp(0, 1)


def smooth(low: float, high: float, value: Tensor) -> Tensor:
    """Hermite step from 0 at `low` to 1 at `high`."""
    t = ((value - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def mix(a: Tensor, b: Tensor | float, t: Tensor) -> Tensor:
    """a + (b - a) t, with t [n, H, W] spread over the channels."""
    return a + (b - a) * t.unsqueeze(1)


def paint(f: Frame, rgb: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rgb, device=f.x.device).view(1, 3, 1, 1)


def spot(f: Frame, x: float | Tensor, y: float | Tensor, size: float) -> Tensor:
    """A disc with a soft edge."""
    return cover(((f.x - x) ** 2 + (f.y - y) ** 2).sqrt() - size, f.pixel)


def highlight(f: Frame, at: float, spread: float) -> Tensor:
    """The light's reflection: a small bell `at` of the way towards the light."""
    return torch.exp(-((f.x - at * f.light_x) ** 2 + (f.y - at * f.light_y) ** 2) / spread)


def angle(f: Frame) -> Tensor:
    return torch.atan2(f.y, f.x)


def ellipse(f: Frame, x: float, y: float, a: float, b: float) -> Tensor:
    """Distance to an ellipse, good near its outline."""
    return ((((f.x - x) / a) ** 2 + ((f.y - y) / b) ** 2).sqrt() - 1) * min(a, b)


def glass_ball(f: Frame) -> Look:
    r2 = f.radius**2
    shine = highlight(f, 0.5, 0.03)
    alpha = cover(f.radius - 0.95, f.pixel) * (0.42 + 0.5 * r2 * r2 + shine).clamp(max=1)
    caustic = highlight(f, -0.5, 0.18)
    return Look(alpha, mix(f.colour, 1.0, 0.15 * (1 - r2).clamp(0) + 0.35 * caustic), shine)


def soap_bubble(f: Frame) -> Look:
    rim = smooth(0.45, 1.0, f.radius)
    shine = highlight(f, 0.62, 0.012) + 0.7 * highlight(f, -0.62, 0.02)
    alpha = cover(f.radius - 0.95, f.pixel) * (0.15 + 0.77 * rim**2 + shine).clamp(max=0.95)
    film = torch.sin(2 * angle(f) + 5 * f.radius + 6.28 * f.u[:, :1, None])
    return Look(alpha, mix(f.colour, 1.0, 0.18 + 0.18 * film), 0.8 * shine)


def flame(f: Frame) -> Look:
    t = ((1 - f.y) / 2).clamp(0, 1)  # 0 at the base, 1 at the tip
    width = 1.6 * t.sqrt() * (1 - t) ** 0.85 + 1e-3
    sway = 0.16 * t * torch.sin(5 * t + 6.28 * f.u[:, :1, None])
    inside = 1 - (f.x - sway).abs() / width
    alpha = 0.97 * smooth(0.0, 0.5, inside) * smooth(1.02, 0.9, f.y.abs())
    core = smooth(0.35, 1.0, inside) * smooth(0.85, 0.2, t)
    return Look(alpha, mix(f.colour, paint(f, (1.0, 0.97, 0.85)), 0.85 * core))


def smoke_cloud(f: Frame) -> Look:
    empty = torch.ones_like(f.x)
    for k, (x, y, size) in enumerate(
        ((0, 0.1, 0.46), (-0.58, 0.28, 0.34), (0.58, 0.28, 0.34), (-0.28, -0.42, 0.36), (0.36, -0.36, 0.34))
    ):
        dx = x + 0.2 * (f.u[:, k, None, None] - 0.5)
        dy = y + 0.2 * (f.u[:, k + 1, None, None] - 0.5)
        empty = empty * (1 - 0.8 * torch.exp(-((f.x - dx) ** 2 + (f.y - dy) ** 2) / (2 * 0.5 * size * size)))
    density = 1 - empty
    grey = mix(f.colour, 0.75, torch.full_like(f.x[:, :1, :1], 0.2))
    return Look(0.9 * smooth(0.05, 0.85, density), grey * (0.75 + 0.3 * density).unsqueeze(1))


def glow(f: Frame) -> Look:
    r2 = f.radius**2
    alpha = 0.98 * torch.exp(-2.4 * r2) * (1 - r2 / 1.8).clamp(0)
    return Look(alpha, mix(f.colour, 1.0, 0.9 * torch.exp(-14 * r2)))


def fur_ball(f: Frame) -> Look:
    swirl = angle(f) + 0.5 * f.radius + 6.28 * f.u[:, :1, None]
    strands = torch.sin(16 * swirl)
    edge = 0.8 + 0.09 * strands + 0.06 * torch.sin(27 * swirl)
    alpha = smooth(0.09, -0.09, f.radius - edge)
    albedo = f.colour * (0.9 + 0.16 * strands * smooth(0.1, 0.8, f.radius)).unsqueeze(1)
    for x in (-0.27, 0.27):
        albedo = mix(albedo, 1.0, spot(f, x, -0.12, 0.2))
        albedo = mix(albedo, 0.05, spot(f, x, -0.08, 0.1))
    return Look(alpha, albedo)


def _feather_bend(y: Tensor | float) -> Tensor | float:
    return 0.25 * y * y - 0.12


def feather(f: Frame) -> Look:
    x = f.x - _feather_bend(f.y)
    width = 0.44 * (1 - ((f.y + 0.18) / 0.84) ** 2).clamp(1e-4).sqrt() * (1 - 0.25 * f.y)
    barbs = torch.sin(26 * (f.y - 0.9 * x.abs()) + 6.28 * f.u[:, :1, None])
    vane = smooth(0.06, -0.06, x.abs() - width * (0.95 + 0.07 * barbs)) * (0.88 + 0.1 * barbs)
    vane = vane * smooth(1.0, 0.9, (f.y + 0.18).abs() / 0.84)
    shaft = cover(x.abs() - 0.035, f.pixel) * smooth(1.04, 0.98, f.y.abs())
    albedo = f.colour * (0.95 + 0.1 * barbs).unsqueeze(1)
    return Look(torch.maximum(vane, shaft), mix(albedo, paint(f, (1.0, 0.97, 0.9)), 0.75 * shaft))


def star(f: Frame) -> Look:
    fifth = math.pi / 5
    turned = (angle(f) + math.pi / 2 + fifth).remainder(2 * fifth) - fifth
    # Folded into one ray: the tip at (1, 0), the notch at 0.52 of the radius a tenth of a turn on.
    x, y = f.radius * turned.cos(), f.radius * turned.abs().sin()
    nx, ny = 0.52 * math.sin(fifth), 1 - 0.52 * math.cos(fifth)
    distance = ((x - 1.0) * nx + y * ny) / math.hypot(nx, ny)
    albedo = mix(f.colour, 1.0, 0.3 * smooth(0.6, 0.0, f.radius))
    return Look(cover(distance, f.pixel), albedo)


def heart(f: Frame) -> Look:
    x, y = 0.6 * f.x.abs(), 0.54 - 0.6 * f.y
    lobe = ((x - 0.25) ** 2 + (y - 0.75) ** 2).sqrt() - math.sqrt(2) / 4
    fold = 0.5 * (x + y).clamp(min=0)
    lower = torch.minimum(x**2 + (y - 1) ** 2, (x - fold) ** 2 + (y - fold) ** 2).sqrt() * torch.sign(x - y)
    distance = torch.where(x + y > 1, lobe, lower) / 0.6
    return Look(cover(distance, f.pixel), f.colour.expand(-1, -1, *f.x.shape[-2:]), 0.7 * highlight(f, 0.5, 0.04))


def mushroom(f: Frame) -> Look:
    cap = torch.maximum(ellipse(f, 0, 0.02, 0.95, 0.85), f.y - 0.1)
    stem = torch.maximum(f.x.abs() - (0.25 + 0.08 * f.y), (f.y - 0.42).abs() - 0.5)
    albedo = mix(paint(f, (0.95, 0.9, 0.8)), f.colour, cover(cap, f.pixel))
    for x, y, size in ((-0.42, -0.25, 0.16), (0.12, -0.48, 0.18), (0.52, -0.18, 0.13)):
        albedo = mix(albedo, 1.0, spot(f, x, y, size))
    return Look(cover(torch.minimum(cap, stem), f.pixel), albedo, 0.25 * highlight(f, 0.6, 0.05))


def fish(f: Frame) -> Look:
    body = ellipse(f, -0.18, 0.0, 0.74, 0.48)
    tail = torch.maximum((f.y.abs() - 0.85 * (f.x - 0.25)) * 0.76, f.x - 0.95 + 0.25 * smooth(0.5, 0.0, f.y.abs()))
    albedo = mix(f.colour, 1.0, 0.45 * smooth(0.0, 0.45, f.y) * smooth(0.5, 0.2, f.x))
    albedo = albedo * (1 - 0.3 * smooth(0.04, -0.04, ellipse(f, 0.02, 0.08, 0.22, 0.12))).unsqueeze(1)
    albedo = mix(mix(albedo, 1.0, spot(f, -0.55, -0.1, 0.14)), 0.05, spot(f, -0.57, -0.1, 0.07))
    return Look(cover(torch.minimum(body, tail), f.pixel), albedo, 0.4 * highlight(f, 0.3, 0.03))


def flower(f: Frame) -> Look:
    petals = torch.cos(6 * angle(f))
    distance = (f.radius - (0.70 + 0.25 * petals)) * 0.6
    albedo = f.colour * (0.8 + 0.25 * f.radius + 0.06 * petals).unsqueeze(1)
    heart_of_it = cover(f.radius - 0.27, f.pixel)
    return Look(cover(distance, f.pixel), mix(albedo, paint(f, (0.99, 0.93, 0.7)), heart_of_it))


_DISC = ((0.0, 0.0), (-0.6, 0.0), (0.6, 0.0), (0.0, -0.6), (0.0, 0.6))
_SMALL = tuple((0.6 * x, 0.6 * y) for x, y in _DISC)

OBJECTS: tuple[Kind, ...] = (
    Kind(glass_ball, _DISC, shadow=0.6),
    Kind(soap_bubble, tuple((1.3 * x, 1.3 * y) for x, y in _DISC), shadow=0.25),
    Kind(flame, ((0.0, 0.3), (-0.25, 0.3), (0.25, 0.3), (0.0, 0.7), (0.0, 0.0)), emits=True, tilt=0.15),
    Kind(smoke_cloud, _SMALL, shadow=0.5),
    Kind(glow, _SMALL, emits=True),
    Kind(fur_ball, _DISC, tilt=0.15),
    Kind(feather, tuple((float(_feather_bend(y)), y) for y in (0.5, -0.7, -0.35, 0.0, 0.3)), shadow=0.7, tilt=0.6),
    Kind(star, ((0.0, 0.0), (0.0, -0.7), (0.66, -0.2), (-0.66, -0.2), (0.4, 0.55))),
    Kind(heart, ((0.0, 0.1), (-0.45, -0.3), (0.45, -0.3), (0.0, 0.6), (0.0, -0.1))),
    Kind(mushroom, ((0.0, -0.3), (-0.6, -0.1), (0.6, -0.1), (0.0, -0.7), (0.0, 0.6)), tilt=0.15),
    Kind(fish, ((-0.2, 0.0), (-0.75, 0.0), (0.55, 0.0), (-0.2, -0.35), (-0.2, 0.35))),
    Kind(flower, _SMALL, tilt=0.5),
)
"""In the order of `captions.KINDS`."""
