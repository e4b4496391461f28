"""What the stock nodes share: ids, sockets and defaults are ComfyUI's, so that its workflow files fit."""

from __future__ import annotations

from ...hosts import schema as io

MAX_SIDE = 16384


class StockNode(io.ComfyNode):
    """A node that ComfyUI has itself; `python_module` tells the browser so."""

    RELATIVE_PYTHON_MODULE = "nodes"


def seed_input(id: str) -> io.Input:
    """A seed of 64 bits, with the browser's choice of what to do after each run."""
    return io.Int.Input(
        id,
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="The noise is drawn from this number: the same seed gives the same picture.",
    )


def cfg_input() -> io.Input:
    """The guidance scale."""
    return io.Float.Input(
        "cfg",
        default=8.0,
        min=0.0,
        max=100.0,
        step=0.1,
        round=0.01,
        tooltip="Guidance: how far to go from the negative prompt towards the positive one. 1 leaves the negative out.",
    )


def steps_input() -> io.Input:
    """The number of steps."""
    return io.Int.Input("steps", default=20, min=1, max=10000, tooltip="How many steps the denoising takes.")


def size_inputs(minimum: int, step: int) -> list[io.Input]:
    """Width and height in pixels."""
    return [
        io.Int.Input(side, default=512, min=minimum, max=MAX_SIDE, step=step, tooltip=f"The {side} in pixels.")
        for side in ("width", "height")
    ]
