"""Latent transparency: an encoder that hides alpha in the latent of a frozen autoencoder, and its decoder.

The frozen autoencoder must still decode the adjusted latent to the same picture (the identity loss), so that a
diffusion model trained on its latents understands the adjusted ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.protocols import Progress, no_progress
from ..core.transparency import (
    DECODER_WIDTHS,
    ENCODER_WIDTHS,
    Convention,
    Posterior,
    TransparencyDecoder,
    TransparencyEncoder,
    add_offset,
    shown_to_autoencoder,
)
from ..core.transparency_decode import TURNS, turn, turn_back
from ..core.transparency_file import metadata_of
from .adapters import write_weights
from .autoencoder import PatchDiscriminator
from .groupnorm import quicken
from .loop import Job, Settings, Trained, Watch, accelerator_for, descend, fit, no_watch, recipe_of
from .share import share_of

Pictures = Callable[[int, int], tuple[Tensor, Tensor]]
"""`pictures(first, count)`: padded colour [count, 3, H, W] and alpha [count, 1, H, W] in 0 .. 1, the same for the same
numbers."""


class Frozen(NamedTuple):
    """The autoencoder, unscaled: `posterior` is called without gradients, `decode` [B, C, h, w] -> [B, 3, H, W] about
    -1 .. 1 must let them through."""

    posterior: Posterior
    decode: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TransparencySettings(Settings):
    """The offset is left out for a share `dropout` of the samples, which makes a decoder for latents without one.
    `mse` weighs the squared error beside L1, `visible` how much more colour counts where alpha is 1. `identity` and
    `adversarial` weigh these losses (the paper's 1 and 0.01), the discriminator from step `adversarial_from` on.
    `scale`, `backdrop` and `keep_soft` are the networks' convention.

    `turned` shows the decoder each batch mirrored and turned at random, as the passes of decoding do. `keep_encoder`
    trains the decoder alone, so that latents made with the encoder stay good; `shake` then moves the latents by that
    share of their deviation, as a model that draws them misses them."""

    dropout: float = 0.3
    mse: float = 0.0
    visible: float = 0.0
    identity: float = 1.0
    adversarial: float = 0.01
    adversarial_from: int = 0
    scale: float = 1.0
    backdrop: float = 0.0
    keep_soft: bool = True
    turned: bool = False
    keep_encoder: bool = False
    shake: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mse", "visible", "identity", "adversarial", "adversarial_from", "shake"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name, low, high in (("dropout", 0.0, 1.0), ("backdrop", -1.0, 1.0), ("scale", 1e-6, 1e6)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: expected {low} .. {high}, got {getattr(self, name)}")
        if self.shake and not self.keep_encoder:
            raise ValueError("shake: expected 0 while the encoder is trained; keep_encoder trains the decoder alone")

    @property
    def convention(self) -> Convention:
        return Convention(self.scale, self.backdrop, self.keep_soft)


class Pair(nn.Module):
    """Both networks and the frozen autoencoder between them, as one forward."""

    def __init__(self, encoder: TransparencyEncoder, decoder: TransparencyDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(
        self,
        colour: Tensor,
        alpha: Tensor,
        mean: Tensor,
        std: Tensor,
        scale: Tensor,
        decode: Any,
        turned: tuple[bool, int] = TURNS[0],
        missed: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """([alpha, colour] [B, 4, H, W], what the frozen autoencoder makes of the adjusted latent). `scale` is
        lambda_offset for each sample [B, 1, 1, 1]; `missed(latent)` [B, C, h, w], if not None, is what the latent is
        off by, and the encoder is then left alone. The decoder sees both `turned`."""
        with nullcontext() if missed is None else torch.no_grad():
            latent = add_offset(mean, std, self.encoder(colour, alpha).float() * scale, 1.0)
            if missed is not None:
                latent = latent + missed(latent)
            image = decode(latent)
        shown = (((image + 1) / 2).clamp(0, 1), latent)
        return turn_back(self.decoder(*(turn(each, *turned) for each in shown)), *turned), image


def new_pair(
    seed: int,
    encoder_widths: Sequence[int] = ENCODER_WIDTHS,
    decoder_widths: Sequence[int] = DECODER_WIDTHS,
    latent_channels: int = 4,
    *,
    layers: int = 2,
    attention_from: int = 4,
) -> tuple[TransparencyEncoder, TransparencyDecoder]:
    """Networks with the seed's random weights, of the released size by default; the offset begins at 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = TransparencyEncoder(encoder_widths, latent_channels)
        decoder = TransparencyDecoder(decoder_widths, latent_channels, layers, attention_from)
    last: Any = encoder.blocks[-1]
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return encoder, decoder


def misses(latent: Tensor, generator: torch.Generator) -> Tensor:
    """What a model that draws latents of this shape [B, C, h, w] misses them by, of mean square about 1: all of a
    picture alike, large parts of it, and each place by itself, in shares drawn for each picture."""
    b, c, h, w = latent.shape
    noises = [torch.randn(b, c, *size, generator=generator) for size in ((1, 1), (3, 3), (h, w))]
    shares = torch.rand(b, len(noises), 1, 1, 1, generator=generator)
    spread = torch.stack([F.interpolate(each, (h, w), mode="bilinear") for each in noises], 1)
    return ((shares / shares.sum(1, keepdim=True)).sqrt() * spread).sum(1)


def write_half(path: str | os.PathLike[str], network: nn.Module, convention: Convention) -> None:
    """One of the pair in half precision, with its convention, as the nodes load it."""
    write_weights(path, {name: value.half() for name, value in network.state_dict().items()}, metadata_of(convention))


def reconstruction_loss(out: Tensor, colour: Tensor, alpha: Tensor, settings: TransparencySettings) -> Tensor:
    """L_recon = |I_c - I_c^| + |I_alpha - I_alpha^| (Latent Transparency, Eq. 4), as means."""
    weight = 1 + settings.visible * alpha
    errors = ((out[:, 1:] - colour) * weight, out[:, :1] - alpha)
    return torch.stack([e.abs().mean() + settings.mse * e.square().mean() for e in errors]).sum()


def train(
    encoder: TransparencyEncoder,
    decoder: TransparencyDecoder,
    frozen: Frozen,
    pictures: Pictures,
    settings: TransparencySettings,
    folder: str | os.PathLike[str],
    *,
    progress: Progress = no_progress,
    resume: bool = False,
    recipe: dict[str, Any] | None = None,
    sample: Callable[[Pair], Tensor | None] | None = None,
    watch: Watch = no_watch,
) -> Trained:
    """Train both in place; the outcome's "pair" is the averaged Pair. `recipe` adds what else the run depends on;
    `sample` is called with the pair after each save and may give a preview; `watch` is told the losses."""
    accelerator = accelerator_for(settings)
    encoder.requires_grad_(not settings.keep_encoder)
    modules: dict[str, Any] = {"pair": quicken(Pair(encoder, decoder))}
    if settings.adversarial:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            modules["judge"] = PatchDiscriminator(channels=4, deep=True)
    optimizers: dict[str, Any] = {}
    for name in modules:
        betas = (0.5, 0.9) if name == "judge" else (0.9, 0.99)
        optimizer = torch.optim.AdamW(modules[name].parameters(), 1e-4, betas, weight_decay=settings.weight_decay)
        modules[name], optimizers[name] = accelerator.prepare(modules[name], optimizer)

    share = share_of(accelerator)

    def step(number: int, generator: torch.Generator) -> dict[str, float]:
        first = share.first(number, settings.batch)
        colour, alpha = (each.to(accelerator.device) for each in pictures(first, settings.batch))
        image = shown_to_autoencoder(colour, alpha, settings.backdrop)
        with accelerator.autocast():
            with torch.no_grad():
                mean, std = frozen.posterior(image)
            draw = share.draw(len(colour), generator)
            chance = draw(lambda count, g: torch.rand(count, 1, 1, 1, generator=g))
            kept = chance >= settings.dropout
            scale = settings.scale * kept.to(mean)
            turned = TURNS[int(torch.randint(len(TURNS), (), generator=generator)) if settings.turned else 0]
            missed = None
            if settings.keep_encoder:
                off = settings.shake * draw(lambda count, g: misses(share.whole(mean), g)).to(mean)
                # In units of the deviation over the batch of all processes.
                missed = lambda latent: off * accelerator.gather(latent).std((0, 2, 3), keepdim=True)  # noqa: E731
            out, decoded = modules["pair"](colour, alpha, mean, std, scale, frozen.decode, turned, missed)
        out = out.float()
        losses = {
            "reconstruction": reconstruction_loss(out, colour, alpha, settings),
            "identity": (decoded.float() - image).square().mean(),  # Eq. 1
        }
        loss = losses["reconstruction"] + settings.identity * losses["identity"]
        judge = modules.get("judge") if number >= settings.adversarial_from else None
        if judge is not None:
            loss = loss - settings.adversarial * judge(2 * out - 1).float().mean()  # Eq. 5, 6
        descend(accelerator, loss, modules["pair"], [optimizers["pair"]], settings.clip)
        if judge is not None:
            optimizers["judge"].zero_grad()  # what fooling it left there
            real = 2 * torch.cat([alpha, colour], 1) - 1
            losses["judge"] = (F.relu(1 - judge(real)) + F.relu(1 + judge(2 * out.detach() - 1))).float().mean()
            descend(accelerator, 0.5 * losses["judge"], judge, [optimizers["judge"]], settings.clip)
        return {name: value.item() for name, value in losses.items()}

    def preview() -> Tensor | None:
        return sample(accelerator.unwrap_model(modules["pair"])) if sample else None

    job = Job(modules, optimizers, step, recipe_of(settings, **(recipe or {})), frozenset({"judge"}), preview)
    job.watch = watch
    return fit(job, settings, folder, accelerator, progress=progress, resume=resume)
