"""The picture that a decoder with a droplet means.

A decoder whose late group norms have a channel or few to a group can learn to steer them by one spike, a single place a
hundred times as high as the rest, which most of a group's variance comes from (the droplets of Karras et al. 2020,
"Analyzing and Improving the Image Quality of StyleGAN", section 2). Where a latent unlike those it was trained on makes
no spike, everything else is divided by too little, and the picture is garbage. It is whole with the statistics of
another latent that does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def decode_like(vae: nn.Module, latents: Tensor, others: Tensor) -> Tensor:
    """The pictures of `latents` [B, C, h, w] with the means and variances that the late norms have for `others`, of the
    same shape: [B, 3, H, W] in -1 .. 1.

    Unscaled latents, diffusers' AutoencoderKL. The late norms are those of its decoder's last two stages and of its
    output; the same latents twice are decoded as ever.
    """
    net: Any = vae
    late = [*net.decoder.up_blocks[-2:].modules(), net.decoder.conv_norm_out]
    hooks = [part.register_forward_hook(_first_half_leads) for part in late if isinstance(part, nn.GroupNorm)]
    try:
        return net.decode(torch.cat([others, latents])).sample.float()[len(others) :]
    finally:
        for hook in hooks:
            hook.remove()


def _first_half_leads(norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """The output of a group norm [2B, C, h, w] with the second half normalised by the first half's statistics."""
    group: Any = norm
    leading, led = inputs[0].float().chunk(2)
    variance, mean = torch.var_mean(leading.unflatten(1, (group.num_groups, -1)), (2, 3, 4), correction=0)
    share = led.shape[1] // group.num_groups
    mean, rstd = (v.repeat_interleave(share, 1)[..., None, None] for v in (mean, (variance + group.eps).rsqrt()))
    turned = (led - mean) * rstd * group.weight[:, None, None] + group.bias[:, None, None]
    return torch.cat([output[: len(leading)], turned.to(output)])
