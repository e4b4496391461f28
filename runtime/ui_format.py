"""The format in which ComfyUI saves a workflow (versions 0.4 and 1), flattened into an API graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from . import widgets
from .problems import Problem, WorkflowError
from .scope import ENTRY, Scope, inputs

MUTED, BYPASSED = 2, 4
VIRTUAL = frozenset({"Note", "MarkdownNote", "Reroute", "PrimitiveNode"})
"""Nodes of the browser's: they are drawn, or pass something on, but nothing runs."""


class Value(NamedTuple):
    """A constant where a wire ends."""

    value: Any


class _Broken(Exception):
    """A wire that leads nowhere."""


def to_prompt(
    document: Mapping[str, Any], schemas: Mapping[str, widgets.Schema]
) -> tuple[dict[str, Any], list[Problem]]:
    """The API graph `{id: {"class_type", "inputs", "_meta": {"title"}}}`, and the wires that are broken.

    Muted nodes are left out, bypassed ones are bridged by type, reroutes and primitives are resolved, and subgraphs are
    unfolded: node 3 of the instance 5 is "5:3". `schemas` (by class) tells the editors' order; a node of an unknown
    class keeps its wires, for `validate` to name. WorkflowError if the file's structure is damaged.
    """
    if not isinstance(document.get("nodes"), list):
        raise WorkflowError("the workflow has no list of nodes")
    subgraphs = (document.get("definitions") or {}).get("subgraphs") or []
    definitions = {str(each["id"]): each for each in subgraphs if isinstance(each, dict) and "id" in each}
    prompt: dict[str, Any] = {}
    problems: list[Problem] = []
    _unfold(Scope(document, definitions), schemas, prompt, problems)
    return prompt, problems


def _unfold(
    scope: Scope, schemas: Mapping[str, widgets.Schema], prompt: dict[str, Any], problems: list[Problem]
) -> None:
    for id_, node in scope.nodes.items():
        if node.get("mode") in (MUTED, BYPASSED) or node["type"] in VIRTUAL:
            continue
        if scope.definition(node) is not None:
            _unfold(scope.child(node), schemas, prompt, problems)
        elif node["type"] in schemas or _is_wired(node):
            prompt[scope.path + id_] = _entry(scope, id_, node, schemas.get(node["type"]), problems)


def _is_wired(node: Mapping[str, Any]) -> bool:
    # A class that nobody knows and nothing is wired to is an ornament of some browser extension.
    outgoing = [link for each in node.get("outputs") or [] for link in each.get("links") or []]
    return bool(outgoing) or any(each.get("link") is not None for each in inputs(node))


def _entry(
    scope: Scope, id_: str, node: Mapping[str, Any], schema: widgets.Schema | None, problems: list[Problem]
) -> dict[str, Any]:
    title = node.get("title") or (schema or {}).get("display_name") or node["type"]
    found = widgets.values(schema, node.get("widgets_values")) if schema is not None else {}
    for (target, name), value in scope.overrides.items():
        if target == id_ and name in found:
            found[name] = widgets.wrapped(value)
    for socket in inputs(node):
        name, link = str(socket.get("name")), socket.get("link")
        if link is None:
            continue
        try:
            source = trace(scope, link)
        except _Broken as error:
            problems.append(Problem("bad_linked_input", str(error), scope.path + id_, title, name))
            continue
        if isinstance(source, Value):
            found[name] = widgets.wrapped(source.value)
        elif source is not None:
            found[name] = source
    return {"class_type": node["type"], "inputs": found, "_meta": {"title": str(title)}}


def trace(scope: Scope, link_id: Any) -> list[Any] | Value | None:
    """What a wire really brings: `[node id, slot]` of a node that runs, a constant, or nothing."""
    seen = set()
    while link_id is not None:
        if (scope.path, link_id) in seen:
            raise _Broken("its wire goes round in a circle through reroutes or bypassed nodes")
        seen.add((scope.path, link_id))
        link = scope.links.get(link_id)
        if link is None:
            raise _Broken(f"its wire (link {link_id}) is missing from the file; connect it again and save")
        if link.origin == ENTRY and scope.parent is not None:
            name, outer = scope.outer_link(link.slot)
            if outer is None:
                return Value(scope.given[name]) if name in scope.given else None
            scope, link_id = scope.parent, outer
            continue
        node = scope.nodes.get(link.origin)
        if node is None:
            raise _Broken(
                f"the node at the other end of its wire (node {scope.path}{link.origin}) is missing from the file"
            )
        if node.get("mode") == MUTED:
            return None
        if node.get("mode") == BYPASSED:
            link_id = _bridge(node, link.slot)
        elif node["type"] == "Reroute":
            link_id = next((each.get("link") for each in inputs(node)), None)
        elif node["type"] == "PrimitiveNode":
            return _primitive(scope, link.origin, node)
        elif scope.definition(node) is not None:
            scope = scope.child(node)
            link_id = scope.exit_link(link.slot)
        else:
            return [scope.path + link.origin, link.slot]
    return None


def _primitive(scope: Scope, id_: str, node: Mapping[str, Any]) -> Value | None:
    values = node.get("widgets_values")
    override = next((value for (target, _), value in scope.overrides.items() if target == id_), None)
    if override is not None:
        return Value(override)
    return Value(values[0]) if isinstance(values, list) and values else None


def _bridge(node: Mapping[str, Any], slot: int) -> Any:
    """The wire that a bypassed node passes on to its output `slot`: that of the input of the same place if the types
    agree, else of the first of exactly this type, else of the first that fits."""
    outputs = node.get("outputs") or []
    wanted = outputs[slot].get("type") if slot < len(outputs) else "*"
    sockets = inputs(node)
    ranked = [
        *(each for each in sockets[slot : slot + 1] if fits(each.get("type"), wanted)),
        *(each for each in sockets if each.get("type") == wanted),
        *(each for each in sockets if fits(each.get("type"), wanted)),
    ]
    return next((each["link"] for each in ranked if each.get("link") is not None), None)


def fits(given: Any, wanted: Any) -> bool:
    """May a wire join these types? "*" goes with all; "A,B" is either of the two."""
    if given == wanted or "*" in (given, wanted):
        return True
    if not isinstance(given, str) or not isinstance(wanted, str):
        return False
    return bool({each.strip() for each in given.split(",")} & {each.strip() for each in wanted.split(",")})
