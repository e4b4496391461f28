"""How alike two pictures are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures [B, C, H, W] in 0 .. 1: [B], at most 100."""
    return -10 * torch.log10((a - b).square().flatten(1).mean(1).clamp(min=1e-10))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity [B] of pictures [B, C, H, W] in 0 .. 1, sides of at least 11 (Wang et al. 2004: Gaussian
    window of 11, sigma 1.5). Differentiable."""
    channels = a.shape[1]
    offset = torch.arange(11, dtype=a.dtype, device=a.device) - 5
    line = torch.exp(-(offset**2) / (2 * 1.5**2))
    window = (line / line.sum()).expand(5 * channels, 1, 1, 11)
    moments = torch.cat([a, b, a * a, b * b, a * b], 1)
    rows = F.conv2d(moments, window, groups=5 * channels)
    ma, mb, maa, mbb, mab = F.conv2d(rows, window.transpose(2, 3), groups=5 * channels).chunk(5, 1)
    va, vb, cov = maa - ma**2, mbb - mb**2, mab - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return value.flatten(1).mean(1)
