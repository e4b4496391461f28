"""Pairs of layers out of transparent pictures: the recipe of the data set of foregrounds and backgrounds.

(Latent Transparency, section 3.3.) Around the object a scene is painted that fits it; then the object is painted out
with a prompt of the kind "nothing in ...". What is left are an object and the background it would stand before. Any
text-to-image model will do: what is known is put back, as noisy as the rest, at every step (Lugmayr et al. 2022).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.alpha import over, pad_rgb
from ..core.ddim import ddim_transfer
from ..core.guidance import guide
from ..core.protocols import Condition, LatentCodec, LatentModel, Progress, no_progress

ERODED, ERODED_AT = 8, 1024
"""By how many pixels what is kept shrinks, in pictures of what side; others in proportion."""


class LayerPair(NamedTuple):
    """Pictures [B, 3, H, W] in 0 .. 1: the scene with the object, and what lies behind the object."""

    scene: Tensor
    background: Tensor


def make_pairs(
    model: LatentModel,
    codec: LatentCodec,
    colour: Tensor,
    alpha: Tensor,
    scene: Condition,
    nothing: Condition,
    null: Condition,
    *,
    w: float = 7.5,
    timesteps: Tensor,
    generator: torch.Generator,
    progress: Progress = no_progress,
) -> LayerPair:
    """A background for each object, straight `colour` [B, 3, H, W] and `alpha` [B, 1, H, W] in 0 .. 1.

    `scene` says the object and its place, `nothing` the place with nothing in it; each has one row or B. `timesteps`
    fall. ValueError if an object has no opaque or half opaque pixel: nothing of it could be kept.
    """
    solid = (alpha > 0.5).to(alpha)
    if not bool(solid.flatten(1).any(1).all()):
        raise ValueError("alpha: expected objects with pixels of more than half opacity; one has none")
    steps = len(timesteps)
    # Soft parts show what is behind them, which is not known yet: they are kept over a middle grey, and painted anew.
    before = over(pad_rgb(colour, alpha), alpha, torch.full_like(colour, 0.5))[0]
    around = _inpaint(
        model, codec, before, solid, scene, null, w, timesteps, generator, lambda n, _, p: progress(n, 2 * steps, p)
    )
    whole = over(colour, alpha, around)[0]
    away = shrunk((alpha < 0.01).to(alpha))
    behind = _inpaint(
        model, codec, whole, away, nothing, null, w, timesteps, generator,
        lambda n, _, p: progress(steps + n, 2 * steps, p),
    )  # fmt: skip
    return LayerPair(over(colour, alpha, behind)[0], behind)


def shrunk(mask: Tensor, pixels: int | None = None) -> Tensor:
    """A mask [B, 1, H, W] of 0 and 1, eroded by so many pixels; 8 at a side of 1024 where it is not said. Outside the
    picture it goes on."""
    if pixels is None:
        pixels = max(1, round(ERODED * max(mask.shape[2:]) / ERODED_AT))
    return 1 - F.max_pool2d(1 - mask, 2 * pixels + 1, 1, pixels)


@torch.no_grad()
def _inpaint(
    model: LatentModel, codec: LatentCodec, picture: Tensor, kept: Tensor, condition: Condition, null: Condition,
    w: float, timesteps: Tensor, generator: torch.Generator, progress: Progress,
) -> Tensor:  # fmt: skip
    """The picture [B, 3, H, W] in 0 .. 1, painted anew where `kept` [B, 1, H, W] is 0."""
    known = codec.encode(picture * 2 - 1)
    # A cell of the latent is known where all its pixels are.
    cells = 1 - F.max_pool2d(1 - kept, codec.factor).to(known)
    noise = torch.randn(known.shape, generator=generator).to(known)
    schedule, x = model.schedule, noise
    ends = torch.cat([timesteps[1:], timesteps.new_tensor([-1])])
    for step, (t, s) in enumerate(zip(timesteps, ends, strict=True)):
        x = torch.lerp(x, schedule.add_noise(known, noise, t), cells)
        at = t.expand(len(x)).to(x.device)
        eps = model.predict_noise(x, at, condition)
        if w != 1:
            eps = guide(model.predict_noise(x, at, null), eps, w)
        x = ddim_transfer(schedule, x, eps, t, s)
        progress(step + 1, len(timesteps), None)
    made = (codec.decode(torch.lerp(x, known, cells)).to(picture) + 1) / 2
    return torch.lerp(made, picture, kept)
