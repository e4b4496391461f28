"""Data whose diffusion is known in closed form: x_0 ~ N(mean, std^2 I). Everything float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from velatura.core.protocols import Condition
from velatura.core.schedule import NoiseSchedule


@dataclass(frozen=True)
class GaussianModel:
    """A LatentModel, as far as samplers need one, that is exact: eps = E[eps | x_t]."""

    schedule: NoiseSchedule
    mean: float = 0.7
    std: float = 0.4

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x_t."""
        abar = self.schedule.alpha_bar(t)
        return abar.sqrt() * self.mean, (abar * self.std**2 + 1 - abar).sqrt()

    def predict_noise(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        mean, std = (v.reshape(-1, 1, 1, 1) for v in self.marginal(t))
        noise = (1 - self.schedule.alpha_bar(t)).sqrt().reshape(-1, 1, 1, 1)
        return noise * (x - mean) / std**2

    def solution(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The probability-flow ODE's solution from x_t at t to s: the map keeps the standardised value."""
        mean_t, std_t = self.marginal(t)
        mean_s, std_s = self.marginal(s)
        return mean_s + std_s * (x_t - mean_t) / std_t


NO_TEXT = Condition(torch.zeros(1, 1, 1))
