"""Null-text inversion: the unconditional embedding of each step optimised until guided sampling follows the pivots
(Mokady et al. 2023; Smooth Diffusion, Eq. 5, 19), for one image or with one series for several (Eq. 20).

With guidance w, a step lands on its pivot where eps(null) = eps_wanted, and eps_wanted = eps(prompt) + (eps(prompt) -
eps_pivot) / (w - 1) is close to the prompt's own prediction. Hence the start: the prompt's embedding, whose prediction
is there already. What is left is a least-squares problem in the embedding, small and nearly linear, so Gauss-Newton
with a few conjugate gradients takes the place of the published ten steps of Adam; and only where it matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .ddim_inversion import Preview, Watch, falling, previews, unwatched
from .guidance import guide
from .protocols import Condition, LatentModel, Progress, no_progress

NUDGE = 0.02
"""Relative size of the difference that measures a directional derivative: well above half precision's rounding."""


class NullTexts(NamedTuple):
    """`null`, the null condition whose embedding is replaced by each of `series` [n, R, L, D] float32, R = 1 if shared;
    `losses` [n, B], the RMS distance of each step's result from its pivot; `x_0` [B, C, h, w], where the sampling ends;
    `optimised`, how many steps were."""

    null: Condition
    series: Tensor
    losses: Tensor
    x_0: Tensor
    optimised: int


@dataclass(frozen=True)
class Step:
    """One step's problem: find an embedding whose predicted noise at (x, t) is `wanted` [B, C, h, w]."""

    model: LatentModel
    null: Condition
    x: Tensor
    t: Tensor
    wanted: Tensor
    scale: float  # of an error in eps, as an error of the step's result

    def predict(self, embedding: Tensor) -> Tensor:
        """eps at this step for null embeddings [R, L, D], R = 1 or B."""
        rows = embedding.expand(self.x.shape[0], -1, -1)
        return self.model.predict_noise(self.x, self.t, self.null.with_embedding(rows))

    def error(self, eps: Tensor) -> Tensor:
        """RMS error of the step's result [B] if this is the predicted noise."""
        return self.scale * (eps - self.wanted).flatten(1).square().mean(1).sqrt()


def null_text(
    model: LatentModel,
    pivots: Tensor,
    condition: Condition,
    start: Condition,
    *,
    timesteps: Tensor,
    w: float,
    shared: bool = False,
    tolerance: float = 0.005,
    iterations: int = 3,
    progress: Progress = no_progress,
    preview: Preview | None = None,
    watch: Watch = unwatched,
) -> NullTexts:
    """The null embeddings with which sampling from pivots[n] at guidance `w` follows `pivots` [n + 1, B, C, h, w].

    `start` is the null condition to begin with: `condition` itself (the same object) saves an evaluation a step; an
    empty prompt's is the published choice. `shared` finds one embedding for all B images. A step is optimised where
    its result would miss its pivot by more than `tolerance` (RMS, latents of unit size), by at most `iterations`
    conjugate gradients; the best embedding met is kept. Optimised in float32 whatever the weights are.
    """
    batch, total = pivots.shape[1], len(timesteps)
    rows = 1 if shared else batch
    alike = bool((condition.embedding == condition.embedding[:1]).all())
    free = start is condition and (not shared or alike)
    start = _mean(start) if shared else start
    first = start.embedding.to(torch.promote_types(start.embedding.dtype, torch.float32)).expand(rows, -1, -1)
    null, x, warm = first, pivots[-1], None
    series, losses, optimised = [], [], 0
    show = previews(preview, total)
    for i, (t, s) in enumerate(falling(timesteps)):
        at, target = t.expand(batch).to(x.device), pivots[total - 1 - i]
        carry, push = _step_factors(model, x, t, s)
        eps_cond = model.predict_noise(x, at, condition)
        null, eps = (first, eps_cond) if free else (null, None)
        if w != 1:
            wanted = ((target - carry * x) / push - w * eps_cond) / (1 - w)
            step = Step(model, start, x, at, wanted, abs((w - 1) * push))
            eps = step.predict(null) if eps is None else eps
            if warm is not None and free and _misses(step, eps, tolerance):
                null, eps = _better(step, (null, eps), (warm, step.predict(warm)), shared)
            if _misses(step, eps, tolerance):
                moved = _gauss_newton(step, null, iterations, tolerance / 2, lambda i=i: progress(i, total, None))
                null, eps = _better(step, (null, eps), (moved, step.predict(moved)), shared)
                warm, optimised = null, optimised + 1
        x = carry * x + push * (eps_cond if eps is None else guide(eps, eps_cond, w))
        series.append(null.detach().cpu())
        losses.append((x - target).flatten(1).square().mean(1).sqrt().cpu())
        watch(i, losses[-1])
        progress(i + 1, total, show(i + 1, x))
    return NullTexts(start, torch.stack(series), torch.stack(losses).float(), x, optimised)


def _mean(condition: Condition) -> Condition:
    """The mean of the rows, as one row."""
    pooled = None if condition.pooled is None else condition.pooled.mean(0, keepdim=True)
    return Condition(condition.embedding.mean(0, keepdim=True), pooled, condition.extras)


def _step_factors(model: LatentModel, x: Tensor, t: Tensor, s: Tensor) -> tuple[float, float]:
    """a, b of a DDIM step x_s = a x_t + b eps."""
    signal_t, noise_t = (float(v) for v in model.schedule.signal_and_noise(t, x.new_zeros(1, dtype=torch.float64)))
    signal_s, noise_s = (float(v) for v in model.schedule.signal_and_noise(s, x.new_zeros(1, dtype=torch.float64)))
    return signal_s / signal_t, noise_s - signal_s / signal_t * noise_t


def _misses(step: Step, eps: Tensor, tolerance: float) -> bool:
    return bool((step.error(eps) > tolerance).any())


def _better(step: Step, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor], shared: bool) -> tuple[Tensor, Tensor]:
    """The pair (embedding, eps) with the smaller error: for each image, or for all together if they share it."""
    before, after = step.error(old[1]) ** 2, step.error(new[1]) ** 2
    if shared:
        return new if bool(after.sum() < before.sum()) else old
    choose = after < before
    pick = [torch.where(choose.reshape(-1, *(1,) * (b.ndim - 1)), b, a) for a, b in zip(old, new, strict=True)]
    return pick[0], pick[1]


def _gauss_newton(step: Step, null: Tensor, iterations: int, enough: float, check: Callable[[], None]) -> Tensor:
    """The embedding [R, L, D] after one Gauss-Newton step, its linear problem solved by `iterations` of CGLS.

    J^T comes from one backward pass each (the graph is kept), J from a difference of two forward passes, which no host
    needs forward-mode derivatives for. `check` is called before each iteration and may raise the host's interruption.
    """
    model, shared = step.model, null.shape[0] == 1
    with model.differentiable():
        base = null.detach().clone().requires_grad_(True)
        eps = step.predict(base)
        if not eps.requires_grad:
            raise ValueError("model: its noise prediction has no gradient with respect to the prompt's embedding")
        error = (step.wanted - eps).detach().clone()
        move = torch.zeros_like(base)
        gradient = torch.autograd.grad(eps, base, error, retain_graph=True)[0]
        way, size = gradient, _dot(gradient, gradient, shared)
        for k in range(iterations):
            check()
            with torch.no_grad():
                h = NUDGE * _rms(base) / _rms(way)
                change = (step.predict(base + h * way) - eps) / h.reshape(-1, *(1,) * (eps.ndim - 1))
                length = size / _dot(change, change, shared).clamp(min=1e-30)
                move = move + length.reshape(-1, 1, 1) * way
                error = error - length.reshape(-1, *(1,) * (eps.ndim - 1)) * change
            if k + 1 == iterations or not _misses(step, step.wanted - error, enough):
                break
            gradient = torch.autograd.grad(eps, base, error, retain_graph=True)[0]
            before, size = size, _dot(gradient, gradient, shared)
            way = gradient + (size / before.clamp(min=1e-30)).reshape(-1, 1, 1) * way
        return (base + move).detach()


def _dot(a: Tensor, b: Tensor, together: bool) -> Tensor:
    """Inner product of each row [B], or of all rows at once [1]."""
    each = (a * b).flatten(1).sum(1)
    return each.sum(0, keepdim=True) if together else each


def _rms(value: Tensor) -> Tensor:
    return value.flatten(1).square().mean(1).sqrt().clamp(min=1e-30).reshape(-1, *(1,) * (value.ndim - 1))
