"""LoRAs for transparent layers: for one layer alone, or one for each of several layers that are drawn together.

Alone it is the transparent base model: `E || eps - eps_theta(x_t, t, c) ||^2` on adjusted latents x_a (Latent
Transparency, Eq. 7). Together every layer keeps this loss, with its own prompt and its own LoRA, while the tokens of
all layers attend to each other in every self-attention (Eq. 8, 9). A layer may also be given, clean: the others then
learn to fit to it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.joint_layers import CLEAN
from ..core.lora import LowRank, LowRankDeltas, Target
from ..core.protocols import Condition, LatentModel, Progress, no_progress
from ..core.shared_attention import layer_loras, shared_attention
from .adapters import LowRankLayers
from .diffusion import loss_weight, stratified
from .examples import Examples
from .loop import Job, Settings, Trained, Watch, accelerator_for, descend, fit, no_watch, recipe_of
from .share import share_of
from .variation import without_prompts

UNSAID = 0.5
"""The share of given layers without a prompt, where there is an empty one."""

Sample = Callable[["LayerLoras", Mapping[str, list[float]]], Tensor | None]
"""`sample(loras, losses)`: a picture [3, H, W] in 0 .. 1 of how far they are, or None."""


@dataclass(frozen=True)
class LayerSettings(Settings):
    """`prompt_dropout` is the share of samples whose layers all lose their prompts; `min_snr` the gamma of min-SNR
    weighting (Hang et al. 2023), 0 for the plain loss. `conditional` is the share of samples in which one layer, each
    as often, is given clean and not trained."""

    prompt_dropout: float = 0.1
    min_snr: float = 0.0
    conditional: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.prompt_dropout < 1:
            raise ValueError(f"prompt_dropout: expected at least 0 and less than 1, got {self.prompt_dropout}")
        if self.min_snr < 0:
            raise ValueError(f"min_snr: expected 0 or more, got {self.min_snr}")
        if not 0 <= self.conditional <= 1:
            raise ValueError(f"conditional: expected 0 .. 1, got {self.conditional}")


class LayerLoras(nn.Module):
    """A LoRA for each layer. The rows of a batch are (sample layer): row = sample * layers + layer."""

    def __init__(self, loras: Sequence[LowRankLayers]) -> None:
        super().__init__()
        if not loras:
            raise ValueError("loras: expected one at least")
        self.loras = nn.ModuleList(loras)

    @property
    def count(self) -> int:
        """How many layers there are."""
        return len(self.loras)

    def forward(self, model: LatentModel, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """eps_theta(x_t, t, c) of all rows. ValueError if they make no whole samples."""
        with self.applied(model):
            return model.predict_noise(x_t, t, condition)

    @contextmanager
    def applied(self, model: LatentModel) -> Iterator[None]:
        """While open, each row runs with its layer's LoRA, and the layers of a sample share their self-attention."""
        parts: Any = self.loras
        with layer_loras(model, [_attached(lora) for lora in parts], [1.0] * self.count):
            if self.count == 1:
                yield
            else:
                with model.attention(shared_attention(self.count)):
                    yield


def _attached(lora: LowRankLayers) -> LowRankDeltas:
    """The factors themselves: gradients reach them."""
    return LowRankDeltas(
        {Target("unet", name): LowRank(lora.up[name], down, lora.scale) for name, down in lora.down.items()}
    )


@dataclass(frozen=True)
class Drawn:
    """One batch's random numbers, a value for each row: timesteps, noise, whose prompt is dropped, and which layers
    are given clean."""

    t: Tensor
    eps: Tensor
    dropped: Tensor
    clean: Tensor


def drawn(z_0: Tensor, layers: int, total: int, settings: LayerSettings, generator: torch.Generator) -> Drawn:
    """All that is random in a batch z_0 [samples * layers, C, h, w]. The layers of a sample have one timestep."""
    samples = len(z_0) // layers
    t = stratified(samples, total, generator).repeat_interleave(layers)
    eps = torch.randn(z_0.shape, generator=generator)
    dropped = (torch.rand(samples, generator=generator) < settings.prompt_dropout).repeat_interleave(layers)
    given = torch.rand(samples, generator=generator) < settings.conditional
    which = torch.randint(layers, (samples,), generator=generator)
    clean = (given[:, None] & (which[:, None] == torch.arange(layers))).flatten()
    # Who gives a layer need not say what it shows.
    unsaid = clean & (torch.rand(len(clean), generator=generator) < UNSAID)
    return Drawn(torch.where(clean, CLEAN, t), eps, dropped | (unsaid & bool(settings.prompt_dropout)), clean)


def train(
    model: LatentModel,
    loras: LayerLoras,
    examples: Examples,
    null: Condition | None,
    settings: LayerSettings,
    folder: str | os.PathLike[str],
    *,
    progress: Progress = no_progress,
    resume: bool = False,
    recipe: dict[str, Any] | None = None,
    sample: Sample | None = None,
    watch: Watch = no_watch,
    low_memory: bool = False,
) -> Trained:
    """Train the LoRAs in place; the outcome's "loras" are their averages.

    `examples(first, count)` gives the latents and prompts of `count` samples in rows (sample layer). `model` stays as
    it is. `null`, the condition of the empty prompt, is for `prompt_dropout`. `sample` makes the preview after each
    save. `low_memory` recomputes what gradients need in place of keeping it.
    """
    if settings.prompt_dropout and null is None:
        raise ValueError("null: prompt_dropout needs the condition of the empty prompt")
    if settings.conditional and loras.count == 1:
        raise ValueError("conditional: expected 0 where there is one layer: it would never be trained")
    with torch.inference_mode(False), model.differentiable(low_memory=low_memory):
        accelerator = accelerator_for(settings, cpu=model.device.type == "cpu")
        job = _job(model, loras, examples, null, settings, accelerator)
        job.recipe = recipe_of(settings, **(recipe or {}))
        job.preview = None if sample is None else lambda: sample(loras, job.history)
        job.watch = watch
        return fit(job, settings, folder, accelerator, progress=progress, resume=resume)


def _job(
    model: LatentModel,
    loras: LayerLoras,
    examples: Examples,
    null: Condition | None,
    settings: LayerSettings,
    accelerator: Any,
) -> Job:
    schedule, layers = model.schedule, loras.count
    # At a terminal abar of zero the weight would be 0 / 0.
    total = int((schedule.alphas_cumprod > 0).sum())
    optimizer: Any = torch.optim.AdamW(loras.parameters(), 1e-4, (0.9, 0.99), weight_decay=settings.weight_decay)
    prepared, optimizer = accelerator.prepare(loras, optimizer)

    share = share_of(accelerator)

    def step(number: int, generator: torch.Generator) -> dict[str, float]:
        z_0, condition = examples(share.first(number, settings.batch), settings.batch)
        every = drawn(share.whole(z_0), layers, total, settings, generator)
        r = share.own(every)
        if null is not None and settings.prompt_dropout:
            condition = without_prompts(condition, null, r.dropped)
        x_t = torch.where(r.clean[:, None, None, None], z_0, schedule.add_noise(z_0, r.eps, r.t))
        with accelerator.autocast():
            noise = prepared(model, x_t.to(accelerator.device), r.t.to(accelerator.device), condition)
        errors = (noise.float() - r.eps.to(noise.device)).square().mean((1, 2, 3))
        weight = (loss_weight(schedule, r.t, settings.min_snr) * ~r.clean).to(errors)
        # The gradient is averaged over the processes, of which each may train another number of rows.
        loss = (weight * errors).sum() * share.of / (~every.clean).sum().to(errors)
        descend(accelerator, loss, prepared, [optimizer], settings.clip)
        return {"loss": loss.item()}

    return Job({"loras": prepared}, {"loras": optimizer}, step, {})
