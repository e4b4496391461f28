"""`--set NODE.INPUT=VALUE`."""

import pytest

from velatura.runtime import settings, workflow
from velatura.runtime.problems import WorkflowError


@pytest.fixture
def loaded(small):
    values = [7, "randomize", "wide", 2.0, True, "hello"]
    link = [1, 1, 0, 2, 0, "IMAGE"]
    nodes = [
        {"id": 1, "type": "Draw", "title": "The v1.5 drawing", "widgets_values": values},
        {"id": 2, "type": "Look", "inputs": [{"name": "image", "link": 1}]},
        {"id": 3, "type": "Number", "widgets_values": [1]},
        {"id": 4, "type": "Number", "widgets_values": [2]},
    ]
    return workflow.parse({"nodes": nodes, "links": [link], "version": 0.4}, small.schemas)


def apply(small, loaded, *changes):
    settings.apply(loaded, small.schemas, list(changes))
    return loaded.prompt


@pytest.mark.parametrize("name", ["1", "The v1.5 drawing", "the V1.5 Drawing", "Draw"])
def test_a_node_is_named_by_id_title_or_class(small, loaded, name):
    assert apply(small, loaded, f"{name}.seed=11")["1"]["inputs"]["seed"] == 11


def test_values_are_read_by_the_inputs_type(small, loaded):
    prompt = apply(small, loaded, "1.scale=0.5", "1.flip=false", "1.text=a = b.c", "1.mode=narrow", "1.seed=1")
    assert prompt["1"]["inputs"] == {"seed": 1, "mode": "narrow", "scale": 0.5, "flip": False, "text": "a = b.c"}


def test_the_saved_form_changes_too(small, loaded):
    """The picture carries it: dragged into ComfyUI it must make the same picture again."""
    apply(small, loaded, "1.seed=11", "1.text=new")
    assert loaded.document["nodes"][0]["widgets_values"] == [11, "randomize", "wide", 2.0, True, "new"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seed=1", "NODE.INPUT=VALUE"),
        ("1.seed", "NODE.INPUT=VALUE"),
        ("Drow.seed=1", "Did you mean “Draw”"),
        ("1.sed=1", "has no input “sed”. Did you mean “seed”"),
        ("1.seed=x", "“x” is not a whole number"),
        ("2.image=x", "takes a connection"),
        ("Number.value=1", "2 nodes are called “Number”: name one by its id: 3 (“A Number”), 4 (“A Number”)"),
    ],
)
def test_a_setting_that_fits_nothing_says_why(small, loaded, change, said):
    with pytest.raises(WorkflowError) as caught:
        apply(small, loaded, change)
    assert said in str(caught.value)
