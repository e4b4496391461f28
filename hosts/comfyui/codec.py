"""A ComfyUI VAE as the engine's LatentCodec."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.latent_formats
import comfy.model_management
import torch
from torch import Tensor

from . import autograd

FORMAT = "velatura_latent_format"
"""Attribute of the VAE objects we load: their latent format. A stock VAE does not know its own."""


class ComfyCodec:
    """A 2-D image VAE. Scaled latents are what `latent_format` makes of the VAE's own, which LATENT wires carry.

    The format is the model's where one is given, else the VAE's own if we loaded it, else Stable Diffusion 1's.
    """

    def __init__(self, native: Any, model: Any = None) -> None:
        native.throw_exception_if_invalid()
        if native.latent_dim != 2 or native.output_channels != 3:
            raise ValueError("vae: expected an autoencoder of single RGB images, got one for video or sound")
        self.native = native
        self._differentiable = False
        self.latent_format: Any = getattr(native, FORMAT, None) or comfy.latent_formats.SD15()
        if model is not None:
            self.latent_format = model.model.latent_format
        self.latent_channels: int = native.latent_channels
        self.factor: int = native.spacial_compression_encode()
        if self.latent_format.latent_channels != self.latent_channels:
            raise ValueError(
                f"vae: it makes latents of {self.latent_channels} channels where "
                f"{self.latent_format.latent_channels} are expected; connect the model it belongs to"
            )

    @property
    def device(self) -> torch.device:
        return self.native.device

    @property
    def dtype(self) -> torch.dtype:
        return self.native.vae_dtype

    def scale(self, raw: Tensor) -> Tensor:
        """Raw latent, as the autoencoder gives it -> scaled latent."""
        return self.latent_format.process_in(raw)

    def unscale(self, latent: Tensor) -> Tensor:
        """Scaled latent -> raw latent."""
        return self.latent_format.process_out(latent)

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        return self.scale(self._encoded(image)).to(image)

    @torch.no_grad()
    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What ComfyUI's VAE draws its latent from, read where it does so: it gives no access to the deviation."""
        regularizer = getattr(self.native.first_stage_model, "regularization", None)
        if regularizer is None:
            raise ValueError("vae: expected one with a normal distribution (AutoencoderKL), got another kind")
        seen: list[Tensor] = []
        hook = regularizer.register_forward_pre_hook(lambda _, given: seen.append(given[0].float().to(image.device)))
        try:
            mean = self._encoded(image).to(image)
        finally:
            hook.remove()
        moments = torch.cat(seen)
        if moments.shape != (len(mean), 2 * mean.shape[1], *mean.shape[2:]):
            raise ValueError(
                f"image: {tuple(image.shape[2:])} is too large for this VAE at once (it went on in tiles, whose "
                "deviation cannot be joined); make the picture smaller or free some memory"
            )
        return mean, (0.5 * moments.chunk(2, 1)[1].clamp(-30, 20)).exp().to(image)

    def _encoded(self, image: Tensor) -> Tensor:
        if image.ndim != 4 or image.shape[1] != 3 or any(side % self.factor for side in image.shape[2:]):
            raise ValueError(
                f"image: expected [B, 3, H, W] with sides in multiples of {self.factor}, got {tuple(image.shape)}"
            )
        return self.native.encode((image.movedim(1, -1) + 1) / 2)  # BCHW -> BHWC, 0 .. 1

    def decode(self, latent: Tensor) -> Tensor:
        if latent.ndim != 4 or latent.shape[1] != self.latent_channels:
            raise ValueError(f"latent: expected [B, {self.latent_channels}, h, w], got {tuple(latent.shape)}")
        if self._differentiable:
            raw = self.unscale(latent).to(self.device, self.dtype)
            return self.native.first_stage_model.decode(raw).to(latent).clamp(-1, 1)
        with torch.no_grad():
            pixels = self.native.decode(self.unscale(latent))  # 0 .. 1, clamped
            return (pixels.movedim(-1, 1) * 2 - 1).to(latent)

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        """The whole autoencoder is loaded: the host's own decoding takes no gradients."""
        comfy.model_management.load_models_gpu([self.native.patcher], force_full_load=True)
        self._differentiable = True
        try:
            with autograd.gradients():
                autograd.thaw(self.native.first_stage_model)
                yield
        finally:
            self._differentiable = False
