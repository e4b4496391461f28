"""Generate-then-matte: the alpha of an object cut out of a finished picture, as without latent transparency."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

RIM = 3  # pixels on both sides of the outline whose alpha is to be found


def grab_cut(image: Tensor, alpha: Tensor) -> Tensor:
    """The object [H, W], 0 or 1, that OpenCV's GrabCut (Rother et al. 2004) finds in a picture [3, H, W] in 0 .. 1.

    It is told the rectangle around the true `alpha` [H, W], which nobody who cuts by hand knows better.
    """
    import cv2
    import numpy as np

    pixels = np.ascontiguousarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).flip(2).numpy())
    rows, columns = (alpha > 0.02).any(1).nonzero()[:, 0], (alpha > 0.02).any(0).nonzero()[:, 0]
    top, left = max(1, int(rows[0]) - 1), max(1, int(columns[0]) - 1)
    box = (left, top, int(columns[-1]) + 2 - left, int(rows[-1]) + 2 - top)
    mask = np.zeros(alpha.shape, np.uint8)
    cv2.setRNGSeed(0)
    cv2.grabCut(pixels, mask, box, np.zeros((1, 65)), np.zeros((1, 65)), 5, cv2.GC_INIT_WITH_RECT)
    return torch.from_numpy(np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD))).float()


def matte(image: Tensor, cut: Tensor) -> Tensor:
    """Closed-form matting (Levin et al. 2008), by pymatting, of the rim around a cut: alpha [H, W] in 0 .. 1."""
    import numpy as np
    import pymatting

    known: Any = cut[None, None]
    inside = -torch.nn.functional.max_pool2d(-known, 2 * RIM + 1, 1, RIM)[0, 0]
    outside = torch.nn.functional.max_pool2d(known, 2 * RIM + 1, 1, RIM)[0, 0]
    if not bool(inside.any()) or bool(outside.all()):
        return cut
    trimap = torch.where(inside > 0, 1.0, torch.where(outside > 0, 0.5, 0.0))
    found = pymatting.estimate_alpha_cf(image.permute(1, 2, 0).double().numpy(), trimap.double().numpy())
    return torch.from_numpy(np.asarray(found)).float().clamp(0, 1)


def errors(images: Tensor, alphas: Tensor) -> dict[str, float]:
    """Mean absolute error of alpha, by method, for pictures [B, 3, H, W] and their true alphas [B, 1, H, W].

    ModuleNotFoundError names the package that is missing.
    """
    seen: dict[str, list[float]] = {"grab_cut": [], "closed_form": []}
    for image, alpha in zip(images, alphas[:, 0], strict=True):
        cut = grab_cut(image, alpha)
        seen["grab_cut"].append(float((cut - alpha).abs().mean()))
        seen["closed_form"].append(float((matte(image, cut) - alpha).abs().mean()))
    return {name: sum(each) / len(each) for name, each in seen.items()}
