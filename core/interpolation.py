"""Ways between latents and between conditions: spherical and straight, of two or of many key frames."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from .protocols import Condition

Mode = Literal["slerp", "lerp"]
Easing = Literal["linear", "smooth"]
LONGEST = 4  # conditions are tiled to at most this many times the longer one


def slerp(a: Tensor, b: Tensor, alpha: float | Tensor, *, keep_norm: bool = True) -> Tensor:
    """The great arc from a to b [B, ...] at `alpha` in 0 .. 1 (a number or [B]), each sample as one vector: [B, ...].

    With `keep_norm` the direction turns at constant speed and the norm goes straight from |a| to |b|. Without it,
    Shoemake's formula on the vectors as they are: sin((1 - alpha) W) / sin W a + sin(alpha W) / sin W b, W the angle.
    Equal directions go straight; opposite ones turn through a fixed perpendicular; a zero vector has no direction, and
    its way is straight. Computed in float64, returned in a's dtype. ValueError if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"slerp: expected two tensors of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    u, v = a.flatten(1).double(), b.flatten(1).double()
    at = _column(alpha, u)
    norm_u, norm_v = u.norm(dim=1, keepdim=True), v.norm(dim=1, keepdim=True)
    from_, to = u / norm_u, v / norm_v
    across, angle = _arc(from_, to)
    if keep_norm:
        turned = (at * angle).cos() * from_ + (at * angle).sin() * across
        way = ((1 - at) * norm_u + at * norm_v) * turned
    else:
        way = (((1 - at) * angle).sin() * u + (at * angle).sin() * v) / angle.sin()
        # Where sin W vanishes the formula has no value; the turn below is its limit for equal directions.
        turned = (at * angle).cos() * u + (at * angle).sin() * across * norm_u
        way = torch.where(angle.sin().abs() < 1e-7, turned, way)
    straight = (1 - at) * u + at * v
    way = torch.where((norm_u == 0) | (norm_v == 0), straight, way)
    way = torch.where(at == 0, u, torch.where(at == 1, v, way))  # no rounding at the ends
    return way.reshape(a.shape).to(a)


def _arc(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors [B, D] -> the unit vector perpendicular to u towards v, and the angle [B, 1] in 0 .. pi."""
    along = (u * v).sum(1, keepdim=True)
    across = v - along * u
    length = across.norm(dim=1, keepdim=True)
    angle = torch.atan2(length, along)
    # Opposite vectors do not say which way to turn. One direction for all: the way back is the same way.
    fixed = torch.randn(u.shape[1], generator=torch.Generator().manual_seed(0), dtype=u.dtype).to(u.device)
    fixed = fixed - (u * fixed).sum(1, keepdim=True) * u
    lost = length < 1e-9
    across = torch.where(lost, fixed / fixed.norm(dim=1, keepdim=True).clamp(min=1e-300), across / length)
    return across, angle


def lerp(a: Tensor, b: Tensor, alpha: float | Tensor) -> Tensor:
    """(1 - alpha) a + alpha b for [B, ...] and `alpha` a number or [B], in float64, returned in a's dtype."""
    u, v = a.flatten(1).double(), b.flatten(1).double()
    at = _column(alpha, u)
    return ((1 - at) * u + at * v).reshape(a.shape).to(a)


def _column(alpha: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(alpha, dtype=like.dtype, device=like.device).reshape(-1, 1)


def eased(count: int, easing: Easing = "linear") -> Tensor:
    """`count` places from 0 to 1, float64: evenly, or slow at both ends (3u^2 - 2u^3). One place is 0."""
    if count < 1:
        raise ValueError(f"frames: expected at least 1, got {count}")
    u = torch.linspace(0, 1, count, dtype=torch.float64)
    return u if easing == "linear" else u * u * (3 - 2 * u)


def places_on_path(lengths: Tensor, count: int, easing: Easing = "linear", loop: bool = False) -> tuple[Tensor, Tensor]:
    """`count` places at equal distances along segments of these lengths [K]: (segment [N] long, place in it [N]).

    With `loop`, the path is closed and its end, which is its start, is left out.
    """
    ends = torch.cat([lengths.new_zeros(1), lengths.double().cumsum(0)])
    if float(ends[-1]) == 0:
        ends = torch.arange(len(lengths) + 1, dtype=torch.float64)
    at = eased(count + 1, easing)[:-1] if loop else eased(count, easing)
    at = at * ends[-1]
    segment = (torch.searchsorted(ends, at, right=True) - 1).clamp(0, len(lengths) - 1)
    width = (ends[segment + 1] - ends[segment]).clamp(min=1e-300)
    return segment, ((at - ends[segment]) / width).clamp(0, 1)


def latent_path(
    keys: Tensor,
    count: int,
    *,
    mode: Mode = "slerp",
    easing: Easing = "linear",
    keep_norm: bool = True,
    loop: bool = False,
) -> Tensor:
    """`count` latents through the key frames [K, ...], equal arcs apart (angles for slerp, distances for lerp).

    The first and last are the first and last key frame (with `loop`, the path leads back to the first). ValueError
    unless there are at least two key frames.
    """
    if len(keys) < 2:
        raise ValueError(f"latents: a path needs at least 2 key frames, got {len(keys)}")
    a, b = (keys, keys.roll(-1, 0)) if loop else (keys[:-1], keys[1:])
    segment, at = places_on_path(_lengths(a, b, mode), count, easing, loop)
    segment, at = segment.to(keys.device), at.to(keys.device)
    if mode == "lerp":
        return lerp(a[segment], b[segment], at)
    return slerp(a[segment], b[segment], at, keep_norm=keep_norm)


def _lengths(a: Tensor, b: Tensor, mode: Mode) -> Tensor:
    u, v = a.flatten(1).double(), b.flatten(1).double()
    if mode == "lerp":
        return (u - v).norm(dim=1).cpu()
    nu, nv = u.norm(dim=1, keepdim=True), v.norm(dim=1, keepdim=True)
    angle = _arc(u / nu, v / nv)[1]
    return torch.where((nu == 0) | (nv == 0), torch.zeros_like(angle), angle)[:, 0].cpu()


def same_length(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two embeddings [B, L, D] brought to one L, for mixing.

    Each is repeated as a whole up to the least common multiple: attention over a sequence said twice is exactly
    attention over it said once, so neither prompt changes its meaning (ComfyUI's prompts are whole windows of 77, so
    one is a multiple of the other or nearly so). Where that would be too long, the shorter repeats its last token.
    """
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"conditioning: the two are of different text encoders (widths {a.shape[-1]} and {b.shape[-1]})"
        )
    la, lb = a.shape[1], b.shape[1]
    common = math.lcm(la, lb)
    if common <= LONGEST * max(la, lb):
        return a.repeat(1, common // la, 1), b.repeat(1, common // lb, 1)
    return _filled(a, max(la, lb)), _filled(b, max(la, lb))


def _filled(embedding: Tensor, length: int) -> Tensor:
    missing = length - embedding.shape[1]
    return torch.cat([embedding, embedding[:, -1:].expand(-1, missing, -1)], 1)


def mix_conditions(a: Condition, b: Condition, alpha: float | Tensor, mode: Mode = "lerp") -> Condition:
    """The condition between a and b, 1 or B rows each, at `alpha`, a number or [N]: N rows, or as many as they have.

    "lerp" mixes the embeddings; "slerp" turns each token's and keeps its length. Pooled vectors likewise, where both
    have one. Extras are a's up to the middle (at alpha's mean) and b's beyond. ValueError if the widths differ.
    """
    at = torch.as_tensor(alpha, dtype=torch.float64).reshape(-1)
    rows = max(len(at), a.embedding.shape[0], b.embedding.shape[0])
    at = at.expand(rows) if len(at) == 1 else at
    if (a.pooled is None) != (b.pooled is None):
        raise ValueError("conditioning: only one of the two has a pooled vector; use one text encoder for both")
    u, v = (_rows(each, rows) for each in same_length(a.embedding, b.embedding))
    tokens = u.shape[1]
    if mode == "slerp":
        each = at.repeat_interleave(tokens).to(u.device)
        mixed = slerp(u.flatten(0, 1), v.flatten(0, 1), each).unflatten(0, (rows, tokens))
    else:
        mixed = lerp(u, v, at.to(u.device))
    pooled = None
    if a.pooled is not None and b.pooled is not None:
        blend = slerp if mode == "slerp" else lerp
        pooled = blend(_rows(a.pooled, rows), _rows(b.pooled, rows), at.to(u.device))
    return Condition(mixed, pooled, a.extras if float(at.mean()) <= 0.5 else b.extras)


def _rows(value: Tensor, rows: int) -> Tensor:
    if value.shape[0] not in (1, rows):
        raise ValueError(f"conditioning: expected 1 or {rows} rows, got {value.shape[0]}")
    return value.expand(rows, *value.shape[1:])
