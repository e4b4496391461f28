"""Workflows as ComfyUI saves them. The expected graphs are written by hand: what its browser sends to its server."""

import pytest

from velatura.runtime import workflow
from velatura.runtime.problems import WorkflowError

PICTURE = [7, "randomize", "wide", 2.0, True, "hello"]


def node(id_, type_, *, values=None, inputs=(), outputs=(), mode=0, **more):
    sockets = [{"name": name, "type": kind, "link": link, **extra} for name, kind, link, extra in map(socket, inputs)]
    leaving = [{"name": kind, "type": kind, "links": list(links)} for kind, links in outputs]
    found = {"id": id_, "type": type_, "mode": mode, "inputs": sockets, "outputs": leaving, "properties": {}, **more}
    return found | ({} if values is None else {"widgets_values": values})


def socket(given):
    name, kind, link, *widget = given
    return name, kind, link, {"widget": {"name": name}} if widget else {}


def graph(nodes, links=(), **more):
    return {"version": 0.4, "nodes": nodes, "links": [list(each) for each in links], **more}


def inputs_of(small, document):
    read = workflow.parse(document, small.schemas)
    assert read.problems == []
    return {id_: entry["inputs"] for id_, entry in read.prompt.items()}


DRAWN = {"seed": 7, "mode": "wide", "scale": 2.0, "flip": True, "text": "hello"}


def test_values_find_their_inputs_and_the_seeds_control_is_dropped(small):
    """A file's values are a bare list: one place off, and every picture made from a shared file differs."""
    document = graph(
        [node(1, "Draw", values=PICTURE), node(2, "Look", inputs=[("image", "IMAGE", 5)])],
        [(5, 1, 0, 2, 0, "IMAGE")],
    )
    assert inputs_of(small, document) == {"1": DRAWN, "2": {"image": ["1", 0]}}


def test_a_combo_may_itself_hold_the_word_fixed(small):
    """Only the value after a seed is its control; a combo whose choice is called “fixed” keeps it."""
    values = [7, "fixed", "fixed", 2.0, True, "hello"]
    assert inputs_of(small, graph([node(1, "Draw", values=values)]))["1"] == {**DRAWN, "mode": "fixed"}


def test_links_as_objects_and_values_by_name(small):
    """Version 1 of the format, and packs that save their values as a dictionary."""
    named = {**DRAWN, "leftover": 3}
    link = {"id": 5, "origin_id": 1, "origin_slot": 1, "target_id": 2, "target_slot": 0, "type": "MASK"}
    document = graph([node(1, "Draw", values=named), node(2, "Show", inputs=[("value", "*", 5)])])
    document |= {"version": 1, "links": [link]}
    assert inputs_of(small, document) == {"1": DRAWN, "2": {"value": ["1", 1]}}


def test_values_that_an_older_file_lacks_get_their_defaults(small):
    """Inputs are appended last, so a file from before them must still run."""
    document = graph([node(1, "Draw", values=[7, "fixed", "wide"])])
    assert inputs_of(small, document)["1"] == {"seed": 7, "mode": "wide", "scale": 1.0, "flip": False, "text": ""}


def test_a_wired_editor_takes_the_wire_and_its_neighbours_keep_their_places(small):
    document = graph(
        [
            node(1, "Number", values=[9]),
            node(2, "Draw", values=PICTURE, inputs=[("seed", "INT", 3, True)]),
        ],
        [(3, 1, 0, 2, 0, "INT")],
    )
    assert inputs_of(small, document)["2"] == {**DRAWN, "seed": ["1", 0]}


def test_what_is_only_drawn_never_reaches_the_graph(small):
    """Reroutes (two in a row), a primitive, notes, and an ornament of an unknown browser extension."""
    document = graph(
        [
            node(1, "Draw", values=PICTURE),
            node(2, "Reroute", inputs=[("", "*", 11)]),
            node(3, "Reroute", inputs=[("", "*", 12)]),
            node(4, "Look", inputs=[("image", "IMAGE", 13)]),
            node(5, "PrimitiveNode", values=[42, "fixed"]),
            node(6, "Number", values=[1], inputs=[("value", "INT", 14, True)]),
            node(7, "Note", values=["read me"]),
            node(8, "MarkdownNote", values=["# read me"]),
            node(9, "Label (a browser extension)", values=["title"]),
        ],
        [(11, 1, 0, 2, 0, "*"), (12, 2, 0, 3, 0, "*"), (13, 3, 0, 4, 0, "IMAGE"), (14, 5, 0, 6, 0, "INT")],
        groups=[{"title": "a group"}],
    )
    assert inputs_of(small, document) == {"1": DRAWN, "4": {"image": ["1", 0]}, "6": {"value": 42}}


def test_a_muted_node_is_gone_and_a_bypassed_one_is_bridged_by_type(small):
    document = graph(
        [
            node(1, "Draw", values=PICTURE),
            node(2, "Number", values=[3]),
            node(
                3,
                "Draw",
                values=PICTURE,
                mode=4,
                inputs=[("seed", "INT", 22, True), ("under", "IMAGE", 21)],
                outputs=[("IMAGE", [23]), ("MASK", [])],
            ),
            node(4, "Look", inputs=[("image", "IMAGE", 23)]),
            node(5, "Number", values=[4], mode=2, outputs=[("INT", [24])]),
            node(6, "Add", values=[1, 2], inputs=[("a", "INT", 24, True)]),
        ],
        [(21, 1, 0, 3, 1, "IMAGE"), (22, 2, 0, 3, 0, "INT"), (23, 3, 0, 4, 0, "IMAGE"), (24, 5, 0, 6, 0, "INT")],
    )
    found = inputs_of(small, document)
    assert found["4"] == {"image": ["1", 0]}
    assert set(found) == {"1", "2", "4", "6"}
    assert found["6"]["a"] == 1


def subgraph(id_, nodes, links, inputs=(), outputs=()):
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    wires = [dict(zip(keys, each, strict=True)) for each in links]
    entering = [{"name": name, "linkIds": ids} for name, ids in inputs]
    return {"id": id_, "name": id_, "nodes": nodes, "links": wires, "inputs": entering, "outputs": list(outputs)}


def sums(values=None, proxies=None, link=None):
    """A workflow whose node 5 is a subgraph: a Number (editor “value” promoted) added to what is wired to `x`."""
    inner = subgraph(
        "sum",
        [
            node(1, "Number", values=[10], inputs=[("value", "INT", 1, True)]),
            node(2, "Add", values=[0, 0], inputs=[("a", "INT", 2, True), ("b", "INT", 3, True)]),
        ],
        [(1, -10, 1, 1, 0, "INT"), (2, 1, 0, 2, 0, "INT"), (3, -10, 0, 2, 1, "INT"), (4, 2, 0, -20, 0, "INT")],
        inputs=[("x", [3]), ("value", [1])],
        outputs=[{"name": "sum", "linkIds": [4]}],
    )
    outside = node(5, "sum", values=values, inputs=[("x", "INT", 50, True), ("value", "INT", link, True)])
    if proxies is not None:
        outside["properties"]["proxyWidgets"] = proxies
    return graph(
        [node(1, "Number", values=[3]), outside, node(9, "Show", inputs=[("value", "*", 51)])],
        [(50, 1, 0, 5, 0, "INT"), (51, 5, 0, 9, 0, "INT"), (52, 1, 0, 5, 1, "INT")],
        definitions={"subgraphs": [inner]},
    )


@pytest.mark.parametrize(
    ("document", "value"),
    [
        pytest.param(sums(), 10, id="the inner value stands where the instance has none"),
        pytest.param(sums(values=[99, 20]), 20, id="values follow the promoted inputs"),
        pytest.param(sums(values=[20], proxies=[["1", "value"]]), 20, id="an older file names the editors"),
        pytest.param(sums(values=[20], proxies=[["-1", "value"]]), 20, id="or the instance's own inputs"),
        pytest.param(sums(values=[None], proxies=[["1", "value"]]), 10, id="a hole leaves the inner value"),
        pytest.param(sums(values=[99, 20], link=52), ["1", 0], id="a wire wins over every value"),
    ],
)
def test_a_subgraph_is_unfolded_with_what_its_instance_holds(small, document, value):
    """Promoted editors are where people type; the inner value is only what they started from."""
    assert inputs_of(small, document) == {
        "1": {"value": 3},
        "5:1": {"value": value},
        "5:2": {"a": ["5:1", 0], "b": ["1", 0], "c": 0, "d": 0, "e": 0, "f": 0},
        "9": {"value": ["5:2", 0]},
    }


def test_subgraphs_within_subgraphs_used_twice(small):
    """An editor promoted through two levels, in two instances that must not share their values."""
    document = sums()
    outer = subgraph(
        "outer",
        [node(7, "sum", inputs=[("x", "INT", None, True), ("value", "INT", 1, True)])],
        [(1, -10, 0, 7, 1, "INT"), (2, 7, 0, -20, 0, "INT")],
        inputs=[("value", [1])],
        outputs=[{"name": "sum", "linkIds": [2]}],
    )
    document["definitions"]["subgraphs"].append(outer)
    document["nodes"] = [
        node(20, "outer", values=[31], inputs=[("value", "INT", None, True)]),
        node(21, "outer", values=[32], inputs=[("value", "INT", None, True)]),
        node(9, "Show", inputs=[("value", "*", 1), ("more", "*", 2)]),
    ]
    document["links"] = [[1, 20, 0, 9, 0, "INT"], [2, 21, 0, 9, 1, "INT"]]
    found = inputs_of(small, document)
    assert (found["20:7:1"], found["21:7:1"]) == ({"value": 31}, {"value": 32})
    assert found["9"] == {"value": ["20:7:2", 0], "more": ["21:7:2", 0]}


def test_a_muted_subgraph_is_gone_with_all_its_nodes(small):
    document = sums()
    document["nodes"][1]["mode"] = 2
    assert inputs_of(small, document) == {"1": {"value": 3}, "9": {}}


def test_a_subgraph_that_contains_itself_is_refused(small):
    """Without the check the reader never ends."""
    document = sums()
    document["definitions"]["subgraphs"][0]["nodes"].append(node(3, "sum"))
    with pytest.raises(WorkflowError, match="contains itself"):
        workflow.parse(document, small.schemas)


def test_broken_wires_are_named_by_title_and_input(small):
    document = graph(
        [
            node(1, "Look", inputs=[("image", "IMAGE", 7)], title="The end"),
            node(2, "Look", inputs=[("image", "IMAGE", 8)]),
            node(3, "Reroute", inputs=[("", "*", 9)]),
            node(4, "Look", inputs=[("image", "IMAGE", 9)]),
        ],
        [(8, 99, 0, 2, 0, "IMAGE"), (9, 3, 0, 3, 0, "*")],
    )
    problems = [str(each) for each in workflow.parse(document, small.schemas).problems]
    assert len(problems) == 3
    assert "“The end” (node 1), input “image”" in problems[0] and "link 7" in problems[0]
    assert "node 99" in problems[1]
    assert "circle" in problems[2]


@pytest.mark.parametrize("document", [{"nodes": 3}, {"nodes": [{"id": 1}]}, {"nodes": ["x"]}, [], 7, {}])
def test_what_is_no_workflow_is_refused(small, document):
    with pytest.raises(WorkflowError):
        workflow.parse(document, small.schemas)


def test_damaged_links_are_refused(small):
    document = graph([node(1, "Look", inputs=[("image", "IMAGE", 7)])], [(7, 1)])
    with pytest.raises(WorkflowError, match="links are damaged"):
        workflow.parse(document, small.schemas)


def test_the_api_form_is_taken_as_it_is_with_titles_filled_in(small):
    document = {"3": {"class_type": "Number", "inputs": {"value": 4}}, "4": {"class_type": "Show", "inputs": {}}}
    document["4"]["_meta"] = {"title": "The end"}
    for form in (document, {"prompt": document, "client_id": "x"}):
        prompt = workflow.parse(form, small.schemas).prompt
        assert prompt["3"] == {"class_type": "Number", "inputs": {"value": 4}, "_meta": {"title": "Number"}}
        assert prompt["4"]["_meta"]["title"] == "The end"
