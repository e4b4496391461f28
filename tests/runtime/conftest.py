"""Small nodes to run: real classes on the schema, which note that they ran."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from velatura.hosts import running, ui
from velatura.hosts import schema as io


@pytest.fixture
def small() -> SimpleNamespace:
    """`nodes` by id, their `schemas`, `ran`: the ids of the nodes that ran, in order; `state` steers what they do."""
    from velatura.runtime import registry

    ran: list[str] = []
    state = SimpleNamespace(mark="first", fail=False, on_step=lambda step: None)

    class Number(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            value = io.Int.Input("value", default=1, min=0, max=100)
            return io.Schema("Number", "A Number", "small", [value], [io.Int.Output()], [io.Hidden.unique_id])

        @classmethod
        def execute(cls, value):
            ran.append(cls.hidden.unique_id)
            return io.NodeOutput(value)

    class Add(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            inputs = [io.Int.Input(name, optional=name not in "ab", default=0) for name in "abcdef"]
            return io.Schema("Add", "Add", "small", inputs, [io.Int.Output("sum")], [io.Hidden.unique_id])

        @classmethod
        def execute(cls, **given):
            ran.append(cls.hidden.unique_id)
            if state.fail:
                raise ValueError("the sum is too large")
            return io.NodeOutput(sum(given.values()))

    class Draw(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            inputs = [
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=True),
                io.Combo.Input("mode", options=["fixed", "wide", "narrow"]),
                io.Float.Input("scale", default=1.0, min=0.0, max=10.0),
                io.Boolean.Input("flip", default=False),
                io.String.Input("text", multiline=True, default=""),
                io.Image.Input("under", optional=True),
            ]
            return io.Schema("Draw", "Draw a Picture", "small", inputs, [io.Image.Output(), io.Mask.Output()])

        @classmethod
        def execute(cls, seed, mode, scale, flip, text, under=None):
            import torch

            generator = torch.Generator().manual_seed(seed)
            image = torch.rand(1, 8, 8, 3, generator=generator) * scale / 10
            return io.NodeOutput(image if under is None else (image + under) / 2, image[..., 0])

    class Marked(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            outputs = [io.String.Output()]
            return io.Schema("Marked", "Marked", "small", [], outputs, [io.Hidden.unique_id])

        @classmethod
        def fingerprint_inputs(cls, **given):
            return state.mark

        @classmethod
        def execute(cls):
            ran.append(cls.hidden.unique_id)
            return io.NodeOutput(str(state.mark))

    class Slow(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            inputs = [io.Int.Input("steps", default=5, min=1, max=50), io.AnyType.Input("after", optional=True)]
            return io.Schema("Slow", "Slow", "small", inputs, [io.Int.Output()], [io.Hidden.unique_id])

        @classmethod
        def execute(cls, steps, after=None):
            ran.append(cls.hidden.unique_id)
            progress = running.progress(steps)
            for step in range(steps):
                progress(step + 1, steps, None)
                state.on_step(step)
            return io.NodeOutput(steps)

    class Judge(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema("Judge", "Judge", "small", [io.Int.Input("even", min=0, max=4)], [io.Int.Output()])

        @classmethod
        def validate_inputs(cls, even):
            return True if even % 2 == 0 else f"{even} is odd"

        @classmethod
        def execute(cls, even):
            return io.NodeOutput(even)

    class Show(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            inputs = [io.AnyType.Input("value"), io.AnyType.Input("more", optional=True)]
            hidden = [io.Hidden.unique_id]
            return io.Schema("Show", "Show", "small", inputs, [], hidden, is_output_node=True)

        @classmethod
        def execute(cls, value, more=None):
            ran.append(cls.hidden.unique_id)
            return io.NodeOutput(ui=ui.PreviewText(str(value)))

    class Look(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema("Look", "Look", "small", [io.Image.Input("image")], [], is_output_node=True)

        @classmethod
        def execute(cls, image):
            return io.NodeOutput(ui=ui.PreviewImage(image, cls=cls))

    nodes = registry.by_id([Number, Add, Draw, Marked, Slow, Judge, Show, Look])
    return SimpleNamespace(nodes=nodes, schemas=registry.object_info(nodes), ran=ran, state=state)
