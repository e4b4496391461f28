"""The forward process: alphas, sigmas, timesteps, and the three things a network may predict.

Notation: `abar_t = prod_{s<=t} (1 - beta_s)`; variance preserving `x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps`
(DDPM, Eq. 4). `sigma_t = sqrt((1 - abar_t) / abar_t)` is the noise level of the variance-exploding form
`x_t / sqrt(abar_t) = x_0 + sigma_t eps`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "v_prediction", "sample"]


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """abar_t for t = 0 .. T-1: float64 [T] on the CPU, strictly falling within [0, 1].

    Timesteps may be integers (looked up exactly) or fractions (log sigma is linear between neighbours, as in
    k-diffusion); t = -1 stands for clean data, abar = 1.
    """

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
        """Any beta schedule [T], each in (0, 1]."""
        return cls(torch.cumprod(1 - betas.to(torch.float64), dim=0))

    @classmethod
    def scaled_linear(cls, start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> NoiseSchedule:
        """Stable Diffusion's schedule: sqrt(beta) linear from sqrt(start) to sqrt(end)."""
        return cls.from_betas(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2)

    @classmethod
    def linear(cls, start: float = 0.0001, end: float = 0.02, steps: int = 1000) -> NoiseSchedule:
        """DDPM's schedule: beta linear from start to end."""
        return cls.from_betas(torch.linspace(start, end, steps, dtype=torch.float64))

    @classmethod
    def from_sigmas(cls, sigmas: Tensor) -> NoiseSchedule:
        """The schedule with these noise levels [T], rising: abar = 1 / (1 + sigma^2)."""
        return cls(1 / (1 + sigmas.to(torch.float64) ** 2))

    def rescaled_to_zero_snr(self) -> NoiseSchedule:
        """Shifted and scaled so that abar_{T-1} = 0 (Lin et al. 2024, Algorithm 1); for v- and x0-prediction."""
        root = self.alphas_cumprod.sqrt()
        return NoiseSchedule(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2)

    def __len__(self) -> int:
        return self.alphas_cumprod.numel()

    @property
    def sigmas(self) -> Tensor:
        """sigma_t, float64 [T], rising (infinite where abar_t = 0)."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()

    @property
    def log_snr(self) -> Tensor:
        """log(abar_t / (1 - abar_t)) = -2 log sigma_t, float64 [T], falling."""
        return -2 * self.sigmas.log()

    def alpha_bar(self, t: Tensor) -> Tensor:
        """abar at timesteps -1 <= t <= T-1, float64, same shape and device as `t`. ValueError outside that range."""
        at = t.detach().to("cpu")
        if bool((at < -1).any()) or bool((at > len(self) - 1).any()):
            raise ValueError(f"t: expected timesteps in -1 .. {len(self) - 1}, got {at.min():g} .. {at.max():g}")
        if not at.is_floating_point():
            abar = torch.where(at < 0, torch.ones((), dtype=torch.float64), self.alphas_cumprod[at.clamp(min=0)])
        else:
            abar = 1 / (1 + self._sigma_between(at.to(torch.float64)) ** 2)
        return abar.to(t.device)

    def _sigma_between(self, t: Tensor) -> Tensor:
        low = t.clamp(min=0).floor().long()
        high = (low + 1).clamp(max=len(self) - 1)
        part = t.clamp(min=0) - low
        log_sigma = self.sigmas.log()
        # torch.lerp would make 0 * inf at a terminal abar of zero.
        between = torch.where(part == 0, log_sigma[low], (1 - part) * log_sigma[low] + part * log_sigma[high])
        # Below t = 0 there is no log sigma to interpolate with: sigma itself goes linearly to 0 at t = -1.
        return torch.where(t < 0, (1 + t) * self.sigmas[0], between.exp())

    def sigma(self, t: Tensor) -> Tensor:
        """sigma at timesteps -1 <= t <= T-1, float64, same shape and device as `t`."""
        abar = self.alpha_bar(t)
        return ((1 - abar) / abar).sqrt()

    def timestep(self, sigma: Tensor) -> Tensor:
        """The fractional timestep of each sigma, the inverse of `sigma`: float64, clamped to 0 .. T-1."""
        log_sigmas = self.sigmas.log()
        log_sigma = sigma.detach().to("cpu", torch.float64).clamp(min=1e-30).log()
        high = torch.searchsorted(log_sigmas, log_sigma).clamp(1, len(self) - 1)
        low = high - 1
        part = (log_sigma - log_sigmas[low]) / (log_sigmas[high] - log_sigmas[low])
        return (low + part).clamp(0, len(self) - 1).to(sigma.device)

    def nearest_timestep(self, sigma: Tensor) -> Tensor:
        """The integer timestep whose log sigma is nearest to each sigma's: long, same shape and device."""
        distance = sigma.detach().to("cpu", torch.float64).clamp(min=1e-30).log().unsqueeze(-1) - self.sigmas.log()
        return distance.abs().argmin(dim=-1).to(sigma.device)

    def signal_and_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t) as [B, 1, 1, ...] in the dtype and on the device of `like` [B, ...].

        `t` is a scalar or [B].
        """
        abar = self.alpha_bar(t)
        shape = (-1,) + (1,) * (like.ndim - 1)
        return abar.sqrt().to(like).reshape(shape), (1 - abar).sqrt().to(like).reshape(shape)

    def add_noise(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps."""
        signal, noise = self.signal_and_noise(t, x_0)
        return signal * x_0 + noise * eps

    def velocity(self, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0 (Salimans & Ho 2022, Appendix D)."""
        signal, noise = self.signal_and_noise(t, x_0)
        return signal * eps - noise * x_0

    def x0_from_epsilon(self, x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_0 = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t)."""
        signal, noise = self.signal_and_noise(t, x_t)
        return (x_t - noise * eps) / signal

    def epsilon_from_x0(self, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
        """eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)."""
        signal, noise = self.signal_and_noise(t, x_t)
        return (x_t - signal * x_0) / noise

    def to_epsilon(self, output: Tensor, x_t: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
        """What a network of this kind predicted at x_t, as eps."""
        if prediction == "epsilon":
            return output
        if prediction == "sample":
            return self.epsilon_from_x0(x_t, output, t)
        signal, noise = self.signal_and_noise(t, x_t)
        return signal * output + noise * x_t

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
        """What a network of this kind predicted at x_t, as x_0."""
        if prediction == "sample":
            return output
        if prediction == "epsilon":
            return self.x0_from_epsilon(x_t, output, t)
        signal, noise = self.signal_and_noise(t, x_t)
        return signal * x_t - noise * output
