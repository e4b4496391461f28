"""The running node's progress bar."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
import torch

from ...core.protocols import Progress

PREVIEW_SIDE = 512


def progress(total: int) -> Progress:
    """Shows steps and previews on the node that runs; raises InterruptProcessingException when the user cancels."""
    bar = comfy.utils.ProgressBar(total)

    def report(step: int, total: int, preview: Any = None) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(step, total, None if preview is None else ("JPEG", _picture(preview), PREVIEW_SIDE))

    return report


def _picture(image: torch.Tensor) -> Any:
    from PIL import Image

    pixels = image.detach().float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return Image.fromarray(pixels.movedim(0, -1).numpy())  # CHW -> HWC
