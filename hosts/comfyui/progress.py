"""The running node's progress bar, and its messages to the browser."""

# pyright: reportMissingImports=false
from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_execution.utils import get_executing_context

from ...core.protocols import Progress

PREVIEW_SIDE = 512


def progress(total: int) -> Progress:
    """Shows steps and previews on the node that runs; raises InterruptProcessingException when the user cancels."""
    bar = comfy.utils.ProgressBar(total)

    def report(step: int, total: int, preview: Any = None) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(step, total, None if preview is None else ("JPEG", _picture(preview), PREVIEW_SIDE))

    return report


def preview(model: Any) -> Callable[[torch.Tensor], torch.Tensor | None]:
    """What the user's preview method makes of a MODEL's scaled latent [C, h, w]: [3, H, W] in 0 .. 1; None for none."""
    import latent_preview  # builds networks' classes: not before it is needed
    from PIL import Image

    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def look(latent: torch.Tensor) -> torch.Tensor | None:
        if previewer is None:
            return None
        picture: Image.Image = previewer.decode_latent_to_preview(latent[None])
        pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
        return pixels.reshape(picture.height, picture.width, 3).movedim(-1, 0).float() / 255

    return look


def tell(event: str, data: dict[str, Any]) -> None:
    """Send the message `velatura.EVENT` to whoever queued the running prompt, if it was a browser."""
    server, running = getattr(comfy_server(), "instance", None), get_executing_context()
    # Without a client's id ComfyUI would send it to everyone.
    if server is None or server.client_id is None or running is None:
        return
    message = {**data, "node": running.node_id, "prompt_id": running.prompt_id}
    server.send_sync(f"velatura.{event}", message, server.client_id)


def comfy_server() -> Any:
    """ComfyUI's PromptServer, None where ComfyUI is used as a library: importing it there would build a server."""
    return getattr(sys.modules.get("server"), "PromptServer", None)


def _picture(image: torch.Tensor) -> Any:
    from PIL import Image

    pixels = image.detach().float().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return Image.fromarray(pixels.movedim(0, -1).numpy())  # CHW -> HWC
