"""Decoding transparency well: several passes over the turned picture, at any size, in tiles where memory is short."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .protocols import Progress, no_progress
from .transparency import TransparencyDecoder

Passes = Literal[1, 2, 4, 8, "auto"]
Average = Literal["median", "mean"]
FACTOR = 8  # of the latent

# (mirrored, quarter turns), so that the first 2, 4 and 8 are even-handed.
TURNS = ((False, 0), (True, 2), (False, 2), (True, 0), (False, 1), (True, 3), (False, 3), (True, 1))
TOLERANCE, SHARE = 1 / 255, 0.999


class Decoded(NamedTuple):
    """Straight colour [B, 3, H, W] and alpha [B, 1, H, W] in 0 .. 1, and how many passes each picture took."""

    colour: Tensor
    alpha: Tensor
    passes: list[int]


def decode(
    network: TransparencyDecoder,
    image: Tensor,
    latent: Tensor,
    *,
    passes: Passes = 8,
    average: Average = "median",
    batch: int = 1,
    tile: int = 0,
    overlap: int = 128,
    progress: Progress = no_progress,
) -> Decoded:
    """Colour and alpha of pictures [B, 3, H, W] in 0 .. 1 of any size, given the unscaled latents [B, C, H/8, W/8] that
    they were decoded from (Latent Transparency, Eq. 3).

    A pass sees the picture mirrored and turned; `passes` of them are averaged by their mean or by the lower median that
    the released program takes. "auto" makes 2, 4 or 8: it stops when more would hardly change alpha and premultiplied
    colour. `batch` passes run at once, as memory allows.

    With `tile` above 0, larger pictures are decoded in tiles of that side which overlap by `overlap` pixels: in bounded
    memory, but approximately, since a tile does not see the rest of the picture. ValueError for what does not fit.
    """
    _check(network, image, latent, passes, tile, overlap)
    sides = [_tiles(side, tile, overlap, network.multiple) for side in image.shape[2:]]
    windows = [(top, left) for top in sides[0] for left in sides[1]]
    most = 8 if passes == "auto" else passes
    total, done, used, results = len(image) * len(windows) * most, 0, [], []
    for number in range(len(image)):
        pixels, code = image[number : number + 1].clamp(0, 1), latent[number : number + 1]
        out, weight, taken = torch.zeros_like(pixels[:, :1]).repeat(1, 4, 1, 1), torch.zeros_like(pixels[:, :1]), 0
        for top, left in windows:
            part = (..., top.pixels, left.pixels)

            def step(count: int, base: int = done) -> None:
                progress(base + count, total, None)

            here = code[..., top.cells, left.cells]
            estimate, count = _averaged(network, pixels[part], here, passes, average, batch, step)
            share = top.weight.to(out)[:, None] * left.weight.to(out)
            out[part] += estimate * share
            weight[part] += share
            taken, done = max(taken, count), done + most
        out /= weight
        results.append(out)
        used.append(taken)
        progress(done, total, (out[0, 1:] * out[0, :1] + 0.5 * (1 - out[0, :1])))
    joined = torch.cat(results)
    return Decoded(joined[:, 1:], joined[:, :1], used)


def _check(
    network: TransparencyDecoder, image: Tensor, latent: Tensor, passes: Passes, tile: int, overlap: int
) -> None:
    channels = network.latent_conv_in.in_channels
    if latent.ndim != 4 or latent.shape[1] != channels:
        raise ValueError(f"latent: expected [B, {channels}, h, w] for this decoder, got {tuple(latent.shape)}")
    size = tuple(side * FACTOR for side in latent.shape[2:])
    if tuple(image.shape) != (len(latent), 3, *size):
        raise ValueError(f"image: expected {(len(latent), 3, *size)} for this latent, got {tuple(image.shape)}")
    if passes not in (1, 2, 4, 8, "auto"):
        raise ValueError(f"passes: expected 1, 2, 4, 8 or 'auto', got {passes!r}")
    if tile and (tile % network.multiple or not 0 <= overlap <= tile // 2 or overlap % FACTOR):
        raise ValueError(
            f"tile: expected a multiple of {network.multiple}, and an overlap in multiples of {FACTOR} of at most half "
            f"of it, got {tile} and {overlap}"
        )


def _averaged(
    network: TransparencyDecoder, image: Tensor, latent: Tensor, passes: Passes, average: Average, batch: int, step
) -> tuple[Tensor, int]:
    """The averaged estimate [1, 4, H, W] of one picture, and the number of passes it took."""
    h, w = image.shape[2:]
    pad = [-h % network.multiple, -w % network.multiple]
    image = F.pad(image, (0, pad[1], 0, pad[0]), mode="replicate")
    latent = F.pad(latent, (0, pad[1] // FACTOR, 0, pad[0] // FACTOR), mode="replicate")
    seen: list[Tensor] = []
    made = _passes(network, image, latent, batch)
    for goal in (2, 4, 8) if passes == "auto" else (passes,):
        for each in islice(made, goal - len(seen)):
            seen.append(each[..., :h, :w].clamp(0, 1))
            step(len(seen))
        if goal < 8 and passes == "auto" and _settled(seen):
            break
    stack = torch.stack(seen)
    return stack.median(0).values if average == "median" else stack.mean(0), len(seen)


def _passes(network: TransparencyDecoder, image: Tensor, latent: Tensor, batch: int) -> Iterator[Tensor]:
    """The passes in the order of TURNS, each turned back. Those of one shape may run together."""
    at, device = 0, network.latent_conv_in.weight.device
    while at < len(TURNS):
        # 1, 2, 4 and 8 may each be the last: a batch does not reach beyond, nor from upright to lying.
        stop = next(goal for goal in (1, 2, 4, 8) if goal > at)
        some = TURNS[at : min(stop, at + max(1, batch))]
        turned = (torch.cat([turn(each, *how) for how in some]).to(device) for each in (image, latent))
        for out, how in zip(network(*turned).to(image.device).split(1), some, strict=True):
            yield turn_back(out, *how)
        at += len(some)


def turn(x: Tensor, mirrored: bool, quarters: int) -> Tensor:
    """Pictures or latents [B, C, H, W] mirrored, then turned by quarters to the left, as a pass sees them."""
    return torch.rot90(x.flip(3) if mirrored else x, quarters, (2, 3))


def turn_back(x: Tensor, mirrored: bool, quarters: int) -> Tensor:
    """The inverse of `turn`."""
    x = torch.rot90(x, -quarters, (2, 3))
    return x.flip(3) if mirrored else x


def _settled(seen: list[Tensor]) -> bool:
    """Would the estimate of all passes differ by less than TOLERANCE on a SHARE of the pixels? The spread of the passes
    so far tells: the mean of n lies from that of 8 by about their deviation times sqrt(1/n - 1/8)."""
    stack = torch.stack(seen)
    alpha = stack[:, :, :1]
    shown = torch.cat([alpha, stack[:, :, 1:] * alpha], 2)
    reach = shown.std(0) * (1 / len(seen) - 1 / 8) ** 0.5
    return bool((reach.amax(1) <= TOLERANCE).float().mean() >= SHARE)


class _Window(NamedTuple):
    """One side of a tile: its pixels, its latent's cells, and its share in the blend at each pixel."""

    pixels: slice
    cells: slice
    weight: Tensor


def _tiles(side: int, tile: int, overlap: int, multiple: int) -> list[_Window]:
    size = side if not tile or side <= tile else tile
    count = 1 if size == side else -(-(side - overlap) // (size - overlap))
    last = (side - size) // FACTOR
    starts = [round(last * k / max(1, count - 1)) * FACTOR for k in range(count)]
    windows = []
    for k, start in enumerate(starts):
        ramp = torch.ones(size)
        for edge, neighbour in ((0, k - 1), (1, k + 1)):
            if 0 <= neighbour < count:
                shared = size - abs(starts[neighbour] - start)
                rise = (torch.arange(size) + 0.5) / max(1, shared)
                ramp = torch.minimum(ramp, rise.flip(0) if edge else rise)
        windows.append(_Window(slice(start, start + size), slice(start // FACTOR, (start + size) // FACTOR), ramp))
    return windows
