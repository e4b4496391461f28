"""`--set NODE.INPUT=VALUE`: changes to a workflow before it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import widgets
from .graph import title
from .problems import WorkflowError, did_you_mean
from .validate import CONVERT, WORDS
from .workflow import Workflow


def apply(workflow: Workflow, schemas: Mapping[str, widgets.Schema], settings: list[str]) -> None:
    """Set constants in the graph, and in the saved form that pictures carry. NODE is an id, a title or a class.

    WorkflowError if a setting names nothing, or several things, or its value is not of the input's type.
    """
    for setting in settings:
        target, given, text = setting.partition("=")
        name, dot, input_ = target.rpartition(".")
        if not given or not dot or not name or not input_:
            raise WorkflowError(f"“{setting}” is not a setting: write NODE.INPUT=VALUE, such as KSampler.seed=7")
        id_ = _find(workflow.prompt, name)
        node = workflow.prompt[id_]
        schema = schemas.get(node["class_type"])
        if schema is None:
            raise WorkflowError(f"“{setting}”: there is no node “{node['class_type']}” here")
        value = _value(schema, title(node), input_, text)
        node["inputs"][input_] = value
        _store(workflow.document, id_, schema, input_, value)


def _find(prompt: Mapping[str, Any], name: str) -> str:
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
    sockets = {name: (type_, options) for name, type_, options, _ in widgets.sockets(schema)}
    if input_ not in sockets:
        raise WorkflowError(f"“{node}” has no input “{input_}”.{did_you_mean(input_, sockets)}")
    type_, options = sockets[input_]
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
