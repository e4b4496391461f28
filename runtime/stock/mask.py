"""MASK [B, H, W] in 0 .. 1."""

from __future__ import annotations

from torch import Tensor

from ...hosts import schema as io
from ._node import StockNode

CHANNELS = ["red", "green", "blue", "alpha"]


class ImageToMask(StockNode):
    """A channel as a mask."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImageToMask",
            display_name="Convert Image to Mask",
            category="mask",
            description="Takes one channel of a picture as a mask.",
            inputs=[
                io.Image.Input("image", tooltip="The picture."),
                io.Combo.Input("channel", options=CHANNELS, tooltip="Which channel; alpha where the picture has one."),
            ],
            outputs=[io.Mask.Output()],
        )

    @classmethod
    def execute(cls, image: Tensor, channel: str) -> io.NodeOutput:
        index = CHANNELS.index(channel)
        if index >= image.shape[-1]:
            raise ValueError(
                f"channel: the image has {image.shape[-1]} channels, no {channel}; choose red, green or blue"
            )
        return io.NodeOutput(image[..., index])


class MaskToImage(StockNode):
    """A mask in grey."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MaskToImage",
            display_name="Convert Mask to Image",
            category="mask",
            description="Shows a mask as a grey picture: 0 black, 1 white.",
            inputs=[io.Mask.Input("mask", tooltip="The mask.")],
            outputs=[io.Image.Output()],
        )

    @classmethod
    def execute(cls, mask: Tensor) -> io.NodeOutput:
        return io.NodeOutput(mask.reshape(-1, *mask.shape[-2:], 1).expand(-1, -1, -1, 3))


NODES = [ImageToMask, MaskToImage]
