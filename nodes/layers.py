"""Layers: put one over another, and save them as a file that painting programs open."""

from __future__ import annotations

import re
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.alpha import over
from ..core.harmonise import harmonised
from ..core.layers import BLENDS, Layer, Layers
from ..hosts import host, layered
from ._api import io, schema, ui
from ._rgba import CONVENTION, alpha_of, image_of, rgba_of
from ._shown import stack

LayersType = io.Custom("VELATURA_LAYERS")
FORMATS = {"PSD": ["psd"], "OpenRaster": ["ora"], "PNG set": ["png"], "all three": ["psd", "ora", "png"]}


class VelaturaCompositeLayers(io.ComfyNode):
    """A layer on top of others."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaCompositeLayers",
            display_name="Composite Layers (Velatura)",
            category="Velatura/layers",
            description="Puts a picture on top of the layers that came before, and shows what they look like together. "
            "The first of a chain makes the canvas.",
            search_aliases=["alpha over", "blend", "merge layers", "overlay", "join image with alpha"],
            inputs=[
                io.Image.Input("image", tooltip="The layer's picture."),
                LayersType.Input("layers", optional=True, tooltip="What lies below. Unconnected: this is the lowest."),
                io.Mask.Input("mask", optional=True, tooltip=CONVENTION + " With neither it is opaque."),
                io.String.Input("name", default="layer", optional=True, tooltip="The layer's name, in the file too."),
                io.Float.Input(
                    "opacity", default=1.0, min=0.0, max=1.0, step=0.01, optional=True, tooltip="1 covers, 0 hides it."
                ),
                io.Int.Input(
                    "x", default=0, min=-16384, max=16384, optional=True, tooltip="Pixels from the canvas's left edge."
                ),
                io.Int.Input(
                    "y", default=0, min=-16384, max=16384, optional=True, tooltip="Pixels from the canvas's upper edge."
                ),
                io.Combo.Input(
                    "blend",
                    options=list(BLENDS),
                    default="normal",
                    optional=True,
                    tooltip="How its colour meets what is below, as in painting programs.",
                ),
                io.Float.Input(
                    "harmonise",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="How far its colours go towards those of what lies behind and around it, so that it looks "
                    "as if it stood there. 0: not; 0.2 to 0.4 is usual; 1 takes them over.",
                ),
            ],
            outputs=[
                LayersType.Output(display_name="layers", tooltip="All layers so far: for the next, and for saving."),
                io.Image.Output(display_name="image", tooltip="All layers together; black where there is nothing."),
                io.Mask.Output(display_name="mask", tooltip="Where they leave it transparent: 1 is transparent."),
                io.Image.Output(display_name="rgba", tooltip="Colour and alpha in one: Save Image writes both."),
            ],
        )

    @classmethod
    @torch.no_grad()
    def execute(
        cls, image: Tensor, layers: Layers | None = None, mask: Tensor | None = None, name: str = "layer",
        opacity: float = 1.0, x: int = 0, y: int = 0, blend: str = "normal", harmonise: float = 0.0,
    ) -> io.NodeOutput:  # fmt: skip
        colour = image[..., :3].float().cpu().movedim(-1, 1).clamp(0, 1)
        alpha = alpha_of(image, mask)
        alpha = torch.ones_like(colour[:, :1]) if alpha is None else alpha
        if layers is None:
            layers = Layers(colour.shape[2], colour.shape[3])
        layer = Layer(name.strip() or "layer", colour, alpha, opacity, x, y, blend)
        made = layers.added(harmonised(layers, layer, harmonise))
        flat, shown = made.flatten()
        return io.NodeOutput(made, image_of(flat * (shown > 0)), 1 - shown[:, 0], rgba_of(flat, shown), ui=stack(made))


class VelaturaSaveLayers(io.ComfyNode):
    """Layers as a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaSaveLayers",
            display_name="Save Layers (Velatura)",
            category="Velatura/layers",
            description="Saves layers in the output folder as Photoshop's PSD, as OpenRaster (Krita, GIMP) or as a "
            "folder of PNGs, with names, places, opacities, blend modes and real transparency.",
            search_aliases=["export psd", "photoshop", "openraster", "ora", "krita", "gimp", "save psd"],
            inputs=[
                LayersType.Input("layers", tooltip="From Composite Layers."),
                io.String.Input(
                    "filename",
                    default="layers",
                    tooltip="The files are FILENAME_00001_.psd and on. May hold folders below the output folder.",
                ),
                io.Combo.Input(
                    "format",
                    options=list(FORMATS),
                    default="PSD",
                    tooltip="PSD opens in nearly all programs and needs the psd-tools package; OpenRaster in Krita, "
                    "GIMP, MyPaint; the PNG set is a folder of layers in their own size, with a layers.json.",
                ),
                io.Boolean.Input(
                    "numbered",
                    default=True,
                    optional=True,
                    tooltip="Count on, so that nothing is replaced. Off: exactly this name, and an error where it is "
                    "taken.",
                ),
            ],
            outputs=[io.String.Output(display_name="files", tooltip="The paths of what was saved, one in a line.")],
            is_output_node=True,
        )

    @classmethod
    @torch.no_grad()
    def execute(cls, layers: Layers, filename: str, format: str, numbered: bool = True) -> io.NodeOutput:
        target, kinds, count = _target(filename), FORMATS[format], layers.batch()
        stems = _stems(target, kinds, count, numbered)
        bar, saved = host().progress(count * len(kinds)), list[Path]()
        for number, stem in enumerate(stems):
            for kind in kinds:
                path = target.with_name(stem if kind == "png" else f"{stem}.{kind}")
                layered.WRITERS[kind](path, layers, number)
                saved.append(path)
                bar(len(saved), count * len(kinds), None)
        flat, alpha = layers.flatten()
        shown, _ = over(flat, alpha, torch.full_like(flat, 0.8))
        return io.NodeOutput("\n".join(map(str, saved)), ui=ui.PreviewImage(image_of(shown), cls=cls))


def _target(filename: str) -> Path:
    """The wanted path without its ending. ValueError if it leads out of the output folder."""
    clean = re.sub(r"\.(psd|ora|png)$", "", filename.strip(), flags=re.IGNORECASE).replace("\\", "/")
    parts = clean.split("/")
    if any(part in ("", ".", "..") or part.startswith(".") or re.search(r'[\0-\x1f:*?"<>|]', part) for part in parts):
        raise ValueError(f"filename: expected a name, perhaps in folders below the output folder, got {filename!r}")
    return host().folder("output").joinpath(*parts)


def _stems(target: Path, kinds: list[str], count: int, numbered: bool) -> list[str]:
    if numbered:
        return list(islice(layered.numbered(target.parent, target.name, {f".{kind}" for kind in kinds}), count))
    stems = [target.name] if count == 1 else [f"{target.name}_{k + 1:05}" for k in range(count)]
    for stem in stems:
        for kind in kinds:
            path: Any = target.with_name(stem if kind == "png" else f"{stem}.{kind}")
            if path.exists():
                raise ValueError(f"filename: {path} is there already; choose another name, or switch numbered on")
    return stems
