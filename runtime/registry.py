"""The nodes that the runtime knows: ComfyUI's stock ones on diffusers, and the pack's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..hosts.schema import ComfyNode

Nodes = dict[str, type[ComfyNode]]


def by_id(nodes: Iterable[type[ComfyNode]]) -> Nodes:
    """Nodes by their schema's id. ValueError if two share one, or one deals in lists, which the executor does not."""
    found: Nodes = {}
    for each in nodes:
        schema = each.GET_SCHEMA()
        id_ = schema.node_id
        if schema.is_input_list or any(output.is_output_list for output in schema.outputs or []):
            raise ValueError(f"{id_}: the runtime runs no nodes whose inputs or outputs are lists")
        if id_ in found:
            raise ValueError(f"two nodes are called {id_}: {found[id_].__name__} and {each.__name__}")
        found[id_] = each
    return found


def all_nodes() -> Nodes:
    """Every node there is."""
    from ..nodes.catalog import NODES as OURS
    from .stock import NODES as STOCK

    return by_id([*STOCK, *OURS])


def object_info(nodes: Nodes) -> dict[str, dict[str, Any]]:
    """All schemas as `/object_info` gives them. Combos list the files that are there now."""
    return {id_: node.GET_NODE_INFO_V1() for id_, node in nodes.items()}
