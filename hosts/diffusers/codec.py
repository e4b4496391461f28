"""A diffusers autoencoder as the engine's LatentCodec."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class DiffusersCodec:
    """AutoencoderKL or VQModel. Scaled latent = (raw latent - shift) * scaling factor; LATENT wires carry the raw."""

    def __init__(self, vae: nn.Module) -> None:
        self.vae: Any = vae.eval().requires_grad_(False)
        config = self.vae.config
        self.latent_channels: int = config.latent_channels
        self.factor: int = 2 ** (len(config.block_out_channels) - 1)
        self.scaling_factor: float = config.scaling_factor
        self.shift_factor: float = getattr(config, "shift_factor", None) or 0.0

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    def scale(self, raw: Tensor) -> Tensor:
        """Raw latent, as the autoencoder gives it -> scaled latent."""
        return (raw - self.shift_factor) * self.scaling_factor

    def unscale(self, latent: Tensor) -> Tensor:
        """Scaled latent -> raw latent."""
        return latent / self.scaling_factor + self.shift_factor

    def encode(self, image: Tensor) -> Tensor:
        out = self._encoded(image)
        raw = out.latent_dist.mode() if hasattr(out, "latent_dist") else out.latents
        return self.scale(raw.to(image))

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        out = self._encoded(image)
        if not hasattr(out, "latent_dist"):
            raise ValueError("vae: expected one with a normal distribution (AutoencoderKL), got one with a codebook")
        return out.latent_dist.mode().to(image), out.latent_dist.std.to(image)

    def _encoded(self, image: Tensor) -> Any:
        if image.ndim != 4 or image.shape[1] != 3 or any(side % self.factor for side in image.shape[2:]):
            raise ValueError(
                f"image: expected [B, 3, H, W] with sides in multiples of {self.factor}, got {tuple(image.shape)}"
            )
        return self.vae.encode(image.to(self.device, self.dtype))

    def decode(self, latent: Tensor) -> Tensor:
        if latent.ndim != 4 or latent.shape[1] != self.latent_channels:
            raise ValueError(f"latent: expected [B, {self.latent_channels}, h, w], got {tuple(latent.shape)}")
        image = self.vae.decode(self.unscale(latent).to(self.device, self.dtype)).sample
        return image.to(latent).clamp(-1, 1)

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        with torch.inference_mode(False), torch.enable_grad():
            yield
