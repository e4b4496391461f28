"""One level of a saved graph: the file's own, or the inside of a subgraph with what its instance passes in."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

from .problems import WorkflowError

ENTRY, EXIT = "-10", "-20"
"""The boxes that stand for a subgraph's own inputs and outputs inside it."""


class Link(NamedTuple):
    """A wire: from output `slot` of node `origin` to input `target_slot` of node `target`."""

    origin: str
    slot: int
    target: str
    target_slot: int


def links(document: Mapping[str, Any]) -> dict[Any, Link]:
    """The wires of a level by id; files hold them as lists or as objects."""
    found = {}
    for each in document.get("links") or []:
        try:
            if isinstance(each, Mapping):
                id_, *ends = (each[key] for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot"))
            else:
                id_, *ends = each[:5]
            origin, slot, target, target_slot = ends
            found[id_] = Link(str(origin), int(slot), str(target), int(target_slot))
        except (KeyError, TypeError, ValueError) as error:
            raise WorkflowError(f"the workflow's links are damaged: {each!r} is not a link") from error
    return found


def nodes(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes of a level by id."""
    found = {}
    for each in document.get("nodes") or []:
        if not isinstance(each, dict) or not isinstance(each.get("type"), str) or "id" not in each:
            raise WorkflowError(f"the workflow's nodes are damaged: {str(each)[:80]} has no “id” or no “type”")
        found[str(each["id"])] = each
    return found


def inputs(node: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A saved node's sockets."""
    return [each for each in node.get("inputs") or [] if isinstance(each, dict)]


class Scope:
    """A level. `path` precedes the ids inside ("" outside, "5:" in the instance 5); `given` are values for the
    subgraph's inputs that no wire feeds, `overrides` those for editors inside, by (node id, input)."""

    def __init__(self, document: Mapping[str, Any], definitions: Mapping[str, Any]):
        self.document, self.definitions = document, definitions
        self.path = ""
        self.parent: Scope | None = None
        self.instance: dict[str, Any] = {}
        self.given: dict[str, Any] = {}
        self.overrides: dict[tuple[str, str], Any] = {}
        self._children: dict[str, Scope] = {}

    @cached_property
    def nodes(self) -> dict[str, dict[str, Any]]:
        """By id."""
        return nodes(self.document)

    @cached_property
    def links(self) -> dict[Any, Link]:
        """By id."""
        return links(self.document)

    def definition(self, node: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The subgraph that a node is an instance of; None for any other node."""
        return self.definitions.get(node["type"])

    def child(self, node: dict[str, Any]) -> Scope:
        """The inside of a subgraph's instance. WorkflowError if the subgraph contains itself."""
        id_ = str(node["id"])
        if id_ not in self._children:
            definition = self.definitions[node["type"]]
            above: Scope | None = self
            while above is not None:
                if above.document is definition:
                    raise WorkflowError(f"the subgraph “{definition.get('name', node['type'])}” contains itself")
                above = above.parent
            inner = Scope(definition, self.definitions)
            inner.path, inner.parent, inner.instance = f"{self.path}{id_}:", self, node
            inner.given, inner.overrides = promoted_values(node, definition, self.definitions)
            passed = {name: value for (target, name), value in self.overrides.items() if target == id_}
            _pass_on(passed, inner)
            self._children[id_] = inner
        return self._children[id_]

    def outer_link(self, slot: int) -> tuple[str, Any]:
        """The name of the subgraph's input `slot`, and the id of the wire that feeds it outside (None without one)."""
        declared = self.document.get("inputs") or []
        name = str(declared[slot]["name"]) if slot < len(declared) else ""
        return name, next((each.get("link") for each in inputs(self.instance) if each.get("name") == name), None)

    def exit_link(self, slot: int) -> Any:
        """The id of the wire inside that ends in the subgraph's output `slot`; None without one."""
        return next((id_ for id_, link in self.links.items() if link.target == EXIT and link.target_slot == slot), None)


def promoted_values(
    node: Mapping[str, Any], definition: Mapping[str, Any], definitions: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[tuple[str, str], Any]]:
    """The values that an instance holds for its subgraph: by input name, and by (inner node, inner input).

    Newer files promote an editor by wiring it to an input of the subgraph, and the instance lists one value for each
    such input. Older ones name the editors in `properties.proxyWidgets` ("-1" stands for the instance's own inputs),
    and the values follow that list. An instance that lists no value leaves the inner one.
    """
    values = node.get("widgets_values")
    proxies = (node.get("properties") or {}).get("proxyWidgets") or []
    if isinstance(values, Mapping):
        return dict(values), {}
    if not proxies:
        names = [each["name"] for each in definition.get("inputs") or [] if _is_promoted(definition, each, definitions)]
        return dict(zip(names, values or [], strict=False)), {}
    given, overrides = {}, {}
    for (inner, name, *_), value in zip(proxies, values or [], strict=False):
        if value is not None:
            overrides[str(inner), name] = value
    for inner, name in [key for key in overrides if key[0] == "-1"]:
        given[name] = overrides.pop((inner, name))
    return given, overrides


def _pass_on(passed: Mapping[str, Any], inner: Scope) -> None:
    # An editor promoted through two levels: the outer instance's value goes to the inner instance's input or proxy.
    names = {each["name"] for each in inner.document.get("inputs") or []}
    proxies = (inner.instance.get("properties") or {}).get("proxyWidgets") or []
    for name, value in passed.items():
        if name in names:
            inner.given[name] = value
        inner.overrides |= {(str(target), name): value for target, proxied, *_ in proxies if proxied == name}


def _is_promoted(
    definition: Mapping[str, Any], declared: Mapping[str, Any], definitions: Mapping[str, Any], depth: int = 0
) -> bool:
    """Does this input of the subgraph feed an editor inside, perhaps through further subgraphs?"""
    inside, wires = nodes(definition), links(definition)
    for id_ in declared.get("linkIds") or []:
        link = wires.get(id_)
        target = inside.get(link.target) if link else None
        if link is None or target is None or link.target_slot >= len(inputs(target)):
            continue
        socket = inputs(target)[link.target_slot]
        deeper = definitions.get(target["type"])
        if deeper is None:
            if socket.get("widget"):
                return True
        elif depth < 32:
            named = [each for each in deeper.get("inputs") or [] if each.get("name") == socket.get("name")]
            if any(_is_promoted(deeper, each, definitions, depth + 1) for each in named):
                return True
    return False
