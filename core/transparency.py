"""The networks of latent transparency: the encoder of an offset, and the decoder of colour and alpha.

Their parameters have the names and shapes of the released files (LayerDiffuse, vae_transparent_encoder and
vae_transparent_decoder), which load into the default widths; small widths serve small models. Networks of ours speak
the files' language: channels [alpha, red, green, blue] in 0 .. 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .alpha import pad_rgb
from .stripes import add_pointwise, norm_conv, upsample_conv

ENCODER_WIDTHS = (32, 64, 128, 256)
DECODER_WIDTHS = (32, 32, 64, 128, 256, 512, 512)

Posterior = Callable[[Tensor], tuple[Tensor, Tensor]]
"""The autoencoder's encoder: image [B, 3, H, W] in -1 .. 1 -> mean and standard deviation [B, C, h, w], unscaled."""

_GROUPS, _EPS, _HEAD = 4, 1e-5, 8
_LATENT_LEVEL = 3  # the latent joins at an eighth of the side


@dataclass(frozen=True)
class Convention:
    """What a pair of networks was trained with; the defaults are those of the released files.

    `scale` is lambda_offset: 300 in the released command line, 1 in another program with the same weights. The
    autoencoder sees the picture over a `backdrop` in -1 .. 1. `keep_soft` is how `pad_rgb` treats soft pixels.
    """

    scale: float = 300.0
    backdrop: float = 0.0
    keep_soft: bool = False


class TransparencyEncoder(nn.Module):
    """Padded RGB and alpha -> the offset x_offset at an eighth of the side (Latent Transparency, section 3.1)."""

    def __init__(self, widths: Sequence[int] = ENCODER_WIDTHS, latent_channels: int = 4) -> None:
        super().__init__()
        if len(widths) != _LATENT_LEVEL + 1:
            raise ValueError(f"widths: expected {_LATENT_LEVEL + 1}, one for each size, got {len(widths)}")
        convs = [nn.Conv2d(4, widths[0], 3, 1, 1), nn.Conv2d(widths[0], widths[0], 3, 1, 1)]
        for before, width in pairwise(widths):
            convs += [nn.Conv2d(before, width, 3, 2, 1), nn.Conv2d(width, width, 3, 1, 1)]
        convs.append(nn.Conv2d(widths[-1], latent_channels, 3, 1, 1))
        layers = [part for conv in convs for part in (conv, nn.SiLU())]
        self.blocks = nn.Sequential(*layers[:-1])

    def forward(self, colour: Tensor, alpha: Tensor) -> Tensor:
        """Padded colour [B, 3, H, W] and alpha [B, 1, H, W] in 0 .. 1, sides multiples of 8 -> [B, C, H/8, W/8]."""
        return self.blocks(torch.cat([alpha, colour], 1))


def add_offset(mean: Tensor, std: Tensor, offset: Tensor, scale: float) -> Tensor:
    """x_a = x + lambda_offset * x_std * x_offset (Latent Transparency, section 3.1); all [B, C, h, w], unscaled.
    `mean` and `std` are the autoencoder's for the premultiplied picture."""
    return mean + scale * std * offset


def shown_to_autoencoder(colour: Tensor, alpha: Tensor, backdrop: float = 0.0) -> Tensor:
    """The premultiplied picture I_p = I_c * I_alpha in -1 .. 1, of a padded colour in 0 .. 1, over a backdrop."""
    return (2 * colour - 1) * alpha + backdrop * (1 - alpha)


def encode(
    network: TransparencyEncoder, posterior: Posterior, colour: Tensor, alpha: Tensor, convention: Convention
) -> Tensor:
    """The adjusted latent x_a [B, C, H/8, W/8], unscaled, of a straight colour and an alpha in 0 .. 1, sides multiples
    of 8. Colour where alpha is 0 is ignored."""
    padded = pad_rgb(colour, alpha, keep_soft=convention.keep_soft)
    mean, std = posterior(shown_to_autoencoder(padded, alpha, convention.backdrop))
    return add_offset(mean, std, network(padded, alpha).to(mean), convention.scale)


class Resnet(nn.Module):
    """Takes the pictures whose channels it joins one by one: they are never copied side by side."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(_GROUPS, channels, _EPS), nn.Conv2d(channels, out, 3, 1, 1)
        self.norm2, self.conv2 = nn.GroupNorm(_GROUPS, out, _EPS), nn.Conv2d(out, out, 3, 1, 1)
        self.conv_shortcut = nn.Conv2d(channels, out, 1) if channels != out else None

    def forward(self, *parts: Tensor) -> Tensor:
        h = norm_conv(parts, self.norm1, self.conv1)
        h = norm_conv((h,), self.norm2, self.conv2)
        if self.conv_shortcut is None:
            return h.add_(parts[0])
        return add_pointwise(h, parts, self.conv_shortcut)


class Attention(nn.Module):
    """Self-attention over all places, heads of 8 channels, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(_GROUPS, channels, _EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # B C H W -> B N C
        heads = (b, h * w, c // _HEAD, _HEAD)
        # Zeros to heads of 16 change nothing, and the processor's kernel then takes two thirds of the time.
        q, k, v = (
            F.pad(each(tokens).view(heads).transpose(1, 2), (0, _HEAD)) for each in (self.to_q, self.to_k, self.to_v)
        )
        out = F.scaled_dot_product_attention(q, k, v, scale=_HEAD**-0.5)[..., :_HEAD]
        out = self.to_out[0](out.transpose(1, 2).reshape(b, h * w, c))
        return out.transpose(1, 2).reshape(b, c, h, w).add_(x)


class _Sampler(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride, 1)


class _Level(nn.Module):
    """A level's layers under diffusers' names; `down` and `up` say how they are run."""

    def __init__(self, channels: Sequence[tuple[int, int]], attends: bool, sampler: str = "") -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Resnet(*each) for each in channels])
        self.attentions = nn.ModuleList([Attention(out) for _, out in channels] if attends else [])
        if sampler:
            stride = 2 if sampler == "downsamplers" else 1
            setattr(self, sampler, nn.ModuleList([_Sampler(channels[-1][1], stride)]))

    def layers(self) -> list[tuple[nn.Module, nn.Module | None]]:
        attentions = list(self.attentions) or [None] * len(self.resnets)
        return list(zip(self.resnets, attentions, strict=False))

    def down(self, h: Tensor, skips: list[Tensor]) -> Tensor:
        for resnet, attention in self.layers():
            h = resnet(h)
            h = h if attention is None else attention(h)
            skips.append(h)
        if hasattr(self, "downsamplers"):
            h = _conv(self, "downsamplers")(h)
            skips.append(h)
        return h

    def up(self, h: Tensor, skips: list[Tensor]) -> Tensor:
        for resnet, attention in self.layers():
            h = resnet(h, skips.pop())
            h = h if attention is None else attention(h)
        return upsample_conv(h, _conv(self, "upsamplers")) if hasattr(self, "upsamplers") else h


def _conv(level: Any, sampler: str) -> nn.Conv2d:
    return getattr(level, sampler)[0].conv


class TransparencyDecoder(nn.Module):
    """The autoencoder's picture and the latent behind it -> alpha and colour (Latent Transparency, Eq. 3): a UNet,
    whose `levels` halvings want sides in multiples of `multiple`."""

    def __init__(
        self, widths: Sequence[int] = DECODER_WIDTHS, latent_channels: int = 4, layers: int = 2, attention_from: int = 4
    ) -> None:
        super().__init__()
        last = len(widths) - 1
        if last < _LATENT_LEVEL or any(width % _HEAD for width in widths):
            raise ValueError(
                f"widths: expected at least {_LATENT_LEVEL + 1}, in multiples of {_HEAD}, got {tuple(widths)}"
            )
        self.multiple = 2**last
        joined = widths[_LATENT_LEVEL - 1]
        self.conv_in = nn.Conv2d(3, widths[0], 3, 1, 1)
        self.latent_conv_in = nn.Conv2d(latent_channels, joined, 1)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        kept, before = [widths[0]], widths[0]  # the channels of the skips, as `down` appends them
        for level, width in enumerate(widths):
            channels = [(before, width)] + [(width, width)] * (layers - 1)
            sampler = "downsamplers" if level < last else ""
            self.down_blocks.append(_Level(channels, level >= attention_from, sampler))
            kept += [width] * (layers + (level < last))
            before = width
        self.mid_block = _Level([(before, before)] * 2, False)
        self.mid_block.attentions = nn.ModuleList([Attention(before)])
        for level, width in reversed(list(enumerate(widths))):
            channels = []
            for _ in range(layers + 1):
                channels.append((before + kept.pop(), width))
                before = width
            self.up_blocks.append(_Level(channels, level >= attention_from, "upsamplers" if level else ""))
        self.conv_norm_out = nn.GroupNorm(_GROUPS, widths[0], _EPS)
        self.conv_out = nn.Conv2d(widths[0], 4, 3, 1, 1)

    def memory(self, height: int, width: int) -> int:
        """About the bytes that one picture takes above the weights, without gradients."""
        return 9 * 4 * self.conv_in.out_channels * height * width

    def forward(self, image: Tensor, latent: Tensor) -> Tensor:
        """Image [B, 3, H, W] in 0 .. 1 and unscaled latent [B, C, H/8, W/8] -> [B, 4, H, W]: alpha, red, green, blue,
        about 0 .. 1. ValueError if the sides are no multiples of `multiple`."""
        if any(side % self.multiple for side in image.shape[2:]):
            raise ValueError(f"image: expected sides in multiples of {self.multiple}, got {tuple(image.shape)}")
        h: Any = self.conv_in(image.contiguous(memory_format=torch.channels_last))
        skips = [h]
        blocks: Any = self.down_blocks
        for level, block in enumerate(blocks):
            if level == _LATENT_LEVEL:
                h = h + self.latent_conv_in(latent)  # the skips do not have it
            h = block.down(h, skips)
        first, second = self.mid_block.resnets
        h = second(self.mid_block.attentions[0](first(h)))
        blocks = self.up_blocks
        for block in blocks:
            h = block.up(h, skips)
        return norm_conv((h,), self.conv_norm_out, self.conv_out)
