"""A LoRA that knows one picture, so that an edit does not lose it (DragDiffusion, Shi et al. 2024, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..core.lora import LowRankDeltas
from ..core.protocols import Condition, LatentModel, Progress, no_progress
from .adapters import LowRankLayers


@dataclass(frozen=True)
class IdentitySettings:
    """The published ones: rank 16 on the attentions' q, k, v and out, 80 steps of batch 4, AdamW at 5e-4."""

    steps: int = 80
    rank: int = 16
    batch: int = 4
    rate: float = 5e-4
    weight_decay: float = 1e-2
    layers: str = "attention"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "rank", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not self.rate > 0:
            raise ValueError(f"rate: expected above 0, got {self.rate}")


def learn_identity(
    model: LatentModel,
    x_0: torch.Tensor,
    condition: Condition,
    settings: IdentitySettings,
    *,
    low_memory: bool = False,
    progress: Progress = no_progress,
) -> LowRankDeltas:
    """A LoRA for the latent x_0 [1, C, h, w] under its prompt, by the ordinary loss |eps - eps_theta(x_t, t, c)|^2. The
    model itself is unchanged. Half a minute on a GPU; a cancelled one leaves nothing behind."""
    layers = model.layers()
    with model.differentiable(low_memory=low_memory):
        lora = LowRankLayers(layers, settings.rank, which=settings.layers, seed=settings.seed).to(model.device)
        adam = torch.optim.AdamW(lora.parameters(), settings.rate, weight_decay=settings.weight_decay)
        generator = torch.Generator().manual_seed(settings.seed)
        clean = x_0.detach().to(model.device, torch.float32).clone().expand(settings.batch, -1, -1, -1)
        with lora.applied(layers):
            for step in range(settings.steps):
                eps = torch.randn(clean.shape, generator=generator).to(clean)
                t = torch.randint(len(model.schedule), (settings.batch,), generator=generator).to(model.device)
                found = model.predict_noise(model.schedule.add_noise(clean, eps, t), t, condition)
                loss = F.mse_loss(found.float(), eps)
                adam.zero_grad()
                loss.backward()
                adam.step()
                progress(step + 1, settings.steps, None)
    return lora.deltas()
