"""What an inversion is for: the picture again, edited by another prompt, or on the way to a second picture."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .ddim import ddim_transfer
from .ddim_inversion import Preview, Watch, falling, previews
from .edict import edict_sample
from .interpolation import lerp, mix_conditions, slerp
from .inversion import Inversion, guided
from .protocols import Condition, LatentModel, Progress, no_progress


def reconstruct(
    model: LatentModel,
    inversion: Inversion,
    *,
    target: Condition | None = None,
    ratio: float = 0.8,
    progress: Progress = no_progress,
    preview: Preview | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Sample the inversion again: x_0 [B, C, h, w]. The model is the one it was made with (`check_same_model`).

    With `target`, the source prompt leads while t > T r and the target from t <= T r on, r = `ratio` (Smooth
    Diffusion, Eq. 15): 0 changes nothing, 1 follows the target from the start; null texts, residuals and the exact
    method's second chain go on as they were. `watch` is told the distance from the inversion's path, where it has one.
    ValueError unless 0 <= r <= 1.
    """
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio: expected 0 .. 1, got {ratio:g}")
    switch = len(model.schedule) * ratio

    def predict(step: int, x: Tensor, t: Tensor) -> Tensor:
        condition = inversion.condition if target is None or float(t) > switch else target
        return guided(model, x, t, condition, inversion.null_at(step), inversion.guidance)

    total, x = len(inversion.timesteps), inversion.noise.to(model.device)
    if inversion.twin is not None:
        return edict_sample(
            model.schedule,
            predict,
            x,
            inversion.twin.to(model.device),
            timesteps=inversion.timesteps,
            progress=progress,
            preview=preview,
        )
    show = previews(preview, total)
    for step, (t, s) in enumerate(falling(inversion.timesteps)):
        x = ddim_transfer(model.schedule, x, predict(step, x, t), t, s)
        if inversion.residuals is not None:
            x = x + inversion.residuals[step].to(x)
        if watch is not None and inversion.pivots is not None:
            miss = x - inversion.pivots[total - 1 - step].to(x)
            watch(step, miss.flatten(1).square().mean(1).sqrt().cpu())
        progress(step + 1, total, show(step + 1, x))
    return x


def between(pair: Inversion, alpha: Tensor) -> Inversion:
    """An inversion of the images between a pair's two, one for each of `alpha` [N] in 0 .. 1: noise by slerp, prompts,
    null texts and residuals straight (Smooth Diffusion, section 4.2). ValueError unless it holds two images."""
    if pair.batch != 2:
        raise ValueError(f"inversion: expected one of two images, got {pair.batch}; use Invert Pair")
    n = len(alpha)

    def arc(value: Tensor) -> Tensor:
        return slerp(value[:1].expand(n, *value.shape[1:]), value[1:].expand(n, *value.shape[1:]), alpha)

    def line(value: Tensor) -> Tensor:
        """[k, 2, ...] -> [k, N, ...]; what both images share, [k, 1, ...], stays."""
        if value.shape[1] == 1:
            return value
        a, b = value[:, :1].transpose(0, 1), value[:, 1:].transpose(0, 1)  # 1 k ...
        return lerp(a.expand(n, *a.shape[1:]), b.expand(n, *b.shape[1:]), alpha).transpose(0, 1)

    def prompt(value: Condition) -> Condition:
        first, second = (_row(value, k) for k in (0, -1))
        return value if value.embedding.shape[0] == 1 else mix_conditions(first, second, alpha)

    same = pair.null is pair.condition
    condition = prompt(pair.condition)
    return replace(
        pair,
        condition=condition,
        null=condition if same else prompt(pair.null),
        x_0=arc(pair.x_0),
        noise=arc(pair.noise),
        twin=None if pair.twin is None else arc(pair.twin),
        nulls=None if pair.nulls is None else line(pair.nulls),
        residuals=None if pair.residuals is None else line(pair.residuals),
        pivots=None,
        reconstructed=None,
        losses=torch.zeros(len(pair.timesteps), n),
    )


def _row(condition: Condition, row: int) -> Condition:
    at = slice(-1, None) if row == -1 else slice(row, row + 1)
    pooled = None if condition.pooled is None else condition.pooled[at]
    return Condition(condition.embedding[at], pooled, condition.extras)
