"""Text-conditional latent diffusion: `E || eps - eps_theta(z_t, t, tau_theta(y)) ||^2`, the text encoder trained
jointly.

(Latent Diffusion, Eq. 3.) Prompts are dropped for a share of the samples, so that one network also learns the
unconditional model that guidance needs (Ho & Salimans 2022).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.protocols import Progress, no_progress
from ..core.schedule import NoiseSchedule
from .groupnorm import quicken
from .loop import Job, Settings, Trained, accelerator_for, descend, fit, recipe_of
from .share import share_of

Examples = Callable[[int, int], tuple[Tensor, Tensor]]
"""`examples(first, count)`: scaled latents [count, C, h, w] and token ids [count, L], the same for the same
numbers."""


@dataclass(frozen=True)
class DiffusionSettings(Settings):
    """`prompt_dropout` is the share of empty prompts; `min_snr` the gamma of min-SNR weighting (Hang et al. 2023), 0
    for the plain loss; `text_rate` the text encoder's learning rate in units of the network's."""

    prompt_dropout: float = 0.1
    min_snr: float = 0.0
    text_rate: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.prompt_dropout < 1:
            raise ValueError(f"prompt_dropout: expected 0 .. 1, got {self.prompt_dropout}")
        for name in ("min_snr", "text_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")


class Denoiser(nn.Module):
    """Text encoder and noise predictor behind one forward: eps_theta(z_t, t, tau_theta(ids))."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, z_t: Tensor, t: Tensor, ids: Tensor) -> Tensor:
        text = self.text_encoder(ids).last_hidden_state
        return self.unet(z_t, t, encoder_hidden_states=text).sample


def loss_weight(schedule: NoiseSchedule, t: Tensor, min_snr: float) -> Tensor:
    """Weight of the epsilon loss, [B]: min(snr, gamma) / snr, or one."""
    if not min_snr:
        return torch.ones(t.shape)
    abar = schedule.alphas_cumprod[t.cpu()]
    snr = abar / (1 - abar)
    return (snr.clamp(max=min_snr) / snr).float()


def stratified(count: int, total: int, generator: torch.Generator) -> Tensor:
    """`count` timesteps of 0 .. total-1, one from each of as many equal parts: uniform, and evenly spread."""
    at = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return (at * total).long().clamp(max=total - 1)


def train(
    unet: nn.Module,
    text_encoder: nn.Module,
    examples: Examples,
    null_ids: Tensor,
    schedule: NoiseSchedule,
    settings: DiffusionSettings,
    folder: str | os.PathLike[str],
    *,
    progress: Progress = no_progress,
    resume: bool = False,
    recipe: dict[str, Any] | None = None,
    sample: Callable[[], Tensor | None] | None = None,
) -> Trained:
    """Train both networks in place; the outcome holds their averages as "unet" and "text_encoder".

    `null_ids` [L] is the empty prompt. `sample` makes the progress callback's preview from the networks as they are.
    """
    accelerator = accelerator_for(settings)
    model = quicken(Denoiser(unet, text_encoder))
    decay = settings.weight_decay
    optimizers: dict[str, Any] = {
        "unet": torch.optim.AdamW(unet.parameters(), 1e-4, (0.9, 0.99), weight_decay=decay),
        "text": torch.optim.AdamW(text_encoder.parameters(), 1e-4, (0.9, 0.99), weight_decay=decay),
    }
    model, optimizers["unet"], optimizers["text"] = accelerator.prepare(model, optimizers["unet"], optimizers["text"])

    share = share_of(accelerator)

    def step(number: int, generator: torch.Generator) -> dict[str, float]:
        z_0, ids = examples(share.first(number, settings.batch), settings.batch)
        draw = share.draw(len(z_0), generator)
        t = draw(lambda count, g: stratified(count, len(schedule), g))
        eps = draw(lambda count, g: torch.randn(count, *z_0.shape[1:], generator=g))
        dropped = draw(lambda count, g: torch.rand(count, generator=g)) < settings.prompt_dropout
        ids = torch.where(dropped[:, None], null_ids, ids).to(accelerator.device)
        z_t = schedule.add_noise(z_0, eps, t)
        z_t = z_t.to(accelerator.device, memory_format=torch.channels_last)
        with accelerator.autocast():
            out = model(z_t, t.to(accelerator.device), ids)
        error = (out.float().cpu() if z_0.device != out.device else out.float()) - eps
        loss = (loss_weight(schedule, t, settings.min_snr) * error.square().mean((1, 2, 3))).mean()
        descend(accelerator, loss, model, optimizers.values(), settings.clip)
        return {"loss": loss.item()}

    rates = {"unet": 1.0, "text": settings.text_rate}
    job = Job({"model": model}, optimizers, step, recipe_of(settings, **(recipe or {})), preview=sample, rates=rates)
    done = fit(job, settings, folder, accelerator, progress=progress, resume=resume)
    best: Any = done.modules["model"]
    return Trained({"unet": best.unet, "text_encoder": best.text_encoder}, done.history, done.steps)
