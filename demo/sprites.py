"""The Sprites world: scenes with exact captions, alpha, layers, key points and a semantic map.

A scene is a pure function of (seed, index): its random numbers are a hash of both, so a sample is the same whatever
batch it is drawn in, on any device. Everything is analytic and drawn for many samples at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import captions
from .backgrounds import PLACES, Place
from .objects import OBJECTS, PALETTE, Frame, Kind, Look

CHUNK = 32  # samples drawn together: keeps a chunk's pictures in the processor's cache
SEMANTIC_CLASSES = ("far", "ground", *captions.KINDS)
_NUMBERS = 24


@dataclass(frozen=True)
class Scenes:
    """B scenes of side S. Pictures are float32 in 0 .. 1.

    `foreground` is the object in white light and `lit_foreground` in the background's, both straight RGBA [B, 4, S,
    S] whose colour continues beyond the silhouette; `shade` [B, 3, S, S] is what the object does to the light on the
    background (a shadow below 1, its own light above); `blend` = lit_foreground over (background * shade). `points`
    [B, 5, 2] are (x, y) in pixels inside the object; `semantic` [B, S, S] indexes SEMANTIC_CLASSES.
    """

    kind: Tensor
    colour: Tensor
    place: Tensor
    side: Tensor
    captions: list[str]
    foreground_captions: list[str]
    background_captions: list[str]
    foreground: Tensor
    lit_foreground: Tensor
    background: Tensor
    shade: Tensor
    blend: Tensor
    points: Tensor
    semantic: Tensor


def draw(
    seed: int,
    indices: Sequence[int] | Tensor,
    size: int = 128,
    *,
    kind: int | None = None,
    colour: int | None = None,
    place: int | None = None,
    side: int | None = None,
    device: torch.device | str = "cpu",
) -> Scenes:
    """The scenes of these indices. `kind`, `colour`, `place` and `side` pin an attribute; the rest of a scene stays.

    ValueError if the size is not positive, nothing is asked for, or a pinned attribute is out of range.
    """
    indices = torch.as_tensor(indices, dtype=torch.long)
    if size < 8 or indices.numel() == 0 or indices.ndim != 1:
        raise ValueError(f"draw: expected size >= 8 and a list of indices, got {size} and shape {tuple(indices.shape)}")
    u = uniform(seed, indices, _NUMBERS)
    pinned = (("kind", kind, OBJECTS), ("colour", colour, PALETTE), ("place", place, PLACES), ("side", side, (0, 1)))
    attributes = []
    for column, (name, value, choices) in enumerate(pinned):
        if value is not None and not 0 <= value < len(choices):
            raise ValueError(f"{name}: expected 0 .. {len(choices) - 1}, got {value}")
        drawn = (u[:, column] * len(choices)).long()
        attributes.append(drawn if value is None else torch.full_like(drawn, value))
    # Chunks are drawn straight into their place: joining them afterwards took two fifths of the time.
    pictures = [torch.empty(len(indices), *shape, device=device, dtype=kind) for shape, kind in _pictures(size)]
    for at in range(0, len(indices), CHUNK):
        part = slice(at, at + CHUNK)
        _chunk(u[part].to(device), [a[part] for a in attributes], [picture[part] for picture in pictures], size)
    rows = list(zip(*(a.tolist() for a in attributes), (u[:, 4] * captions.TEMPLATES).long().tolist(), strict=True))
    fields: list[Any] = [
        *(a.to(device) for a in attributes),
        [captions.caption(*row) for row in rows],
        [captions.foreground_caption(k, c) for k, c, *_ in rows],
        [captions.background_caption(p, s) for _, _, p, s, _ in rows],
        *pictures,
    ]
    return Scenes(*fields)


def uniform(seed: int, indices: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 [N, count]: the SplitMix64 hash of (seed, index, column)."""
    state = _scramble(_scramble(torch.tensor(seed, dtype=torch.long)) + indices.long().cpu()[:, None])
    bits = _scramble(state + torch.arange(count) * -7046029254386353131)
    return ((bits >> 40) & 0xFFFFFF).to(torch.float32) / 2.0**24


def _scramble(z: Tensor) -> Tensor:
    z = z + -7046029254386353131
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def _pictures(size: int) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """Shape and dtype of foreground, lit_foreground, background, shade, blend, points, semantic."""
    shapes = [(4, size, size), (4, size, size), (3, size, size), (3, size, size), (3, size, size), (5, 2)]
    return [*((shape, torch.float32) for shape in shapes), ((size, size), torch.long)]


def _chunk(u: Tensor, attributes: list[Tensor], pictures: list[Tensor], size: int) -> None:
    """Draw some scenes into `pictures`, in the order of `_pictures`."""
    foreground, lit, background, shade, blend, points, semantic = pictures
    kind, colour, place, side = attributes
    n, device = len(u), u.device
    grid = (torch.arange(size, device=device) + 0.5) / size
    ground = torch.empty(n, size, size, device=device)
    for value in place.unique().tolist():
        rows = torch.nonzero(place == value)[:, 0].to(device)
        x = torch.where(side.to(device)[rows, None] == 1, 1 - grid, grid)[:, None, :].expand(-1, size, -1)
        image, low = PLACES[value].draw(Place(x, grid.view(1, -1, 1).expand(1, size, size), u[rows, 14:], 1 / size))
        background[rows], ground[rows] = image.clamp(0, 1), low.expand(-1, size, size)

    tint, direction, strength = _light(place, side, device)
    hue = torch.tensor(PALETTE, device=device)[colour.to(device)].view(n, 3, 1, 1)

    centre_x, centre_y, radius, tilts = _pose(u, kind).to(device).unbind(1)
    shade[:] = _shade(grid, kind, hue, direction, radius, centre_x, centre_y)
    for value in kind.unique().tolist():
        rows = torch.nonzero(kind == value)[:, 0].to(device)
        what = OBJECTS[value]
        tilt = tilts[rows]
        x, y = (
            _own(grid, centre_x[rows], radius[rows])[:, None, :],
            _own(grid, centre_y[rows], radius[rows])[:, :, None],
        )
        frame = _frame(x, y, tilt, 1 / (radius[rows] * size), u[rows, 9:], direction[rows], hue[rows])
        look = what.draw(frame)
        facing = _facing(frame)
        foreground[rows] = _colour(what, look, facing, 1.0, torch.tensor([[0.66, 0.40]], device=device))
        lit[rows] = _colour(what, look, facing, tint[rows], strength[rows])
        points[rows] = size * _place_points(what, tilt, radius[rows], centre_x[rows], centre_y[rows])
    torch.lerp((background * shade).clamp_(0, 1), lit[:, :3], lit[:, 3:], out=blend)
    semantic[:] = ground > 0.5
    shown = foreground[:, 3] >= 0.25
    torch.where(shown, kind.to(device)[:, None, None] + 2, semantic, out=semantic)


def _pose(u: Tensor, kind: Tensor) -> Tensor:
    """Centre x and y, radius (parts of the side) and tilt of each object: [n, 4]."""
    limit = torch.tensor([OBJECTS[value].tilt for value in kind.tolist()], device=u.device)
    x, y = 0.5 + 0.20 * (u[:, 6] - 0.5), 0.46 + 0.10 * (u[:, 7] - 0.5)
    return torch.stack([x, y, 0.24 + 0.08 * u[:, 5], limit * (2 * u[:, 8] - 1)], 1)


def _own(grid: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
    """One object coordinate of each pixel, before the tilt: [n, S]."""
    return (grid[None] - centre[:, None]) / radius[:, None]


def _light(place: Tensor, side: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    """Each place's light: tint [n, 3, 1, 1], direction [n, 2], ambient and diffuse strength [n, 2]."""
    lights = [PLACES[value].light for value in place.tolist()]
    tint = torch.tensor([light.tint for light in lights], device=device).view(-1, 3, 1, 1)
    direction = torch.tensor([light.direction for light in lights], device=device)
    direction[:, 0] *= 1 - 2 * side.to(device)
    return tint, direction, torch.tensor([(light.ambient, light.diffuse) for light in lights], device=device)


def pose(seed: int, index: int) -> Tensor:
    """Where a scene's object is: centre x and y and radius as parts of the side, and tilt in radians, [4]."""
    u = uniform(seed, torch.tensor([index]), _NUMBERS)
    return _pose(u, (u[:, 0] * len(OBJECTS)).long())[0]


def posed(
    seed: int, index: int, poses: Tensor, size: int = 128, *, place: int | None = None, side: int | None = None
) -> tuple[Tensor, Tensor]:
    """A scene's object in other `poses` [N, 4] (as `pose` gives them), in its place's light or another's: straight RGBA
    [N, 4, S, S] and its points [N, 5, 2] in pixels."""
    kind, colour, place_, side_ = attributes(seed, index, place=place, side=side)
    u = uniform(seed, torch.tensor([index]), _NUMBERS).expand(len(poses), -1)
    what, hue = OBJECTS[int(kind)], torch.tensor(PALETTE[int(colour)]).view(1, 3, 1, 1).expand(len(poses), -1, -1, -1)
    tint, direction, strength = (each.expand(len(poses), *each.shape[1:]) for each in _light(place_, side_, "cpu"))
    centre_x, centre_y, radius, tilt = poses.unbind(1)
    grid = (torch.arange(size) + 0.5) / size
    x, y = _own(grid, centre_x, radius)[:, None, :], _own(grid, centre_y, radius)[:, :, None]
    frame = _frame(x, y, tilt, 1 / (radius * size), u[:, 9:], direction, hue)
    rgba = _colour(what, what.draw(frame), _facing(frame), tint, strength)
    return rgba, size * _place_points(what, tilt, radius, centre_x, centre_y)


def attributes(seed: int, index: int, *, place: int | None = None, side: int | None = None) -> tuple[Tensor, ...]:
    """A scene's kind, colour, place and side, [1] each; a place or side that is given stands in its stead."""
    u = uniform(seed, torch.tensor([index]), _NUMBERS)
    drawn = [(u[:, k] * n).long() for k, n in enumerate((len(OBJECTS), len(PALETTE), len(PLACES), 2))]
    for column, value in ((2, place), (3, side)):
        if value is not None:
            drawn[column] = torch.tensor([value])
    return tuple(drawn)


def posed_shade(seed: int, index: int, pose: Tensor, place: int, side: int, size: int = 128) -> Tensor:
    """What a scene's object in another pose [4], in another place, does to the light there: [3, S, S]."""
    kind, colour, place_, side_ = attributes(seed, index, place=place, side=side)
    hue = torch.tensor(PALETTE)[colour].view(1, 3, 1, 1)
    grid, (x, y, radius) = (torch.arange(size) + 0.5) / size, (each[None] for each in pose[:3])
    return _shade(grid, kind, hue, _light(place_, side_, "cpu")[1], radius, x, y)[0]


def ground(seed: int, index: int, size: int = 128) -> Tensor:
    """Where a scene's ground is, its object away: [S, S] of booleans."""
    place, side = attributes(seed, index)[2:]
    u = uniform(seed, torch.tensor([index]), _NUMBERS)[:, 14:]
    grid = (torch.arange(size) + 0.5) / size
    x, y = (1 - grid if side else grid).expand(1, size, size), grid.view(1, -1, 1).expand(1, size, size)
    return PLACES[int(place)].draw(Place(x, y, u, 1 / size))[1].expand(-1, size, size)[0] > 0.5


def _frame(x: Tensor, y: Tensor, tilt: Tensor, pixel: Tensor, u: Tensor, light: Tensor, hue: Tensor) -> Frame:
    """Object coordinates: turned back by the tilt. x [n, 1, W], y [n, H, 1]."""
    cos, sin = tilt.cos()[:, None, None], tilt.sin()[:, None, None]
    lx, ly = light[:, :1, None], light[:, 1:, None]
    turned_x, turned_y = cos * x + sin * y, cos * y - sin * x
    radius = (x**2 + y**2).sqrt()
    return Frame(turned_x, turned_y, radius, pixel[:, None, None], u, cos * lx + sin * ly, cos * ly - sin * lx, hue)


def _facing(f: Frame) -> Tensor:
    """How much the surface faces the light, 0 .. 1, as on a dome."""
    return (0.5 + 0.5 * (f.x * f.light_x + f.y * f.light_y)).clamp(0, 1)


def _colour(what: Kind, look: Look, facing: Tensor, tint: Tensor | float, strength: Tensor) -> Tensor:
    """RGBA of an object under a light. One that emits light keeps its own colour."""
    colour = look.albedo
    if not what.emits:
        level = strength[:, :1, None] + strength[:, 1:, None] * facing
        colour = colour * (level.unsqueeze(1) * tint)
    if look.gloss is not None:
        colour = colour + look.gloss.unsqueeze(1) * (0.9 * tint)
    return torch.cat([colour.clamp(0, 1), look.alpha.unsqueeze(1)], 1)


def _shade(
    grid: Tensor, kind: Tensor, hue: Tensor, light: Tensor, radius: Tensor, centre_x: Tensor, centre_y: Tensor
) -> Tensor:
    """The soft ellipse below the object: its shadow away from the light, or the pool of its own light. [n, 3, S,
    S]."""
    emits = torch.tensor([OBJECTS[k].emits for k in kind.tolist()], device=grid.device)
    weight = torch.tensor([OBJECTS[k].shadow for k in kind.tolist()], device=grid.device)
    shift = torch.where(emits, 0.0, -0.45 * light[:, 0] * radius)
    x = (grid[None] - (centre_x + shift)[:, None]) / (0.75 * radius[:, None])
    y = (grid[None] - (centre_y + 1.06 * radius)[:, None]) / (0.17 * radius[:, None] + 0.01)
    pool = torch.exp(-0.5 * (x**2)[:, None, :]) * torch.exp(-0.5 * (y**2)[:, :, None])
    pull = torch.where(emits[:, None, None, None], 0.55 * hue, -0.55 * weight.view(-1, 1, 1, 1))
    return 1 + pull * pool.unsqueeze(1)


def _place_points(what: Kind, tilt: Tensor, radius: Tensor, centre_x: Tensor, centre_y: Tensor) -> Tensor:
    """The kind's points in the picture, 0 .. 1, [n, 5, 2]."""
    own = torch.tensor(what.points, device=tilt.device)
    cos, sin, r = tilt.cos()[:, None], tilt.sin()[:, None], radius[:, None]
    x = centre_x[:, None] + r * (cos * own[:, 0] - sin * own[:, 1])
    y = centre_y[:, None] + r * (sin * own[:, 0] + cos * own[:, 1])
    return torch.stack([x, y], -1)
