"""Classifier-free guidance, in the two conventions of the literature. They differ by one: `w = 1 + omega`."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def guide(eps_null: Tensor, eps_cond: Tensor, w: float | Tensor) -> Tensor:
    """w eps_cond + (1 - w) eps_null (Smooth Diffusion, Eq. 5). w = 1 is the condition alone, w = 0 the null text alone.

    The `cfg` of ComfyUI and the `guidance_scale` of diffusers. A tensor `w` [B] gives each sample its own.
    """
    return eps_null + _per_sample(w, eps_null) * (eps_cond - eps_null)


def guide_omega(eps_cond: Tensor, eps_null: Tensor, omega: float | Tensor) -> Tensor:
    """(1 + omega) eps_cond - omega eps_null (LCM, Eq. 12). omega = 0 is the condition alone."""
    return eps_cond + _per_sample(omega, eps_cond) * (eps_cond - eps_null)


def guidance_scale_embedding(omega: Tensor, width: int) -> Tensor:
    """The Fourier embedding of omega [B] that a guidance-distilled network takes: [sin, cos] of 1000 omega, [B, width].

    Frequencies fall geometrically from 1 to 1e-4, as in the released LCM networks. `width` is even.
    """
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / (half - 1)))
    angles = 1000.0 * omega.to("cpu", torch.float32)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def check_projection(projection: Tensor, channels: int) -> None:
    """ValueError unless `projection` is a guidance projection [C, W] for timestep embeddings of C = `channels`."""
    if projection.ndim != 2 or projection.shape[0] != channels or projection.shape[1] % 2 or projection.shape[1] < 4:
        raise ValueError(
            f"time_embedding.cond_proj.weight: expected [{channels}, an even width] for this network, got "
            f"{tuple(projection.shape)}; the file was made for another model family"
        )


def _per_sample(scale: float | Tensor, like: Tensor) -> float | Tensor:
    if isinstance(scale, Tensor):
        return scale.to(like).reshape((-1,) + (1,) * (like.ndim - 1))
    return scale
