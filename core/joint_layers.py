"""Sampling several layers of a picture together (Latent Transparency, section 3.3), some of them given.

Rows are row = sample * layers + layer, as in `shared_attention`. A layer that is given is CLEAN: at every step its row
is its scaled latent unchanged, its noise 0, and its timestep is t = 0. Each row of a network call may have a timestep
of its own, and the timestep tells the network how noisy that row is: at the others' t it would take the clean picture
for a noisy one and see features of noise in it. What the network says of a clean row is not used. Training holds its
given layers the same way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .conditions import check_one_batch, check_whole
from .ddim import ddim_transfer
from .guidance import guide
from .protocols import Condition, LatentModel

CLEAN = 0
"""The timestep of a layer that is given."""

Report = Callable[[int, int, Tensor], None]
"""`report(step, total, x_0)` after each step, x_0 [S, F, C, h, w] as predicted so far; it may raise the host's
interruption, which the engine lets through."""


def _unseen(step: int, total: int, x_0: Tensor) -> None:
    pass


def hold_clean(x: Tensor, times: Tensor, clean: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
    """Layers x [S, F, C, h, w] and their timesteps [S, F] as rows [S F, C, h, w] and [S F], those of `clean`, layer to
    latent [S or 1, C, h, w], in place of what they hold."""
    x, times = x.clone(), times.clone()
    for layer, latent in clean.items():
        x[:, layer], times[:, layer] = latent.to(x), CLEAN
    return x.flatten(0, 1), times.flatten()


@torch.no_grad()
def joint_sample(
    model: LatentModel,
    noise: Tensor,
    conditions: Sequence[Condition],
    null: Condition | None = None,
    *,
    w: float = 7.5,
    timesteps: Tensor,
    clean: Mapping[int, Tensor] | None = None,
    report: Report = _unseen,
) -> Tensor:
    """The layers [S, F, C, h, w], scaled, from `noise` [S, F, C, h, w] along falling `timesteps` by DDIM, guided as
    in Eq. 5 of Smooth Diffusion. Call it within `model.attention(shared_attention(F))` and `layer_loras`.

    `conditions` holds each layer's prompt; `null`, one for all, is needed where w is not 1. `clean` maps a layer to its
    scaled latent [S or 1, C, h, w]; such a layer comes out unchanged. ValueError for what does not fit.
    """
    samples, layers = noise.shape[:2]
    for each in (*conditions, *([] if null is None else [null])):
        check_whole(each)
    clean = dict(clean or {})
    _check(noise, conditions, clean)
    prompt = stacked(conditions, samples)
    ends = torch.cat([timesteps[1:], timesteps.new_tensor([-1])])
    x = noise
    for step, (t, s) in enumerate(zip(timesteps, ends, strict=True)):
        rows, times = hold_clean(x, t.to(x.device).expand(samples, layers), clean)
        eps = model.predict_noise(rows, times, prompt)
        if null is not None and w != 1:
            eps = guide(model.predict_noise(rows, times, null), eps, w)
        x_0 = model.schedule.x0_from_epsilon(rows, eps, t).unflatten(0, (samples, layers))
        x = ddim_transfer(model.schedule, rows, eps, t, s).unflatten(0, (samples, layers))
        report(step + 1, len(timesteps), _with(x_0, clean))
    return _with(x, clean)


def _with(x: Tensor, clean: Mapping[int, Tensor]) -> Tensor:
    for layer, latent in clean.items():
        x[:, layer] = latent.to(x)
    return x


def _check(noise: Tensor, conditions: Sequence[Condition], clean: Mapping[int, Tensor]) -> None:
    layers = noise.shape[1]
    if len(conditions) != layers:
        raise ValueError(f"conditions: expected one for each of {layers} layers, got {len(conditions)}")
    if set(clean) >= set(range(layers)):
        raise ValueError("clean: every layer is given, there is none to draw")
    for layer, latent in clean.items():
        if layer not in range(layers) or latent.shape[1:] != noise.shape[2:] or len(latent) not in (1, len(noise)):
            raise ValueError(
                f"clean: layer {layer + 1} has latents {tuple(latent.shape)}, expected {len(noise)} or 1 of "
                f"{tuple(noise.shape[2:])}"
            )


def stacked(conditions: Sequence[Condition], samples: int = 1) -> Condition:
    """One condition of the rows of `samples` pictures, from each layer's, of one row or one for each sample.

    Prompts of different length are repeated to a common one: attention to all tokens twice is attention to them once.
    ValueError where some have a pooled embedding and others none, or carry different things beside.
    """
    check_one_batch(*conditions)
    if len({each.pooled is None for each in conditions}) > 1:
        raise ValueError("conditions: some layers have a pooled embedding and some none; use one text encoder for all")
    length = math.lcm(*(each.embedding.shape[1] for each in conditions))
    embeddings = [_rows(each.embedding, samples).repeat(1, length // each.embedding.shape[1], 1) for each in conditions]
    pooled = [_rows(each.pooled, samples) for each in conditions if each.pooled is not None]
    joined = torch.stack(pooled, 1).flatten(0, 1) if pooled else None
    return Condition(torch.stack(embeddings, 1).flatten(0, 1), joined, conditions[0].extras)


def _rows(value: Tensor, samples: int) -> Tensor:
    if len(value) not in (1, samples):
        raise ValueError(f"conditions: expected 1 row or {samples}, as many as pictures, got {len(value)}")
    return value.expand(samples, *value.shape[1:])
