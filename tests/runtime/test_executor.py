"""What runs, in which order, and what need not run again."""

import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from velatura.hosts import running
from velatura.hosts.folders import Folders
from velatura.hosts.running import Interrupted
from velatura.runtime import validate
from velatura.runtime.executor import Executor, NodeError


def entry(class_, title=None, **inputs):
    return {"class_type": class_, "inputs": inputs, "_meta": {"title": title or class_}}


@pytest.fixture
def run(small, tmp_path):
    """Run a graph; all of a test's graphs run on one executor."""
    executor = Executor(small.nodes, Folders(output=tmp_path / "out", temp=tmp_path / "temp"))

    def go(prompt, **options):
        small.ran.clear()
        return executor.run(validate.check(prompt, small.nodes, small.schemas), **options)

    return go


def sums():
    """Two numbers, their sum, and a show for the sum and for the second number."""
    return {
        "4": entry("Show", value=["3", 0]),
        "5": entry("Show", value=["2", 0]),
        "3": entry("Add", a=["1", 0], b=["2", 0]),
        "1": entry("Number", value=3),
        "2": entry("Number", value=4),
        "6": entry("Number", value=5),
    }


def test_what_is_needed_runs_once_and_in_order(small, run):
    outcome = run(sums())
    assert small.ran == ["1", "2", "3", "4", "5"]
    assert outcome.executed == small.ran and outcome.cached == []
    assert outcome.shown == {"4": {"text": ("7",)}, "5": {"text": ("4",)}}


def test_nothing_changed_nothing_runs(small, run):
    run(sums())
    outcome = run(sums())
    assert small.ran == [] and outcome.cached == ["1", "2", "3", "4", "5"]
    assert outcome.shown["4"] == {"text": ("7",)}, "what a cached node showed was lost"


def test_a_change_runs_what_depends_on_it_and_no_more(small, run):
    run(sums())
    changed = sums()
    changed["1"]["inputs"]["value"] = 30
    assert run(changed).shown["4"] == {"text": ("34",)}
    assert small.ran == ["1", "3", "4"]


def test_another_wire_is_a_change(small, run):
    run(sums())
    changed = sums()
    changed["3"]["inputs"]["b"] = ["1", 0]
    assert run(changed).shown["4"] == {"text": ("6",)}
    assert small.ran == ["3", "4"]


def test_a_renamed_node_is_no_change(small, run):
    """Ids of nodes that do not ask for theirs are only names."""
    draw = {"seed": 1, "mode": "wide", "scale": 1.0, "flip": False, "text": ""}
    run({"1": entry("Draw", **draw), "2": entry("Look", image=["1", 0])})
    assert run({"8": entry("Draw", **draw), "9": entry("Look", image=["8", 0])}).executed == []


def test_a_fingerprint_that_changes_runs_its_node_again(small, run):
    """A picture on disk may be another one under the same name."""
    prompt = {"1": entry("Marked"), "2": entry("Show", value=["1", 0])}
    run(prompt)
    assert run(prompt).executed == []
    small.state.mark = "second"
    assert run(prompt).shown["2"] == {"text": ("second",)}
    small.state.mark = float("nan")
    for _ in range(2):
        assert run(prompt).executed == ["1", "2"]


def test_results_of_the_graph_before_last_are_dropped(small, run):
    """Otherwise every picture ever made stays in memory."""
    run(sums())
    run({"1": entry("Number", value=3), "4": entry("Show", value=["1", 0])})
    run(sums())
    assert small.ran == ["2", "3", "4", "5"]


def test_values_are_passed_by_reference(small, run):
    """A model of some gigabytes must not be copied on its way."""
    seen = []
    small.nodes["Show"].execute = classmethod(lambda cls, value: seen.append(value))
    draw = {"seed": 1, "mode": "wide", "scale": 1.0, "flip": False, "text": ""}
    run({"1": entry("Draw", **draw), "2": entry("Show", value=["1", 0]), "3": entry("Show", value=["1", 0])})
    assert seen[0] is seen[1]


def test_events_tell_the_story_in_comfyuis_words(small, run):
    told = []
    prompt = {"1": entry("Slow", steps=2), "2": entry("Show", value=["1", 0])}
    run(prompt, events=lambda name, data: told.append((name, data)), prompt_id="p")
    assert [name for name, _ in told] == [
        "execution_start", "execution_cached", "executing", "progress", "progress",
        "executing", "executed", "executing", "execution_success",
    ]  # fmt: skip
    assert {data["prompt_id"] for _, data in told} == {"p"}
    assert [(data["value"], data["max"], data["node"]) for name, data in told if name == "progress"] == [
        (1, 2, "1"),
        (2, 2, "1"),
    ]
    assert told[6][1]["output"] == {"text": ("2",)}
    assert told[7][1]["node"] is None
    told.clear()
    run(prompt, events=lambda name, data: told.append((name, data)))
    assert told[1][1]["nodes"] == ["1", "2"]
    assert [name for name, _ in told[2:]] == ["executed", "executing", "execution_success"]


def test_a_node_tells_its_widget_and_no_other_run_hears_it(small, run):
    told = []
    small.state.on_step = lambda step: running.tell("curves", {"step": step})
    run({"7": entry("Slow", steps=2), "2": entry("Show", value=["7", 0])}, events=lambda *each: told.append(each))
    said = [data for name, data in told if name == "velatura.curves"]
    assert [(data["node"], data["step"]) for data in said] == [("7", 0), ("7", 1)]
    assert all(data["prompt_id"] for data in said)
    told.clear()
    running.tell("curves", {"step": 9})
    assert told == []


def test_cancelling_stops_within_a_step_and_keeps_what_was_done(small, run):
    prompt = {"1": entry("Number", value=1), "2": entry("Slow", after=["1", 0], steps=5)}
    prompt["3"] = entry("Show", value=["2", 0])
    cancel, steps, told = threading.Event(), [], []

    def on_step(step):
        steps.append(step)
        if step == 1:
            cancel.set()

    small.state.on_step = on_step
    with pytest.raises(Interrupted):
        run(prompt, cancel=cancel, events=lambda name, data: told.append((name, data)))
    assert steps == [0, 1]
    assert told[-1][0] == "execution_interrupted" and told[-1][1]["node_id"] == "2"
    small.state.on_step = lambda step: None
    assert run(prompt).cached == ["1"]


def test_ctrl_c_is_an_interruption_too(small, run):
    def press(step):
        raise KeyboardInterrupt

    small.state.on_step = press
    told = []
    with pytest.raises(KeyboardInterrupt):
        run(
            {"1": entry("Slow", steps=3), "2": entry("Show", value=["1", 0])},
            events=lambda name, data: told.append(name),
        )
    assert told[-1] == "execution_interrupted"


def test_a_failure_names_its_node_and_the_rest_is_kept(small, run):
    prompt = sums()
    prompt["3"]["_meta"]["title"] = "My sum"
    small.state.fail = True
    told = []
    with pytest.raises(NodeError, match="“My sum” \\(node 3\\): the sum is too large") as caught:
        run(prompt, events=lambda name, data: told.append((name, data)))
    assert isinstance(caught.value.__cause__, ValueError)
    name, data = told[-1]
    assert name == "execution_error"
    assert (data["node_id"], data["node_type"], data["exception_type"]) == ("3", "Add", "ValueError")
    assert any("too large" in line for line in data["traceback"])
    small.state.fail = False
    assert run(prompt).cached == ["1", "2"]


def test_two_runs_in_one_process_do_not_share_progress_or_folders(small, tmp_path):
    """The seams are context variables: a run in another thread has its own."""
    meet = threading.Barrier(2, timeout=30)
    small.state.on_step = lambda step: meet.wait()
    heard = {"a": [], "b": []}

    def go(name):
        prompt = {name: entry("Slow", steps=3), name + "!": entry("Show", value=[name, 0])}
        checked = validate.check(prompt, small.nodes, small.schemas)
        Executor(small.nodes).run(checked, events=lambda event, data: heard[name].append((event, data.get("node"))))

    threads = [threading.Thread(target=go, args=(name,)) for name in heard]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for name, told in heard.items():
        assert [node for event, node in told if event == "progress"] == [name] * 3


def test_a_preview_is_written_to_the_temporary_folder(small, run, tmp_path):
    draw = {"seed": 1, "mode": "wide", "scale": 1.0, "flip": False, "text": ""}
    shown = run({"1": entry("Draw", **draw), "2": entry("Look", image=["1", 0])}).shown["2"]
    (item,) = shown["images"]
    assert item["type"] == "temp" and (tmp_path / "temp" / item["filename"]).is_file()
    assert not (tmp_path / "out").exists()


def test_no_gradient_is_recorded(small, run):
    """Otherwise sampling holds every step's activations."""
    import torch

    seen = []
    small.nodes["Show"].execute = classmethod(lambda cls, value: seen.append(torch.is_grad_enabled()))
    run({"1": entry("Number", value=1), "2": entry("Show", value=["1", 0])})
    assert seen == [False]


def test_a_list_is_a_value_and_not_a_wire(small, run):
    """[1, 0] typed into a node looks like a wire from node 1: the browser wraps it."""
    wrapped = {"__value__": [1, 0]}
    assert run({"1": entry("Number", value=1), "2": entry("Show", value=wrapped)}).shown["2"] == {"text": ("[1, 0]",)}


def test_a_long_chain_runs(small, run):
    """Deeper than Python's own stack."""
    prompt = {"0": entry("Number", value=0)}
    prompt |= {str(i): entry("Add", a=[str(i - 1), 0], b=1) for i in range(1, 1500)}
    prompt["end"] = entry("Show", value=["1499", 0])
    assert run(prompt).shown["end"] == {"text": ("1499",)}


@st.composite
def graphs(draw):
    """A random graph of sums without circles, some of it shown, and a node of it to change."""
    count = draw(st.integers(2, 12))
    prompt = {}
    for i in range(count):
        sources = draw(st.lists(st.integers(0, i - 1), max_size=4)) if i else []
        wires = {name: [str(source), 0] for name, source in zip("cdef", sources, strict=False)}
        prompt[str(i)] = entry("Add", a=i, b=0, **wires)
    for i in draw(st.sets(st.integers(0, count - 1), min_size=1)):
        prompt[f"show{i}"] = entry("Show", value=[str(i), 0])
    order = draw(st.permutations(list(prompt)))
    return {id_: prompt[id_] for id_ in order}, str(draw(st.integers(0, count - 1)))


def upstream(prompt, id_):
    direct = {value[0] for value in prompt[id_]["inputs"].values() if isinstance(value, list)}
    return direct.union(*(upstream(prompt, each) for each in direct)) if direct else set()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(graphs())
def test_any_graph_runs_what_it_needs_once_in_order_and_again_only_what_changed(small, graph):
    prompt, changed = graph
    executor = Executor(small.nodes, Folders(output=Path("unused")))

    def run():
        small.ran.clear()
        executor.run(validate.check(prompt, small.nodes, small.schemas))
        return list(small.ran)

    shows = [id_ for id_ in prompt if id_.startswith("show")]
    needed = set(shows).union(*(upstream(prompt, id_) for id_ in shows))
    first = run()
    assert sorted(first) == sorted(needed), "a needed node did not run once, or another one ran"
    for place, id_ in enumerate(first):
        assert upstream(prompt, id_) <= set(first[:place]), "a node ran before what it depends on"
    prompt[changed]["inputs"]["b"] = 1000
    affected = {id_ for id_ in needed if id_ == changed or changed in upstream(prompt, id_)}
    assert set(run()) == affected
    assert run() == []
