"""What happens to pictures before anybody wants them larger: blur, a resampling kernel, noise, JPEG."""

from __future__ import annotations

import io

import torch
import torch.nn.functional as F
from torch import Tensor

NUMBERS = 5
"""Random numbers in 0 .. 1 that decide about one picture's damage."""
KERNELS = ("area", "bilinear", "bicubic", "nearest")


def damaged(picture: Tensor, u: Tensor, factor: int, seed: int) -> Tensor:
    """A picture [1, 3, H, W] in 0 .. 1 -> a small one of H / factor x W / factor, with the damage that the numbers `u`
    [NUMBERS] choose: always a kernel, mostly blur before it, noise, of the seed, and JPEG after it."""
    blur, which, noise, jpeg, quality = u[:NUMBERS].tolist()
    soft = blurred(picture, 2.2 * max(0.0, blur - 0.25))
    small = reduced(soft, KERNELS[int(which * len(KERNELS))], factor)
    grain = torch.randn(small.shape, generator=torch.Generator().manual_seed(seed))
    small = (small + 0.04 * max(0.0, noise - 0.3) * grain).clamp(0, 1)
    return compressed(small, int(60 + 38 * quality)) if jpeg > 0.3 else small


def blurred(picture: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [B, 3, H, W], sigma in pixels, the border continued."""
    if sigma < 0.1:
        return picture
    half = int(3 * sigma) + 1
    line = torch.exp(-0.5 * (torch.arange(-half, half + 1) / sigma) ** 2)
    kernel = (line / line.sum()).expand(3, 1, 1, -1)
    wide = F.pad(picture, (half, half, half, half), mode="replicate")
    return F.conv2d(F.conv2d(wide, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def reduced(picture: Tensor, kernel: str, factor: int = 4) -> Tensor:
    """Smaller by a factor, through one of KERNELS; "nearest" takes single pixels, from near the middle."""
    if kernel == "area":
        return F.avg_pool2d(picture, factor)
    if kernel == "nearest":
        return picture[..., factor // 2 :: factor, factor // 2 :: factor]
    size = (picture.shape[-2] // factor, picture.shape[-1] // factor)
    return F.interpolate(picture, size=size, mode=kernel, align_corners=False, antialias=True).clamp(0, 1)


def compressed(picture: Tensor, quality: int) -> Tensor:
    """One picture [1, 3, h, w] through JPEG."""
    import numpy as np
    from PIL import Image

    pixels = (picture[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality)
    back = np.array(Image.open(stream).convert("RGB"))
    return torch.from_numpy(back).permute(2, 0, 1)[None].float() / 255
