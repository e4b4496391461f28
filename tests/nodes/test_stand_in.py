"""The stand-in for ComfyUI's schema. `v1_info.json` is what ComfyUI 0.3.64 itself says about this very class."""

import enum
import json
from pathlib import Path

import pytest

from velatura.hosts import schema

KNOWN = json.loads(Path(__file__).with_name("v1_info.json").read_text(encoding="utf-8"))
WIRES = [
    "Image",
    "Mask",
    "Latent",
    "Conditioning",
    "Model",
    "Clip",
    "Vae",
    "Sampler",
    "Sigmas",
    "Noise",
    "Guider",
    "AnyType",
]


def everything(io):
    """A node with every kind of socket and option, on either schema."""

    class Choice(enum.Enum):
        first = "x"
        second = "y"

    class Everything(io.ComfyNode):
        RELATIVE_PYTHON_MODULE = "custom_nodes.velatura"

        @classmethod
        def define_schema(cls):
            number, slider = io.NumberDisplay.number, io.NumberDisplay.slider
            image, folder = io.UploadType.image, io.FolderType.input
            inputs = [
                io.Int.Input("i1", "An int", False, "tip", None, 3, min=0, max=9, step=2, display_mode=slider),
                io.Int.Input("i2", optional=True, force_input=True, socketless=True, control_after_generate=True),
                io.Float.Input(
                    "f", default=1.5, min=0.0, max=2.0, step=0.1, round=0.01, display_mode=number, lazy=True
                ),
                io.String.Input("s1", multiline=True, default="", placeholder="p", dynamic_prompts=True),
                io.String.Input("s2", optional=True),
                io.Boolean.Input("b", default=False, label_on="on", label_off="off"),
                io.Combo.Input("c1", options=["a", "b"], default="b", tooltip="t", control_after_generate=True),
                io.Combo.Input("c2", Choice, default=Choice.second, upload=image, image_folder=folder, optional=True),
                io.Combo.Input("c3", options=[1, 2]),
                *[getattr(io, each).Input(each) for each in WIRES],
                io.Custom("INVERSION").Input("own", tooltip="x", extra_dict={"k": 1}),
            ]
            outputs = [
                *[getattr(io, each).Output() for each in ("Int", "Float", "String", "Boolean", *WIRES)],
                io.Custom("INVERSION").Output("made", display_name="Made", tooltip="q", is_output_list=True),
                io.Combo.Output("combo", options=["a"]),
            ]
            hidden = [io.Hidden.unique_id]
            flags = {"is_output_node": True, "is_experimental": True, "not_idempotent": True}
            return io.Schema("Everything", "Name", "cat", inputs, outputs, hidden, "description", **flags)

        @classmethod
        def execute(cls, **given):
            return io.NodeOutput()

    Everything.GET_SCHEMA()
    return json.loads(json.dumps(Everything.GET_NODE_INFO_V1()))


def test_a_node_is_described_as_comfyui_describes_it():
    """The browser builds the node from this; a difference is a node that looks or connects differently in one host."""
    assert everything(schema) == KNOWN


def test_an_option_that_comfyui_does_not_have_is_refused():
    """It would work here and break there."""
    with pytest.raises(TypeError, match="INT has no option minimum"):
        schema.Int.Input("x", minimum=3)
    with pytest.raises(TypeError):
        schema.Image.Input("x", default=3)


def test_two_sockets_of_one_name_are_refused():
    class Twice(schema.ComfyNode):
        @classmethod
        def define_schema(cls):
            return schema.Schema("Twice", inputs=[schema.Image.Input("x")], outputs=[schema.Image.Output("x")])

    with pytest.raises(ValueError, match=r"Twice: every .*, but x repeat"):
        Twice.GET_SCHEMA()


def test_hidden_values_belong_to_one_run_of_a_node():
    """Two nodes of one class run in turn; the second must not see the first's id."""

    class Plain(schema.ComfyNode):
        pass

    clone = Plain.PREPARE_CLASS_CLONE({schema.Hidden.unique_id: "7"})
    assert clone.hidden.unique_id == "7" and clone.hidden.prompt is None
    assert Plain.hidden.unique_id is None
