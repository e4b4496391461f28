"""Files that were cut, edited by hand, or made by something else: always one clear refusal, never a crash."""

import copy
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from velatura.runtime import validate, workflow
from velatura.runtime.problems import WorkflowError


def saved():
    """A subgraph with a promoted editor, a reroute, a bypassed node, and an end."""
    inner = {
        "id": "sum",
        "nodes": [
            {"id": 1, "type": "Number", "widgets_values": [10], "inputs": [{"name": "value", "link": 1, "widget": {}}]},
            {"id": 2, "type": "Add", "widgets_values": [0, 0], "inputs": [{"name": "a", "link": 2}]},
        ],
        "links": [
            {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 1, "target_slot": 0, "type": "INT"},
            {"id": 2, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "INT"},
            {"id": 3, "origin_id": 2, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "INT"},
        ],
        "inputs": [{"name": "value", "linkIds": [1]}],
        "outputs": [{"name": "sum", "linkIds": [3]}],
    }
    nodes = [
        {
            "id": 5,
            "type": "sum",
            "widgets_values": [20],
            "properties": {"proxyWidgets": [["1", "value"]]},
            "inputs": [],
        },
        {"id": 6, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 51}], "outputs": [{"links": [52]}]},
        {
            "id": 7,
            "type": "Add",
            "mode": 4,
            "inputs": [{"name": "a", "type": "INT", "link": 52}],
            "outputs": [{"name": "sum", "type": "INT", "links": [53]}],
        },
        {"id": 9, "type": "Show", "title": "End", "inputs": [{"name": "value", "type": "*", "link": 53}]},
    ]
    links = [[51, 5, 0, 6, 0, "INT"], [52, 6, 0, 7, 0, "INT"], [53, 7, 0, 9, 0, "INT"]]
    return {"version": 0.4, "nodes": nodes, "links": links, "definitions": {"subgraphs": [inner]}}


def places(value, path=()):
    """The path of every part of a document."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*path, key))


def damaged(document, path, value, drop):
    document = copy.deepcopy(document)
    if not path:
        return value
    part = document
    for key in path[:-1]:
        part = part[key]
    if drop:
        del part[path[-1]]
    else:
        part[path[-1]] = value
    return document


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(small, document):
    """The graph, or None where it is refused as it should be."""
    try:
        loaded = workflow.parse(document, small.schemas)
        return validate.check(loaded.prompt, small.nodes, small.schemas, loaded.problems)
    except WorkflowError as error:
        assert str(error)
        return None


def test_the_whole_file_is_sound(small):
    assert read(small, saved()) is not None


@FUZZ
@given(data=st.data())
def test_a_saved_file_with_any_damage_is_read_or_refused(small, data):
    path = data.draw(st.sampled_from(list(places(saved()))))
    read(small, damaged(saved(), path, data.draw(ANYTHING), data.draw(st.booleans())))


@FUZZ
@given(data=st.data())
def test_an_api_graph_with_any_damage_is_read_or_refused(small, data):
    document = workflow.parse(saved(), small.schemas).prompt
    path = data.draw(st.sampled_from(list(places(document))))
    read(small, damaged(document, path, data.draw(ANYTHING), data.draw(st.booleans())))


@FUZZ
@given(cut=st.integers(0, 400))
def test_a_file_that_was_cut_is_refused(small, tmp_path, cut):
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(saved())[:cut], encoding="utf-8")
    try:
        workflow.load(path, small.schemas)
        raise AssertionError("half a file was accepted")
    except WorkflowError as error:
        assert "cut.json is not valid JSON" in str(error)
