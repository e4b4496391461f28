"""The autoencoder of latent diffusion: reconstruction, a patch discriminator that starts late, and a regulariser.

`x ~ D(E(x))`, `E` reduces each side by f. The latent is kept in bounds either by a slight KL penalty towards N(0, 1)
or by a vector-quantised codebook (Latent Diffusion, section 3.1).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.metrics import ssim
from ..core.protocols import Progress, no_progress
from .groupnorm import quicken
from .loop import Job, Settings, Trained, accelerator_for, descend, fit, recipe_of
from .share import share_of

Images = Callable[[int, int], Tensor]
"""`images(first, count)`: training pictures [count, 3, H, W] in -1 .. 1, the same for the same numbers."""

Drawn = Callable[[int, int], tuple[Tensor, Tensor]]
"""`drawn(first, count)`: latents [count, C, h, w], unscaled, that a diffusion model drew, and the pictures [count, 3,
H, W] in -1 .. 1 that they shall decode to; the same for the same numbers."""


@dataclass(frozen=True)
class AutoencoderSettings(Settings):
    """`kl_weight` on the KL term (none for a codebook); `mse` and `edges` weigh the squared error and the error of
    the picture's differences beside L1, `thumbnail` the latent's own account of the colours (see Autoencoding),
    `chroma` the same errors of the colour differences, `similarity` one minus SSIM; `adversarial` weighs the
    discriminator from step `adversarial_from` on. `drawn` more rows of each batch are of latents that a diffusion model
    drew: a decoder that knows only real pictures' may fail on them."""

    kl_weight: float = 1e-6
    mse: float = 4.0
    edges: float = 0.3
    chroma: float = 0.5
    thumbnail: float = 0.0
    similarity: float = 0.0
    adversarial: float = 0.0
    adversarial_from: int = 10_000
    decoder_only: bool = False
    drawn: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "kl_weight",
            "mse",
            "edges",
            "chroma",
            "thumbnail",
            "similarity",
            "adversarial",
            "adversarial_from",
            "drawn",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")


class Autoencoding(nn.Module):
    """One forward for both regularisers: (reconstruction, regulariser loss, thumbnail loss). Takes diffusers'
    AutoencoderKL or VQModel. Below the reconstructions are the pictures of the latents `drawn`, if there are any.

    The thumbnail loss asks that the picture's colours, averaged over a latent's cell, be a linear function of the
    latent. It reaches the encoder past the decoder, which without it finds a second colour axis only after thousands
    of steps.
    """

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae = vae
        config: Any = vae.config
        # skip_init draws no random numbers
        self.thumbnail: nn.Module = nn.utils.skip_init(nn.Conv2d, config.latent_channels, 3, 1)
        eye = 0.3 * torch.eye(3, config.latent_channels)
        self.thumbnail.load_state_dict({"weight": eye[:, :, None, None], "bias": torch.zeros(3)})

    def forward(self, image: Tensor, noise: Tensor, drawn: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        vae: Any = self.vae
        h = vae.quant_conv(vae.encoder(image))
        if hasattr(vae, "quantize"):
            z, loss, _ = vae.quantize(h)
        else:
            mean, logvar = h.float().chunk(2, dim=1)
            logvar = logvar.clamp(-30, 20)
            z = mean + (0.5 * logvar).exp() * noise
            loss = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
        small = F.adaptive_avg_pool2d(image, z.shape[-2:])
        thumbnail = (self.thumbnail(z).float() - small).square().mean()
        if drawn is not None:
            z = torch.cat([z, drawn.to(z)])
        return vae.decoder(vae.post_quant_conv(z)), loss, thumbnail


class PatchDiscriminator(nn.Module):
    """Is each patch of a picture real? [B, channels, H, W] -> logits [B, 1, H/8, W/8] (Isola et al. 2017). `deep` puts
    one more layer before the last: five in all."""

    def __init__(self, width: int = 32, channels: int = 3, deep: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for k in (1, 2):
            layers += [nn.Conv2d(width * k, width * 2 * k, 4, 2, 1), nn.GroupNorm(8, width * 2 * k), nn.LeakyReLU(0.2)]
        if deep:
            layers += [nn.Conv2d(width * 4, width * 8, 3, 1, 1), nn.GroupNorm(8, width * 8), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width * (8 if deep else 4), 1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


def reconstruction_loss(out: Tensor, image: Tensor, settings: AutoencoderSettings) -> Tensor:
    """L1 and squared error; L1 of neighbouring differences, which keeps edges sharp without a perceptual network;
    and both errors once more on the two colour differences, which are small beside brightness and would be learned
    last."""
    error = out - image
    red, green, blue = error.unbind(1)
    colour = torch.stack([red - green, blue - 0.5 * (red + green)])
    loss = error.abs().mean() + settings.mse * error.square().mean()
    loss = loss + settings.chroma * (colour.abs().mean() + settings.mse * colour.square().mean())
    loss = loss + settings.edges * (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean())
    if settings.similarity:
        loss = loss + settings.similarity * (1 - ssim((out + 1) / 2, (image + 1) / 2).mean())
    return loss


def calm_posterior(vae: Any) -> None:
    """Start the KL posterior at a standard deviation of 0.05: at 1 its noise drowns the first thousands of steps."""
    if not hasattr(vae, "quantize"):
        bias = vae.quant_conv.bias
        with torch.no_grad():
            bias[len(bias) // 2 :] = -6.0


def train(
    vae: nn.Module,
    images: Images,
    settings: AutoencoderSettings,
    folder: str | os.PathLike[str],
    *,
    drawn: Drawn | None = None,
    progress: Progress = no_progress,
    resume: bool = False,
    recipe: dict[str, Any] | None = None,
) -> Trained:
    """Train in place; the outcome's "vae" is the averaged one. `drawn` gives the rows of `settings.drawn`, `recipe`
    what else the run depends on.

    ValueError if one of the two is there without the other.
    """
    if (drawn is None) != (settings.drawn == 0):
        raise ValueError(f"drawn: expected latents exactly where settings.drawn is above 0, got {settings.drawn}")
    accelerator = accelerator_for(settings)
    if not resume and not settings.decoder_only:
        calm_posterior(vae)
    model = quicken(Autoencoding(vae))
    if settings.decoder_only:
        for part in (model.vae.encoder, model.vae.quant_conv, model.thumbnail):
            part.requires_grad_(False)
    modules: dict[str, Any] = {"vae": model}
    if settings.adversarial:
        modules["judge"] = _judge(settings.seed)
    optimizers: dict[str, Any] = {}
    for name, betas in (("vae", (0.9, 0.99)), ("judge", (0.5, 0.9))):
        if name in modules:
            trained = [p for p in modules[name].parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained, 1e-4, betas, weight_decay=settings.weight_decay)
            modules[name], optimizers[name] = accelerator.prepare(modules[name], optimizer)
    shown: list[Tensor] = []
    share = share_of(accelerator)

    def step(number: int, generator: torch.Generator) -> dict[str, float]:
        image = images(share.first(number, settings.batch), settings.batch)
        image = image.to(accelerator.device, memory_format=torch.channels_last)
        shape = latent_shape(vae, share.whole(image))
        noise = share.own(torch.randn(shape, generator=generator)).to(image)
        latents = None
        wanted = image
        if drawn is not None:
            latents, pictures = (v.to(image) for v in drawn(share.first(number, settings.drawn), settings.drawn))
            wanted = torch.cat([image, pictures])
        with accelerator.autocast():
            out, regulariser, thumbnail = modules["vae"](image, noise, latents)
        out = out.float()
        shown[:] = [torch.cat([wanted[-1:], out.detach()[-1:]], -1)]
        judge = modules.get("judge") if number >= settings.adversarial_from else None
        weight = 1.0 if hasattr(vae, "quantize") else settings.kl_weight
        reconstruction = reconstruction_loss(out, wanted, settings)
        loss = reconstruction + weight * regulariser + settings.thumbnail * thumbnail
        if judge is not None:
            loss = loss - settings.adversarial * judge(out).float().mean()
        descend(accelerator, loss, modules["vae"], [optimizers["vae"]], settings.clip)
        parts = {"reconstruction": reconstruction, "regulariser": regulariser, "thumbnail": thumbnail}
        if judge is not None:
            optimizers["judge"].zero_grad()  # what fooling it left there
            parts["judge"] = F.relu(1 - judge(wanted)).float().mean() + F.relu(1 + judge(out.detach())).float().mean()
            descend(accelerator, 0.5 * parts["judge"], judge, [optimizers["judge"]], settings.clip)
        return {name: value.item() for name, value in parts.items()}

    def preview() -> Tensor | None:
        return ((shown[0][0] + 1) / 2).clamp(0, 1).cpu() if shown else None

    remembered = recipe_of(settings, **(recipe or {}))
    job = Job(modules, optimizers, step, remembered, frozenset({"judge"}), preview)
    done = fit(job, settings, folder, accelerator, progress=progress, resume=resume)
    best: Any = done.modules["vae"]
    return Trained({"vae": best.vae}, done.history, done.steps)


def _judge(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PatchDiscriminator()


def latent_shape(vae: nn.Module, image: Tensor) -> tuple[int, ...]:
    """The latent's shape for a batch of pictures, from the autoencoder's configuration."""
    config: Any = vae.config
    factor = 2 ** (len(config.block_out_channels) - 1)
    return (image.shape[0], config.latent_channels, image.shape[2] // factor, image.shape[3] // factor)


@torch.no_grad()
def encode_mean(vae: nn.Module, image: Tensor) -> Tensor:
    """The mean latent [B, C, h, w], unscaled, float32."""
    net: Any = vae
    h = net.quant_conv(net.encoder(image)).float()
    return h if hasattr(net, "quantize") else h.chunk(2, dim=1)[0]


def scaling_factor(latents: Tensor) -> float:
    """What brings the latents to unit standard deviation (Latent Diffusion, appendix G)."""
    return float(1 / latents.float().std())


@torch.no_grad()
def standardise(vae: nn.Module, latents: Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1 on these latents [N, C, h, w], in place.

    The change is absorbed by the 1x1 convolutions before and after the latent, so that reconstructions stay as they
    are. A single scaling factor would leave a quiet channel (colour, say) below the noise for most of the diffusion.
    ValueError for a codebook, whose entries it would have to move.
    """
    net: Any = vae
    if hasattr(net, "quantize"):
        raise ValueError("standardise: expected a KL autoencoder, got one with a codebook")
    mean, deviation = latents.float().mean((0, 2, 3)), latents.float().std((0, 2, 3))
    c = len(mean)
    before, after = net.quant_conv, net.post_quant_conv
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= deviation.view(1, c, 1, 1)
    before.bias[:c] = (before.bias[:c] - mean) / deviation
    before.weight[:c] /= deviation.view(c, 1, 1, 1)
    before.bias[c:] -= 2 * deviation.log()  # the second half is the log variance
