"""From data to noise along the sampler's own path (DDIM inversion; Smooth Diffusion, Eq. 4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .ddim import ddim_transfer
from .protocols import Condition, LatentModel, Progress, no_progress

Preview = Callable[[Tensor], Tensor]
"""A latent [B, C, h, w] -> a picture [3, H, W] in 0 .. 1 of its first sample, for a progress bar."""

Watch = Callable[[int, Tensor], None]
"""`watch(step, miss)`: how far sampling step `step` ended from the inversion's path, RMS, each sample [B]."""


def unwatched(step: int, miss: Tensor) -> None:
    """The Watch that looks away."""


EXTRA_CORRECTIONS = 3
"""Steps at the data's end that are corrected twice: the noise prediction changes fastest there."""


def rising(timesteps: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The steps (s, t) of an inversion, s < t, from clean data (-1) up, for falling `timesteps`."""
    up = timesteps.flip(0)
    return zip(torch.cat([up.new_tensor([-1]), up[:-1]]), up, strict=True)


def falling(timesteps: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The steps (t, s) of a sampling run, s < t, down to clean data (-1)."""
    return zip(timesteps, torch.cat([timesteps[1:], timesteps.new_tensor([-1])]), strict=True)


def previews(preview: Preview | None, total: int) -> Callable[[int, Tensor], Tensor | None]:
    """`show(step, x)` for a progress callback: a picture now and then, since decoding may cost as much as a step."""
    every = max(1, total // 5)
    return lambda step, x: preview(x) if preview is not None and step % every == 0 else None


def ddim_invert(
    model: LatentModel,
    x_0: Tensor,
    condition: Condition,
    *,
    timesteps: Tensor,
    corrected: bool = True,
    noised_steps: int = 0,
    noise: Tensor | None = None,
    progress: Progress = no_progress,
    preview: Preview | None = None,
) -> Tensor:
    """The latents x_0 [B, C, h, w] at clean data and at each of the falling `timesteps` [n]: [n + 1, B, C, h, w], data
    first. Guidance 1: the condition alone.

    Undoing a step from t to s exactly needs eps(x_t, t), and x_t is what is sought. Eq. 4 takes eps(x_s, t) instead
    (`corrected` = False). Otherwise eps is extrapolated from the last two steps, x_t predicted with it, eps evaluated
    there and x_t computed again (a predictor-corrector step, still one evaluation): sampling the result leads back to
    x_0 an order closer. The first steps, which have nothing to extrapolate from, take one or two evaluations more.

    The first `noised_steps` are taken with `noise` [B, C, h, w] in place of a prediction: x_t is then x_0 noised, as
    in training, which keeps x_T as Gaussian as a sampler expects where the inversion of a flat picture would not.
    ValueError if the noise is missing or all steps would be noised.
    """
    if noised_steps and noise is None:
        raise ValueError("noise: expected a standard normal tensor where steps are to be noised")
    if not 0 <= noised_steps < len(timesteps):
        raise ValueError(f"noised_steps: expected 0 .. {len(timesteps) - 1}, got {noised_steps}")
    show = previews(preview, len(timesteps))
    x, pivots, seen = x_0, [x_0], []
    for step, (s, t) in enumerate(rising(timesteps)):
        if step < noised_steps and noise is not None:
            x = model.schedule.add_noise(x_0, noise, t)
        elif not corrected:
            x = ddim_transfer(model.schedule, x, _predict(model, x, t, condition), s, t)
        else:
            x = _corrected_step(model, x, s, t, condition, seen, step - noised_steps)
        pivots.append(x)
        progress(step + 1, len(timesteps), show(step + 1, x))
    return torch.stack(pivots)


def _predict(model: LatentModel, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    return model.predict_noise(x, t.expand(x.shape[0]).to(x.device), condition)


def _corrected_step(
    model: LatentModel, x: Tensor, s: Tensor, t: Tensor, condition: Condition, seen: list[Tensor], step: int
) -> Tensor:
    """x_t such that sampling from it leads to `x` at s, nearly; `seen` are the noise predictions of the last two."""
    if not seen:
        eps = _predict(model, x, t, condition)
    else:
        eps = seen[-1] if len(seen) == 1 else 2 * seen[-1] - seen[-2]
    for _ in range(2 if step < EXTRA_CORRECTIONS else 1):
        eps = _predict(model, ddim_transfer(model.schedule, x, eps, s, t), t, condition)
    seen.append(eps)
    del seen[:-2]
    return ddim_transfer(model.schedule, x, eps, s, t)
