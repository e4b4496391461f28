"""A class map painted in words, where no picture is at hand."""

from __future__ import annotations

from typing import Any

import torch

from ..core.palette import colours_of, painted
from ._api import io, schema
from ._paint import SHAPES, paint
from .conditions import changed, file_input, patch_of

EXAMPLE = """sunny meadow far
sunny meadow ground: hills 0.62 0.02
mushroom: mushroom 0.3 0.55 0.2
star: star 0.72 0.32 0.16"""


class VelaturaPaintMap(io.ComfyNode):
    """A map from lines of text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaPaintMap",
            display_name="Paint Map (Velatura)",
            category="Velatura/conditions",
            description="Paints a class map from lines of text, a shape each, the later ones on top. For Semantic Map; "
            "save it to go on in a painting program, in the same colours.",
            search_aliases=["segmentation map", "shapes", "layout", "palette"],
            inputs=[
                io.String.Input(
                    "text",
                    default=EXAMPLE,
                    multiline=True,
                    tooltip="CLASS: SHAPE NUMBERS, the numbers as parts of the sides. Shapes: "
                    + ", ".join(f"{name} {wants}".strip() for name, (wants, _) in SHAPES.items())
                    + ". A class alone is everywhere.",
                ),
                io.Int.Input("width", default=128, min=8, max=4096, step=8, tooltip="The map's width in pixels."),
                io.Int.Input("height", default=128, min=8, max=4096, step=8, tooltip="The map's height in pixels."),
                file_input("classes", "Whose classes and colours: the demo's, or those of a file in models/loras."),
            ],
            outputs=[io.Image.Output(display_name="map", tooltip="The map, each class in its colour.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> float:
        return changed("classes", file)

    @classmethod
    @torch.no_grad()
    def execute(cls, text: str, width: int, height: int, file: str) -> io.NodeOutput:
        patch = patch_of("classes", file)
        classes = paint(text, list(patch.classes), height, width)
        return io.NodeOutput(painted(classes, colours_of(list(patch.classes.values()))).movedim(1, -1))
