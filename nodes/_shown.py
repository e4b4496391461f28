"""What nodes show on themselves, for the widgets in web/: pictures in the temporary folder, and their names."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..core.layers import Layers
from ..hosts import host
from ..hosts.files import whole_file
from ._rgba import rgba_of

FOLDER = "velatura"
"""Below the temporary folder."""
PAIRS = 16
"""Pairs that a comparison shows; more would only fill the disk."""


def comparison(a: Tensor, b: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """Two batches of pictures [B, H, W, 3] in 0 .. 1, one over the other; either may be of one picture for all."""
    shown = {"a": _saved(a[:PAIRS], "png"), "b": _saved(b[:PAIRS], "png"), "names": list(names)}
    return {"velatura_compare": [shown]}


def film(frames: Tensor) -> dict[str, Any]:
    """Frames [N, H, W, 3] in 0 .. 1 to leaf through. As JPEG: there may be a thousand, and the output is lossless."""
    return {"velatura_frames": [{"frames": _saved(frames, "jpeg")}]}


def pictures(images: Tensor) -> list[dict[str, str]]:
    """Pictures [N, H, W, 3 or 4] in 0 .. 1, with their alpha where they have one."""
    return _saved(images, "png", channels=4)


def stack(layers: Layers) -> dict[str, Any]:
    """Layers, the lowest first, each as a picture of its own; of a batch the first."""
    shown = [
        {"name": each.name, "x": each.x, "y": each.y, "opacity": each.opacity, "blend": each.blend, "image": image}
        for each in layers.layers
        for image in pictures(rgba_of(each.colour[:1], each.alpha[:1]))
    ]
    return {"velatura_layers": [{"width": layers.width, "height": layers.height, "layers": shown}]}


def _saved(pictures: Tensor, kind: str, channels: int = 3) -> list[dict[str, str]]:
    """Each as a file, described as ComfyUI's are."""
    from PIL import Image

    options: dict[str, Any] = {"compress_level": 1} if kind == "png" else {"quality": 92, "subsampling": 0}
    stem, files = uuid.uuid4().hex[:12], []
    for number, pixels in enumerate((pictures[..., :channels] * 255).clamp(0, 255).byte().cpu().numpy()):
        name = f"{stem}_{number:05}.{kind}"
        with whole_file(host().folder("temp") / FOLDER / name) as stream:
            Image.fromarray(pixels).save(stream, kind.upper(), **options)
        files.append({"filename": name, "subfolder": FOLDER, "type": "temp"})
    return files
