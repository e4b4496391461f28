"""The drag editor: arrows and a mask, drawn on the node's own picture."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.points import parse
from ..hosts import host
from ._api import io, schema
from ._shown import pictures

PointsType = io.Custom("VELATURA_POINTS")


class VelaturaDragEditor(io.ComfyNode):
    """Where to drag what."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaDragEditor",
            display_name="Drag Editor (Velatura)",
            category="Velatura/drag",
            description="Draw on the picture: an arrow from each handle to where it shall go, and a brush over what "
            "may move. A picture that is made by the graph is shown here once the graph has run.",
            search_aliases=["points editor", "drag points", "handles", "arrows", "draggan", "dragdiffusion", "mask"],
            inputs=[
                io.Image.Input("image", tooltip="The picture to draw on: the first of a batch is shown."),
                io.String.Input(
                    "drag",
                    default="",
                    tooltip='What was drawn, as text: {"points": [{"from": [x, y], "to": [x, y]}], "mask": [{"paint": '
                    'true, "size": d, "path": [[x, y]]}], "size": [width, height]}, in pixels. It may be written by '
                    "hand.",
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip="What may move besides what is painted here: 1 may, 0 may not."
                ),
            ],
            outputs=[
                PointsType.Output(display_name="points", tooltip="Handles and their targets."),
                io.Mask.Output(display_name="mask", tooltip="What may move: 1 may. All where nothing is painted."),
                io.Image.Output(display_name="image", tooltip="The picture, as it came."),
            ],
            is_output_node=True,
        )

    @classmethod
    @torch.no_grad()
    def execute(cls, image: Tensor, drag: str, mask: Tensor | None = None) -> io.NodeOutput:
        height, width = image.shape[1:3]
        shown = {"image": pictures(image[:1])[0]}
        # Told before anything can be wrong: who has nothing drawn yet needs the picture most.
        host().tell("editor", shown)
        if not drag.strip():
            raise ValueError("drag: nothing is drawn yet; draw an arrow on the picture that the node now shows")
        drawing = parse(drag, width, height).on(width, height)
        allowed = _joined(drawing.mask(), mask, len(image))
        return io.NodeOutput(drawing.points(), allowed, image, ui={"velatura_editor": [shown]})


def _joined(painted: Tensor, given: Tensor | None, count: int) -> Tensor:
    """What may move, [B, H, W]: what is painted or given; everything where that is nothing. ValueError if the given
    mask is of another size or batch."""
    allowed = painted.expand(count, -1, -1)
    if given is not None and bool(given.any()):
        given = given.reshape(-1, *given.shape[-2:]).float().cpu().clamp(0, 1)
        if given.shape[1:] != painted.shape:
            raise ValueError(
                f"mask: expected the image's size {painted.shape[1]}x{painted.shape[0]}, got "
                f"{given.shape[2]}x{given.shape[1]}; resize one of them"
            )
        if len(given) not in (1, count):
            raise ValueError(f"mask: expected {count}, as many as pictures, or 1, got {len(given)}")
        allowed = torch.maximum(allowed, given)
    nothing = allowed.flatten(1).amax(1) == 0
    return torch.where(nothing[:, None, None], torch.ones_like(allowed), allowed)
