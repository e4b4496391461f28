"""The forward process: alphas, sigmas, timesteps, and the three things a network may predict.

Notation: `abar_t = prod_{s<=t} (1 - beta_s)`; variance preserving `x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps`
(Latent Diffusion; DDPM, Eq. 4). `sigma_t = sqrt((1 - abar_t) / abar_t)` is the noise level of the variance-exploding form
`x_0 + sigma eps = x_t / sqrt(abar_t)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True)
class NoiseSchedule:
    """abar_t for t = 0 .. T-1, float64 [T], strictly falling in (0, 1]."""

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        abar = self.alphas_cumprod.detach().to("cpu", torch.float64, copy=True)
        if abar.ndim != 1 or abar.numel() < 2:
            raise ValueError(f"alphas_cumprod: expected a vector of at least 2 values, got shape {tuple(abar.shape)}")
        if not bool(((abar >= 0) & (abar <= 1)).all()) or not bool((abar.diff() < 0).all()):
            raise ValueError("alphas_cumprod: expected values falling strictly within [0, 1]")
        object.__setattr__(self, "alphas_cumprod", abar)

    @classmethod
    def from_betas(cls, betas: Tensor) -> NoiseSchedule:
        """Any beta schedule [T], each in (0, 1)."""
        return cls(torch.cumprod(1 - betas.to(torch.float64), dim=0))

    @classmethod
    def scaled_linear(cls, start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> NoiseSchedule:
        """Stable Diffusion's schedule: sqrt(beta) linear from sqrt(start) to sqrt(end)."""
        return cls.from_betas(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2)

    @classmethod
    def linear(cls, start: float = 0.0001, end: float = 0.02, steps: int = 1000) -> NoiseSchedule:
        """DDPM's schedule: beta linear from start to end."""
        return cls.from_betas(torch.linspace(start, end, steps, dtype=torch.float64))

    def __len__(self) -> int:
        return self.alphas_cumprod.numel()

    @property
    def sigmas(self) -> Tensor:
        """sigma_t = sqrt((1 - abar_t) / abar_t), float64 [T], rising."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()
