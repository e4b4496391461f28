"""The file of a model that was taught a spatial condition: one safetensors file that says what it is told.

A LoRA in kohya's layout, and `lora_unet_conv_in.diff` [out, C + C', k, k], what is added to the first convolution's
weight, which reads C' more channels then. The header: `velatura_told` is "classes" or "small picture";
`velatura_classes`, JSON, has a name and a colour, RRGGBB, for each class; `velatura_size` is the side in pixels of the
pictures it was trained on; `velatura_scale` how many times it enlarges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from .layer_patch import FIRST, LayerPatch
from .lora import read_lora

DIFF = f"lora_unet_{FIRST}.diff"
Told = Literal["classes", "small picture"]
KINDS: tuple[Told, ...] = ("classes", "small picture")


@dataclass(frozen=True)
class SpatialPatch:
    """A patch, and what it is told: for "classes" their colours, RRGGBB, by name in their order."""

    patch: LayerPatch
    told: Told
    classes: Mapping[str, str] = field(default_factory=dict)
    size: int = 128
    scale: int = 4

    def header(self) -> dict[str, str]:
        """The metadata of its file."""
        pairs = json.dumps(list(self.classes.items()))
        return {
            "velatura_told": self.told,
            "velatura_classes": pairs,
            "velatura_size": str(self.size),
            "velatura_scale": str(self.scale),
        }

    def channels(self) -> int:
        """How many channels its first convolution reads, the noisy latent's among them."""
        return self.patch.weights[FIRST].shape[1]


def spatial_patch_from(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> SpatialPatch:
    """The patch of a file. ValueError for any other file."""
    told = header.get("velatura_told")
    if told not in KINDS or DIFF not in tensors:
        raise ValueError(
            "expected a file of a model that is told a map or a small picture (velatura_told in its header, and "
            f"{DIFF}); LoRAs and layer patches are for Load LoRA and Load Layer Patch"
        )
    low = read_lora({name: value for name, value in tensors.items() if name != DIFF}).of("unet")
    try:
        pairs = json.loads(header.get("velatura_classes", "[]"))
        classes = {str(name): str(colour).lower() for name, colour in pairs}
        size, scale = int(header.get("velatura_size", 128)), int(header.get("velatura_scale", 4))
    except (ValueError, TypeError) as error:
        raise ValueError(f"its header is damaged ({error}); copy or train it again") from error
    odd = [colour for colour in classes.values() if not re.fullmatch("[0-9a-f]{6}", colour)]
    if odd or len(classes) != len(pairs) or len(set(classes.values())) != len(classes):
        raise ValueError("its header is damaged: expected classes with one colour each, RRGGBB; train it again")
    if (told == "classes") != bool(classes) or size < 8 or scale < 1:
        raise ValueError("its header is damaged: its classes, size or scale cannot be; train it again")
    return SpatialPatch(LayerPatch(low, {FIRST: tensors[DIFF]}), told, classes, size, scale)
