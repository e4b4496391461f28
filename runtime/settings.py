"""`--set NODE.INPUT=VALUE`: changes to a workflow before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from . import widgets
from .graph import title
from .problems import WorkflowError, did_you_mean
from .validate import CONVERT, WORDS
from .workflow import Workflow


class Place(NamedTuple):
    """An input of a node, by the node's id."""

    node: str
    input: str


def apply(workflow: Workflow, schemas: Mapping[str, widgets.Schema], settings: list[str]) -> None:
    """Set constants in the graph, and in the saved form that pictures carry. NODE is an id, a title or a class.

    WorkflowError if a setting names nothing, or several things, or its value is not of the input's type.
    """
    for setting in settings:
        target, given, text = setting.partition("=")
        if not given or not all(target.rpartition(".")):
            raise WorkflowError(f"“{setting}” is not a setting: write NODE.INPUT=VALUE, such as KSampler.seed=7")
        place = find(workflow.prompt, schemas, target)
        put(workflow, schemas, place, value(workflow.prompt, schemas, place, text))


def find(prompt: Mapping[str, Any], schemas: Mapping[str, widgets.Schema], target: str) -> Place:
    """The input that NODE.INPUT names. WorkflowError if it names nothing, or several things."""
    name, dot, input_ = target.rpartition(".")
    if not dot or not name or not input_:
        raise WorkflowError(f"“{target}” names no input: write NODE.INPUT, such as KSampler.seed")
    id_ = node(prompt, name)
    schema = schemas.get(prompt[id_]["class_type"])
    if schema is None:
        raise WorkflowError(f"“{target}”: there is no node “{prompt[id_]['class_type']}” here")
    names = [name for name, *_ in widgets.sockets(schema)]
    if input_ not in names:
        raise WorkflowError(f"“{title(prompt[id_])}” has no input “{input_}”.{did_you_mean(input_, names)}")
    return Place(id_, input_)


def value(prompt: Mapping[str, Any], schemas: Mapping[str, widgets.Schema], place: Place, text: str) -> Any:
    """A value as its input holds it. WorkflowError if it is not of the input's type."""
    named = prompt[place.node]
    return _value(schemas[named["class_type"]], title(named), place.input, text)


def put(workflow: Workflow, schemas: Mapping[str, widgets.Schema], place: Place, value: Any) -> None:
    """Set an input, in the graph and in the saved form."""
    changed = workflow.prompt[place.node]
    changed["inputs"][place.input] = value
    _store(workflow.document, place.node, schemas[changed["class_type"]], place.input, value)


def node(prompt: Mapping[str, Any], name: str) -> str:
    """The id of the node that is called so: an id, a title or a class. WorkflowError if none is, or several."""
    if name in prompt:
        return name
    titled = [id_ for id_, node in prompt.items() if title(node).casefold() == name.casefold()]
    found = titled or [id_ for id_, node in prompt.items() if node["class_type"].casefold() == name.casefold()]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{id_} (“{title(prompt[id_])}”)" for id_ in found)
        raise WorkflowError(f"{len(found)} nodes are called “{name}”: name one by its id: {names}")
    known = [*(title(node) for node in prompt.values()), *(node["class_type"] for node in prompt.values()), *prompt]
    raise WorkflowError(f"no node of the workflow is called “{name}”.{did_you_mean(name, known)}")


def _value(schema: widgets.Schema, node: str, input_: str, text: str) -> Any:
    type_, options = next((type_, options) for name, type_, options, _ in widgets.sockets(schema) if name == input_)
    offered = widgets.choices(type_, options)
    if offered is not None:
        return next((each for each in offered if str(each) == text), text)
    if type_ not in CONVERT:
        raise WorkflowError(f"“{node}”, input “{input_}” takes a connection ({type_}); it cannot be set to a value")
    try:
        return CONVERT[type_](text)
    except ValueError as error:
        raise WorkflowError(f"“{node}”, input “{input_}”: “{text}” is not {WORDS[type_]}") from error


def _store(document: dict[str, Any] | None, id_: str, schema: widgets.Schema, input_: str, value: Any) -> None:
    # Inside a subgraph the saved value may belong to several instances: there only the graph changes.
    for node in (document or {}).get("nodes") or []:
        place = widgets.places(schema, node.get("widgets_values")).get(input_) if str(node.get("id")) == id_ else None
        if place is not None:
            node["widgets_values"][place] = value
