"""A value is changed, and only what depends on it runs again. Otherwise every touch of a slider is a whole run.

Real examples on the model that ships, with few steps.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest

from velatura.runtime import graph, registry, workflow
from velatura.runtime.server.config import PACK

from ...conftest import SHIPPED
from .conftest import node

pytestmark = pytest.mark.skipif(
    not (SHIPPED / "model_index.json").is_file(), reason="the demo model is not in this copy"
)
QUICK = {
    "KSampler": {"steps": 2},
    "VelaturaInvert": {"steps": 2, "iterations": 1},
    "EmptyLatentImage": {"width": 64, "height": 64, "batch_size": 1},
}


def example(name: str) -> dict[str, Any]:
    """An example, small and with few steps."""
    found = workflow.load(PACK / "example_workflows" / f"{name}.json", registry.object_info(registry.all_nodes()))
    for each in found.prompt.values():
        each["inputs"].update(QUICK.get(each["class_type"], {}))
    return found.prompt


def path() -> dict[str, Any]:
    """Two noises, what lies between them, and the pictures of that."""
    prompt = example("text_to_image")
    (empty, sampler) = (ids(prompt, each)[0] for each in ("EmptyLatentImage", "KSampler"))
    prompt[empty]["inputs"]["batch_size"] = 2
    prompt[ids(prompt, "VAEDecode")[0]]["inputs"]["samples"] = ["path", 0]
    prompt["path"] = node(
        "VelaturaLatentPath",
        keyframes=[sampler, 0], frames=3, mode="slerp", easing="linear", keep_norm=True, loop=False,
    )  # fmt: skip
    return prompt


def ids(prompt: dict[str, Any], class_type: str) -> list[str]:
    return [id_ for id_, each in prompt.items() if each["class_type"] == class_type]


def downstream(prompt: dict[str, Any], start: str) -> set[str]:
    """The node and all that hangs on it."""
    return {id_ for id_ in prompt if start in graph.needed(prompt, [id_])}


CASES = {
    "r of an edit": (lambda: example("edit_by_prompt"), "VelaturaPromptSwitchEdit", "ratio", 0.5),
    "frames of a path": (path, "VelaturaLatentPath", "frames", 4),
    "seed of a sampler": (lambda: example("text_to_image"), "KSampler", "seed", 12345),
    "name of a file": (lambda: example("text_to_image"), "SaveImage", "filename_prefix", "another"),
    "text of a prompt": (lambda: example("text_to_image"), "CLIPTextEncode", "text", "a blue feather"),
}


@pytest.mark.parametrize("case", CASES)
async def test_only_what_depends_on_a_value_runs_again(serving, case):
    make, class_type, name, value = CASES[case]
    before = make()
    changed = ids(before, class_type)[0]
    after = copy.deepcopy(before)
    after[changed]["inputs"][name] = value
    hanging = downstream(after, changed)
    assert hanging != set(after), "nothing is left that could be kept"
    async with serving(registry.all_nodes()) as browser:
        socket = await browser.listen()
        await browser.queue(before)
        first = await browser.hear(socket)
        assert set(ran(first)) == set(before) and dict(texts(first))["execution_cached"]["nodes"] == []
        await browser.queue(after)
        second = await browser.hear(socket)
        told = dict(texts(second))
        assert set(told["execution_cached"]["nodes"]) == set(after) - hanging
        assert set(ran(second)) == hanging
        # What was kept is shown again, so that the page is whole.
        shown = {data["node"] for kind, data in texts(second) if kind == "executed"}
        assert shown == {data["node"] for kind, data in texts(first) if kind == "executed"}


async def test_going_back_to_the_value_before_is_not_free_but_the_rest_still_is(serving):
    """What is remembered is the last run, so that memory does not grow with every touch."""
    before = example("text_to_image")
    sampler = ids(before, "KSampler")[0]
    after = copy.deepcopy(before)
    after[sampler]["inputs"]["seed"] = 1
    async with serving(registry.all_nodes()) as browser:
        socket = await browser.listen()
        for prompt in (before, after, before):
            await browser.queue(prompt)
            heard = await browser.hear(socket)
        assert set(ran(heard)) == downstream(before, sampler)


def texts(heard: list[Any]) -> list[Any]:
    return [each for each in heard if isinstance(each, tuple)]


def ran(heard: list[Any]) -> list[str]:
    return [data["node"] for kind, data in texts(heard) if kind == "executing" and data["node"] is not None]
