"""A model taught a spatial condition by concatenation: a LoRA on its layers, and columns of its first convolution for
the new channels.

The loss stays the ordinary one, `E || eps - eps_theta([x_t, y], t, c) ||^2` (Latent Diffusion, Eq. 3 and section 3.3):
the condition y lies beside the noisy latent in the network's input.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..core.layer_patch import FIRST
from ..core.lora import read_lora
from ..core.protocols import Condition, LatentModel, Progress, no_progress
from ..core.spatial import told
from ..core.spatial_file import DIFF, SpatialPatch
from .adapters import LowRankLayers, lora_tensors, write_weights
from .diffusion import loss_weight, stratified
from .loop import Job, Settings, Trained, Watch, accelerator_for, descend, fit, no_watch, recipe_of
from .share import share_of
from .variation import without_prompts

Examples = Callable[[int, int], tuple[Tensor, Condition, Tensor]]
"""`examples(first, count)`: scaled latents [count, C, h, w], their prompts, and what is given [count, C', h, w]; the
same for the same numbers."""

Sample = Callable[["ToldLayers", Mapping[str, list[float]]], Tensor | None]
"""`sample(layers, losses)`: a picture [3, H, W] in 0 .. 1 of how far they are, or None."""


@dataclass(frozen=True)
class ConcatSettings(Settings):
    """`prompt_dropout` and `given_dropout` are the shares of samples that lose their prompt, and what is given (it is
    then 0); `min_snr` the gamma of min-SNR weighting (Hang et al. 2023), 0 for the plain loss. `strength` is the share
    of the noise levels, from none upwards, that are trained: all a model needs that starts from a picture."""

    prompt_dropout: float = 0.1
    given_dropout: float = 0.0
    min_snr: float = 0.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("prompt_dropout", "given_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 0 and less than 1, got {getattr(self, name)}")
        if self.min_snr < 0:
            raise ValueError(f"min_snr: expected 0 or more, got {self.min_snr}")
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength: expected more than 0, up to 1, got {self.strength}")


class ToldLayers(nn.Module):
    """A LoRA, and the first convolution's columns [out, C', k, k] for `channels` new ones, zero at first. ValueError if
    the network has no first convolution of that name."""

    def __init__(
        self, layers: Mapping[str, nn.Module], channels: int, rank: int, *, which: str = "all", seed: int = 0
    ) -> None:
        super().__init__()
        if FIRST not in layers:
            raise ValueError(f"model: this network has no {FIRST}; a condition beside the noise needs one")
        if channels < 1:
            raise ValueError(f"channels: expected at least 1, got {channels}")
        self.lora = LowRankLayers(layers, rank, which=which, seed=seed)
        weight: Any = layers[FIRST].weight
        self.own = weight.shape[1]
        with torch.inference_mode(False):
            self.columns = nn.Parameter(torch.zeros(weight.shape[0], channels, *weight.shape[2:]))

    def forward(self, model: LatentModel, x_t: Tensor, t: Tensor, condition: Condition, given: Tensor) -> Tensor:
        """eps_theta([x_t, given], t, c)."""
        with self.applied(model, given):
            return model.predict_noise(x_t, t, condition)

    def diff(self) -> Tensor:
        """What is added to the first convolution's weight, [out, C + C', k, k]; a copy."""
        columns = self.columns.detach()
        own = columns.new_zeros(columns.shape[0], self.own, *columns.shape[2:])
        return torch.cat([own, columns], 1)

    @contextmanager
    def applied(self, model: LatentModel, given: Tensor) -> Iterator[None]:
        """While open, the model is told what is given [B, C', h, w]."""
        layers = model.layers()
        with self.lora.applied(layers), told(layers[FIRST], self.columns, given):
            yield


def read_told(path: str | os.PathLike[str], layers: ToldLayers) -> None:
    """Go on from a file that `write_told` left. ValueError unless it is of the same layers, ranks and channels."""
    tensors = load_file(path)
    diff = tensors.pop(DIFF, None)
    if diff is None or diff[:, layers.own :].shape != layers.columns.shape:
        raise ValueError(f"{path}: expected {layers.columns.shape[1]} channels beside the noise; it is another's file")
    layers.lora.load(read_lora(tensors))
    with torch.no_grad():
        layers.columns.copy_(diff[:, layers.own :])


def write_told(path: str | os.PathLike[str], layers: ToldLayers, described: SpatialPatch) -> None:
    """The file of what was trained, fp16, whole or not at all; `described` says what it is told."""
    tensors = {**lora_tensors(layers.lora.deltas()), DIFF: layers.diff().half()}
    write_weights(path, tensors, described.header())


def train(
    model: LatentModel,
    layers: ToldLayers,
    examples: Examples,
    null: Condition | None,
    settings: ConcatSettings,
    folder: str | os.PathLike[str],
    *,
    progress: Progress = no_progress,
    resume: bool = False,
    recipe: dict[str, Any] | None = None,
    sample: Sample | None = None,
    watch: Watch = no_watch,
    low_memory: bool = False,
) -> Trained:
    """Train in place; the outcome's "layers" are their average.

    `model` stays as it is. `null`, the condition of the empty prompt, is for `prompt_dropout`. `sample` makes the
    preview after each save. `low_memory` recomputes what gradients need in place of keeping it.
    """
    if settings.prompt_dropout and null is None:
        raise ValueError("null: prompt_dropout needs the condition of the empty prompt")
    with torch.inference_mode(False), model.differentiable(low_memory=low_memory):
        accelerator = accelerator_for(settings, cpu=model.device.type == "cpu")
        job = _job(model, layers, examples, null, settings, accelerator)
        job.recipe = recipe_of(settings, **(recipe or {}))
        job.preview = None if sample is None else lambda: sample(layers, job.history)
        job.watch = watch
        return fit(job, settings, folder, accelerator, progress=progress, resume=resume)


def _job(
    model: LatentModel,
    layers: ToldLayers,
    examples: Examples,
    null: Condition | None,
    settings: ConcatSettings,
    accelerator: Any,
) -> Job:
    schedule = model.schedule
    # At a terminal abar of zero the weight would be 0 / 0.
    total = max(1, round(settings.strength * int((schedule.alphas_cumprod > 0).sum())))
    optimizer: Any = torch.optim.AdamW(layers.parameters(), 1e-4, (0.9, 0.99), weight_decay=settings.weight_decay)
    prepared, optimizer = accelerator.prepare(layers, optimizer)

    share = share_of(accelerator)

    def step(number: int, generator: torch.Generator) -> dict[str, float]:
        z_0, condition, given = examples(share.first(number, settings.batch), settings.batch)
        every = share.whole(z_0)
        t = share.own(stratified(len(every), total, generator))
        eps = share.own(torch.randn(every.shape, generator=generator))
        unsaid = share.own(torch.rand(len(every), generator=generator) < settings.prompt_dropout)
        untold = share.own(torch.rand(len(every), generator=generator) < settings.given_dropout)
        if null is not None and settings.prompt_dropout:
            condition = without_prompts(condition, null, unsaid)
        given = given * ~untold.view(-1, 1, 1, 1)
        x_t, there = schedule.add_noise(z_0, eps, t), accelerator.device
        with accelerator.autocast():
            noise = prepared(model, x_t.to(there), t.to(there), condition, given.to(there))
        errors = (noise.float() - eps.to(noise.device)).square().mean((1, 2, 3))
        loss = (loss_weight(schedule, t, settings.min_snr).to(errors) * errors).mean()
        descend(accelerator, loss, prepared, [optimizer], settings.clip)
        return {"loss": loss.item()}

    return Job({"layers": prepared}, {"layers": optimizer}, step, {})
