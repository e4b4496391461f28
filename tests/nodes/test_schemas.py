"""What workflow files rely on, and what people read on a node."""

import asyncio
import json
import logging
import sys
from pathlib import Path

import pytest

from velatura.nodes import VelaturaExtension
from velatura.nodes.catalog import NODES

SNAPSHOT = Path(__file__).with_name("schemas.json")
NODES_BY_ID = {node.GET_SCHEMA().node_id: node for node in NODES}


def contract(node):
    """The part of a schema that a saved workflow depends on."""
    info = node.GET_NODE_INFO_V1()
    groups = {
        name: [[id_, spec[0]] for id_, spec in info["input"].get(name, {}).items()] for name in ("required", "optional")
    }
    return {**groups, "output": info["output"]}


def test_no_saved_workflow_breaks():
    """Values are saved by place and outputs by number: ids stay, inputs are appended last, types stay.

    A new node or an appended input is added to schemas.json by hand; an entry that is there is never changed.
    """
    found = json.loads(json.dumps({id_: contract(node) for id_, node in NODES_BY_ID.items()}))
    assert found == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


@pytest.mark.parametrize("id_", NODES_BY_ID)
def test_a_node_explains_itself(id_):
    info = NODES_BY_ID[id_].GET_NODE_INFO_V1()
    assert id_.startswith("Velatura") and info["category"].startswith("Velatura/")
    assert info["display_name"] and len(info["description"]) > 20
    silent = [
        name
        for group in ("required", "optional")
        for name, spec in info["input"].get(group, {}).items()
        if not spec[1].get("tooltip")
    ]
    assert silent == [], "inputs without a tooltip"
    assert all(info["output_tooltips"]), "outputs without a tooltip"


def test_comfyui_is_given_every_node():
    assert asyncio.run(VelaturaExtension().get_node_list()) == NODES


def test_a_failing_import_is_logged_with_its_place(monkeypatch, caplog):
    """ComfyUI prints one line without a place; a user's report would be worth nothing."""
    monkeypatch.setitem(sys.modules, "velatura.nodes.catalog", None)
    with caplog.at_level(logging.ERROR), pytest.raises(ImportError):
        asyncio.run(VelaturaExtension().get_node_list())
    assert caplog.records[0].exc_info is not None
