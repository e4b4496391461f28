"""ComfyUI's V3 node schema, as much of it as our nodes use, for where ComfyUI is not.

Import it as `io`, as ComfyUI's own examples do: `from ..hosts import schema as io, ui`. Names, parameters and the
dictionary of `ComfyNode.GET_NODE_INFO_V1()` are those of `comfy_api.latest.io` in ComfyUI 0.3.64, so that one node
class serves both; `/object_info` of both hosts is compared in the tests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar


class FolderType(str, Enum):
    """Where a file that a node shows lies."""

    input = "input"
    output = "output"
    temp = "temp"


class UploadType(str, Enum):
    """The upload button that a combo carries."""

    image = "image_upload"
    model = "file_upload"


class NumberDisplay(str, Enum):
    """How a number is edited."""

    number = "number"
    slider = "slider"


class Hidden(str, Enum):
    """What a node may ask of the executor; it finds the answers in `cls.hidden`."""

    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"
    extra_pnginfo = "EXTRA_PNGINFO"
    dynprompt = "DYNPROMPT"


@dataclass(frozen=True)
class HiddenHolder:
    """The answers: the node's id, the whole graph in API form, and the metadata to write into pictures."""

    unique_id: str | None = None
    prompt: Any = None
    extra_pnginfo: Any = None
    dynprompt: Any = None


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


class Input:
    """A socket. An `optional` one may stay unconnected, and `execute` then gets its own default."""

    io_type: ClassVar[str] = "*"

    def __init__(
        self,
        id: str,
        display_name: str | None = None,
        optional: bool = False,
        tooltip: str | None = None,
        lazy: bool | None = None,
        extra_dict: Mapping[str, Any] | None = None,
    ):
        self.id, self.optional, self.tooltip = id, optional, tooltip
        self.options: dict[str, Any] = {"display_name": display_name, "tooltip": tooltip, "lazy": lazy}
        self.extra = dict(extra_dict or {})

    def get_io_type(self) -> str:
        """The type's name on the wire."""
        return self.io_type

    def as_dict(self) -> dict[str, Any]:
        """The options of the V1 dictionary; what was not given is left out."""
        return _given(self.options) | _given(self.extra)


class WidgetInput(Input):
    """An input with an editor on the node. `own` are the options that its type has beyond these, and their names in the
    V1 dictionary; TypeError for any other."""

    own: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        id: str,
        display_name: str | None = None,
        optional: bool = False,
        tooltip: str | None = None,
        lazy: bool | None = None,
        default: Any = None,
        socketless: bool | None = None,
        widget_type: str | None = None,
        force_input: bool | None = None,
        extra_dict: Mapping[str, Any] | None = None,
        **own: Any,
    ):
        super().__init__(id, display_name, optional, tooltip, lazy, extra_dict)
        if not own.keys() <= self.own.keys():
            unknown = ", ".join(sorted(own.keys() - self.own.keys()))
            raise TypeError(f"an input of type {self.io_type} has no option {unknown}")
        self.default, self.widget_type = _plain(default), widget_type
        self.options |= {"default": self.default, "socketless": socketless}
        self.options |= {"widgetType": widget_type, "forceInput": force_input}
        self.options |= {self.own[name]: _plain(value) for name, value in own.items()}

    def get_io_type(self) -> str:
        """The editor's type where one is named, else the wire's."""
        return self.widget_type or self.io_type


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


class Output:
    """A result. `id` defaults to one made of its place and type."""

    io_type: Any = "*"

    def __init__(
        self,
        id: str | None = None,
        display_name: str | None = None,
        tooltip: str | None = None,
        is_output_list: bool = False,
    ):
        self.id, self.display_name, self.tooltip, self.is_output_list = id, display_name, tooltip, is_output_list


class _Wire:
    """A type that only travels: its values have no editor."""

    io_type: ClassVar[str]
    Input: ClassVar[type[Input]]
    Output: ClassVar[type[Output]]


class _Edited:
    """A type whose values can be typed in."""

    io_type: ClassVar[str]
    Input: ClassVar[type[WidgetInput]]
    Output: ClassVar[type[Output]]


def Custom(io_type: str) -> type[_Wire]:
    """A wire type of one's own, by its name: `io.Custom("INVERSION").Output("inversion")`."""
    named = {"io_type": io_type}
    return type(io_type, (_Wire,), named | {"Input": type("Input", (Input,), named), "Output": _output(io_type)})


def _edited(io_type: str, own: Mapping[str, str], base: type[WidgetInput] = WidgetInput) -> type[_Edited]:
    editor = type("Input", (base,), {"io_type": io_type, "own": own})
    return type(io_type, (_Edited,), {"io_type": io_type, "Input": editor, "Output": _output(io_type)})


def _output(io_type: str) -> type[Output]:
    return type("Output", (Output,), {"io_type": io_type})


class _Line(WidgetInput):
    def __init__(self, *args: Any, multiline: bool = False, **options: Any):
        super().__init__(*args, multiline=multiline, **options)


_RANGE = {"min": "min", "max": "max", "step": "step", "display_mode": "display"}
Int = _edited("INT", {**_RANGE, "control_after_generate": "control_after_generate"})
Float = _edited("FLOAT", {**_RANGE, "round": "round"})
String = _edited(
    "STRING", {"multiline": "multiline", "placeholder": "placeholder", "dynamic_prompts": "dynamicPrompts"}, _Line
)
Boolean = _edited("BOOLEAN", {"label_on": "label_on", "label_off": "label_off"})


class Combo:
    """COMBO: one of a list of texts or numbers."""

    io_type = "COMBO"

    class Input(WidgetInput):
        """One of `options`, which may be an Enum class; with `upload` the browser offers to bring a file."""

        io_type = "COMBO"
        own: ClassVar[Mapping[str, str]] = {
            "control_after_generate": "control_after_generate",
            "image_folder": "image_folder",
        }

        def __init__(
            self,
            id: str,
            options: type[Enum] | Sequence[Any] | None = None,
            *args: Any,
            upload: UploadType | None = None,
            **common: Any,
        ):
            super().__init__(id, *args, **common)
            self.options |= {"multiselect": False, "options": [_plain(each) for each in options or []]}
            if upload is not None:
                self.options[upload.value] = True

    class Output(Output):
        """One of `options`."""

        def __init__(self, id: str | None = None, display_name: str | None = None,
                     options: Sequence[Any] | None = None, **more: Any):  # fmt: skip
            super().__init__(id, display_name, **more)
            self.io_type = list(options or [])


Image = Custom("IMAGE")
Mask = Custom("MASK")
Latent = Custom("LATENT")
Conditioning = Custom("CONDITIONING")
Model = Custom("MODEL")
Clip = Custom("CLIP")
Vae = Custom("VAE")
Sampler = Custom("SAMPLER")
Sigmas = Custom("SIGMAS")
Noise = Custom("NOISE")
Guider = Custom("GUIDER")
AnyType = Custom("*")


@dataclass
class Schema:
    """What a node is: id for ever, what people read, and its sockets in the order that workflow files rely on."""

    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Input] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    hidden: list[Hidden] = field(default_factory=list)
    description: str = ""
    is_input_list: bool = False
    is_output_node: bool = False
    is_deprecated: bool = False
    is_experimental: bool = False
    is_api_node: bool = False
    not_idempotent: bool = False
    enable_expand: bool = False
    search_aliases: list[str] = field(default_factory=list)

    def __post_init__(self):
        # An output node writes files, which carry the graph: it is always told.
        needed = [Hidden.prompt, Hidden.extra_pnginfo] if self.is_output_node else []
        self.hidden = [*(self.hidden or []), *(each for each in needed if each not in (self.hidden or []))]
        for place, output in enumerate(self.outputs):
            output.id = output.id or f"_{place}_{output.io_type}_"

    def validate(self) -> None:
        """ValueError if two sockets share an id."""
        ids = [socket.id for socket in (*self.inputs, *self.outputs)]
        twice = sorted({str(each) for each in ids if ids.count(each) > 1})
        if twice:
            raise ValueError(
                f"{self.node_id}: every input and output needs an id of its own, but {', '.join(twice)} repeat"
            )

    def v1(self, python_module: str) -> dict[str, Any]:
        """The node as `/object_info` describes it."""
        sockets: dict[str, dict[str, Any]] = {"required": {}}
        for each in self.inputs:
            group = sockets.setdefault("optional" if each.optional else "required", {})
            group[each.id] = (each.get_io_type(), each.as_dict())
        for each in self.hidden:
            sockets.setdefault("hidden", {})[each.name] = (each.value,)
        return {
            "input": sockets,
            "input_order": {group: list(members) for group, members in sockets.items()},
            "output": [each.io_type for each in self.outputs],
            "output_is_list": [each.is_output_list for each in self.outputs],
            "output_name": [each.display_name or each.io_type for each in self.outputs],
            "output_tooltips": [each.tooltip or None for each in self.outputs],
            "name": self.node_id,
            "display_name": self.display_name,
            "description": self.description,
            "python_module": python_module,
            "category": self.category,
            "output_node": self.is_output_node,
            "deprecated": self.is_deprecated,
            "experimental": self.is_experimental,
            "api_node": self.is_api_node,
        }


class NodeOutput:
    """What `execute` returns: one value for each output, and what the node shows on itself (`ui`)."""

    def __init__(self, *args: Any, ui: UiOutput | Mapping[str, Any] | None = None):
        self.args, self.ui = args, ui

    @property
    def result(self) -> tuple[Any, ...] | None:
        """The values, None if there are none."""
        return self.args or None

    def __getitem__(self, index: int) -> Any:
        return self.args[index]


class UiOutput(ABC):
    """Something a node shows on itself; `as_dict` is what the browser is sent."""

    @abstractmethod
    def as_dict(self) -> dict[str, Any]:
        """A list of items for each kind of thing shown."""


class ComfyNode:
    """A node: class methods only, no state. `hidden` holds what the schema asked for while `execute` runs."""

    RELATIVE_PYTHON_MODULE: ClassVar[str] = "custom_nodes.velatura"
    hidden: ClassVar[HiddenHolder] = HiddenHolder()

    @classmethod
    def define_schema(cls) -> Schema:
        """The node's schema, made anew at each call: a combo of file names shows today's files."""
        raise NotImplementedError(f"{cls.__name__} needs define_schema")

    @classmethod
    def execute(cls, *args: Any, **kwargs: Any) -> NodeOutput:
        """Do the work. Inputs come by name; what is optional and unconnected is left out."""
        raise NotImplementedError(f"{cls.__name__} needs execute")

    @classmethod
    def validate_inputs(cls, *args: Any, **kwargs: Any) -> bool | str:
        """True, or the reason why these constant values cannot work. What it names skips the checks of the schema."""
        raise NotImplementedError

    @classmethod
    def fingerprint_inputs(cls, *args: Any, **kwargs: Any) -> Any:
        """A value that changes when the node must run again though its inputs are the same (a file, for one)."""
        raise NotImplementedError

    @classmethod
    def GET_SCHEMA(cls) -> Schema:
        """The validated schema."""
        schema = cls.define_schema()
        schema.validate()
        return schema

    @classmethod
    def GET_NODE_INFO_V1(cls) -> dict[str, Any]:
        """The node as `/object_info` describes it."""
        return cls.GET_SCHEMA().v1(cls.RELATIVE_PYTHON_MODULE)

    @classmethod
    def PREPARE_CLASS_CLONE(cls, hidden: Mapping[str, Any]) -> type[ComfyNode]:
        """This node with its hidden values (keyed as in `Hidden`), as a new class: the shared one stays as it is."""
        holder = HiddenHolder(**{Hidden(key).name: value for key, value in hidden.items()})
        return type(cls.__name__, (cls,), {"hidden": holder, "__module__": cls.__module__})
