"""Prompts into CONDITIONING."""

from __future__ import annotations

from typing import Any

from ...hosts import schema as io
from ._node import StockNode


class CLIPTextEncode(StockNode):
    """One prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLIPTextEncode",
            display_name="CLIP Text Encode (Prompt)",
            category="conditioning",
            description="Turns a prompt into what guides the model. (word:1.3) weighs a word more, (word:0.7) less.",
            inputs=[
                io.String.Input("text", multiline=True, dynamic_prompts=True, tooltip="The prompt."),
                io.Clip.Input("clip", tooltip="The model's text encoder."),
            ],
            outputs=[io.Conditioning.Output()],
            search_aliases=["prompt"],
        )

    @classmethod
    def execute(cls, text: str, clip: Any) -> io.NodeOutput:
        from ...hosts.diffusers import HOST

        return io.NodeOutput(HOST.conditioning(clip.encode([text])))


class CLIPSetLastLayer(StockNode):
    """Another hidden state of the text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CLIPSetLastLayer",
            display_name="CLIP Set Last Layer",
            category="conditioning",
            description="Lets the text encoder stop early: -1 is its last layer, -2 the one before it.",
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder."),
                io.Int.Input(
                    "stop_at_clip_layer", default=-1, min=-24, max=-1, step=1, tooltip="Counted from the end."
                ),
            ],
            outputs=[io.Clip.Output()],
            search_aliases=["clip skip"],
        )

    @classmethod
    def execute(cls, clip: Any, stop_at_clip_layer: int) -> io.NodeOutput:
        return io.NodeOutput(clip.stopping_at(stop_at_clip_layer))


class ConditioningCombine(StockNode):
    """Several prompts in one wire."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConditioningCombine",
            display_name="Conditioning (Combine)",
            category="conditioning",
            description="Prompts beside one another: a sampler takes the mean of what they lead to, a trainer or a "
            "meter one after the other.",
            inputs=[
                io.Conditioning.Input("conditioning_1", tooltip="The first prompts."),
                io.Conditioning.Input("conditioning_2", tooltip="Those that follow."),
            ],
            outputs=[io.Conditioning.Output()],
            search_aliases=["combine", "several prompts"],
        )

    @classmethod
    def execute(cls, conditioning_1: Any, conditioning_2: Any) -> io.NodeOutput:
        return io.NodeOutput([*conditioning_1, *conditioning_2])


NODES = [CLIPTextEncode, CLIPSetLastLayer, ConditioningCombine]
