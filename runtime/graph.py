"""An API graph as a graph: `{id: {"class_type", "inputs", "_meta"}}`, where an input `[id, slot]` is a wire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def is_link(value: Any) -> bool:
    """Is this input wired? Any other list travels wrapped in `{"__value__": [...]}`."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], (str, int)) and type(value[1]) is int


def constant(value: Any) -> Any:
    """An unwired input's value, unwrapped."""
    return value["__value__"] if isinstance(value, Mapping) and "__value__" in value else value


def constants(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The unwired inputs."""
    return {name: constant(value) for name, value in inputs.items() if not is_link(value)}


def links_of(node: Mapping[str, Any]) -> list[str]:
    """The ids of the nodes that this one is wired to, in the order of its inputs."""
    return [str(value[0]) for value in node["inputs"].values() if is_link(value)]


def title(node: Mapping[str, Any]) -> str:
    """What the user sees on the node."""
    return (node.get("_meta") or {}).get("title") or node["class_type"]


def outputs(prompt: Mapping[str, Any], schemas: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The nodes for whose sake the graph runs."""
    return [id_ for id_, node in prompt.items() if schemas.get(node["class_type"], {}).get("output_node")]


def needed(prompt: Mapping[str, Any], ends: Iterable[str]) -> set[str]:
    """These nodes and all that they depend on."""
    found, pending = set(), list(ends)
    while pending:
        id_ = pending.pop()
        if id_ not in found and id_ in prompt:
            found.add(id_)
            pending += links_of(prompt[id_])
    return found


def order(prompt: Mapping[str, Any], ends: Iterable[str]) -> list[str]:
    """What these nodes need, each after all that it depends on. The graph has no circles."""
    placed: dict[str, None] = {}
    for end in ends:
        pending = [(end, False)]
        while pending:
            id_, ready = pending.pop()
            if id_ in placed:
                continue
            if ready:
                placed[id_] = None
            else:
                pending.append((id_, True))
                pending += [(each, False) for each in reversed(links_of(prompt[id_])) if each not in placed]
    return list(placed)
