"""Every mistake in a workflow is said at once, by node title and input, in words that tell what to do."""

import pytest

from velatura.runtime import validate
from velatura.runtime.problems import WorkflowError


def entry(class_, title=None, **inputs):
    return {"class_type": class_, "inputs": inputs, "_meta": {"title": title or class_}}


def check(small, prompt):
    return validate.check(prompt, small.nodes, small.schemas)


def problems(small, prompt):
    with pytest.raises(WorkflowError) as caught:
        check(small, prompt)
    return [str(each) for each in caught.value.problems]


def drawn(**changes):
    draw = {"seed": 1, "mode": "wide", "scale": 1.0, "flip": False, "text": ""} | changes
    return {"1": entry("Draw", "My drawing", **draw), "2": entry("Look", image=["1", 0])}


def test_a_sound_graph_comes_back_with_constants_in_their_types(small):
    """Files hold 1 for 1.0 and "7" for 7; a node must not see the difference."""
    prompt = drawn(seed="7", scale=2, flip=1, text=5, from_another_version=1)
    found = check(small, prompt)["1"]["inputs"]
    assert found == {"seed": 7, "mode": "wide", "scale": 2.0, "flip": True, "text": "5"}
    assert [type(value) for value in found.values()] == [int, str, float, bool, str]
    assert prompt["1"]["inputs"]["seed"] == "7", "the caller's graph was changed"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": "x"}, ["“My drawing” (node 1), input “seed”", "“x” is not a whole number"]),
        ({"seed": 1.5}, ["“seed”", "not a whole number"]),
        ({"seed": True}, ["“seed”", "not a whole number"]),
        ({"seed": -1}, ["“seed”", "-1 is below the smallest value, 0"]),
        ({"scale": 11}, ["“scale”", "11.0 is above the largest value, 10.0", "0.0 to 10.0"]),
        ({"scale": float("nan")}, ["“scale”", "not a number"]),
        ({"flip": "maybe"}, ["“flip”", "not true or false"]),
        ({"text": None}, ["“text”", "is not text"]),
        ({"mode": "wode"}, ["“mode”", "not one of: fixed, wide, narrow", "Did you mean “wide”?"]),
        ({"mode": ["1", 0]}, ["“mode”", "needs a COMBO", "gives an IMAGE"]),
        ({"under": 3}, ["“under”", "needs a connection that brings an IMAGE"]),
        ({"under": ["77", 0]}, ["“under”", "node 77", "not in the workflow"]),
        ({"under": ["1", 5]}, ["“under”", "output 5", "has 2 outputs"]),
        ({"under": ["1", 1]}, ["“under”", "it needs an IMAGE, but “My drawing” (node 1) gives a MASK"]),
    ],
)
def test_each_mistake_is_named(small, changes, said):
    text = "\n".join(problems(small, drawn(**changes)))
    for part in said:
        assert part in text


def test_all_mistakes_are_said_at_once(small):
    prompt = drawn(seed="x", mode="wode", scale=99)
    del prompt["1"]["inputs"]["flip"]
    prompt["3"] = entry("Lok", image=["1", 0])
    text = problems(small, prompt)
    assert len(text) == 5
    assert "there is no node “Lok” here. Did you mean “Look”?" in text[0]
    assert any("“flip”: it has no value" in each for each in text)


def test_a_node_known_by_its_shown_name_is_offered_by_its_id(small):
    prompt = {"1": entry("Draw a Picture"), "2": entry("Look", image=["1", 0])}
    assert "Did you mean “Draw”?" in problems(small, prompt)[0]


def test_a_missing_wire_is_named(small):
    assert problems(small, {"2": entry("Look", "Last")}) == [
        "“Last” (node 2), input “image”: nothing is connected; it needs an IMAGE"
    ]


def test_a_circle_is_shown_once_with_its_nodes(small):
    """Without the check the executor would wait for ever."""
    prompt = {
        "1": entry("Add", "One", a=["3", 0], b=1),
        "2": entry("Add", "Two", a=["1", 0], b=1),
        "3": entry("Add", "Three", a=["2", 0], b=1),
        "4": entry("Show", value=["3", 0]),
    }
    found = problems(small, prompt)
    assert len(found) == 1
    assert all(name in found[0] for name in ("One", "Two", "Three", "circle"))


def test_a_graph_without_an_end_is_refused(small):
    assert "no output node" in problems(small, {"1": entry("Number", value=1)})[0]


def test_what_no_output_needs_is_left_alone(small):
    """A half-built corner of a workflow does not stop the rest."""
    assert check(small, drawn() | {"5": entry("Look"), "6": entry("Number", value=999)} | {"5": entry("Add")})


def test_a_nodes_own_verdict_replaces_the_range(small):
    """ComfyUI's rule: what `validate_inputs` names, the schema does not judge."""

    def judged(value):
        return {"1": entry("Judge", even=value), "2": entry("Show", value=["1", 0])}

    assert check(small, judged(100))
    assert problems(small, judged(3)) == ["“Judge” (node 1): 3 is odd"]


def test_wires_of_any_type_fit_anywhere(small):
    assert check(small, {"1": entry("Number", value=1), "2": entry("Show", value=["1", 0])})
