"""A sweep file says what it means, and whatever is misspelt in it is found before anything runs."""

import csv
import itertools

import pytest

from velatura.benchmarks.scale import WORKFLOW
from velatura.runtime import registry
from velatura.runtime.problems import WorkflowError
from velatura.runtime.sweep.file import Cluster, Servers, SweepError, Workers, read
from velatura.runtime.sweep.plan import Plan

FIRST = f'workflow = "{WORKFLOW.as_posix()}"'
LCM, TEXT = "VelaturaLcmSample", "What to draw"


@pytest.fixture(scope="module")
def known():
    nodes = registry.all_nodes()
    return registry.object_info(nodes), nodes


@pytest.fixture
def written(tmp_path):
    def write(body, first=FIRST):
        path = tmp_path / "sweep.toml"
        path.write_text(f"{first}\n{body}\n", encoding="utf-8")
        return path

    return write


def test_lists_ranges_files_and_single_values(written, tmp_path):
    (tmp_path / "prompts.txt").write_text("a red star\n\nan orange flame # with this\n", encoding="utf-8")
    sweep = read(
        written(
            "[set]\nVelaturaLcmSample.steps = 1\n[grid]\n"
            '"What to draw.text" = { file = "prompts.txt" }\n'
            '"VelaturaLcmSample.seed" = { from = 5, to = 11, step = 3 }\n'
            'VelaturaLcmSample.gamma = { from = 0.1, to = 0.3, step = 0.1 }\nVelaturaLcmSample.method = ["lcm", "tcd"]'
        )
    )
    values = {names: [value for (value,) in values] for names, values in sweep.axes}
    assert values[(f"{TEXT}.text",)] == ["a red star", "an orange flame # with this"]
    assert values[(f"{LCM}.seed",)] == [5, 8, 11]
    assert values[(f"{LCM}.gamma",)] == [0.1, 0.2, 0.3]
    assert values[(f"{LCM}.method",)] == ["lcm", "tcd"]
    assert sweep.fixed == {f"{LCM}.steps": 1} and sweep.where == Workers(1, 0)


def test_where_it_runs(written):
    assert read(written("[workers]\ncount = 3\nthreads = 1")).where == Workers(3, 1)
    assert read(written('[cluster]\nray = "auto"\nworkers = 4\ngpus = 1')).where == Cluster("auto", 4, 1, 1)
    assert read(written('[servers]\nurls = ["http://a:1/", "https://b"]')).where == Servers(("http://a:1", "https://b"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("[grd]", "there is no setting “grd”. Did you mean “grid”?"),
        ("[workers]\ncuont = 2", r"\[workers\] there is no setting “cuont”. Did you mean “count”?"),
        ("[workers]\ncount = 0", r"\[workers\] count: expected at least 1, got 0"),
        ("[workers]\ncount = true", r"\[workers\] count: expected a whole number, got True"),
        ("[measure.acuracy]", "there is no such measure. Did you mean “accuracy”?"),
        ("[measure.psnr]", r"\[measure.psnr\] reference: it has no value"),
        ('[measure.psnr]\nreferance = "a.png"', "there is no setting “referance”. Did you mean “reference”?"),
        ("[grid]\nKSampler.seed = []", "“KSampler.seed”: it has no values"),
        ("[grid]\nKSampler.seed = { from = 3, to = 1 }", "expected 1 to 1000000 values from 3 to 1"),
        ("[grid]\nKSampler.seed = { from = 3, till = 4 }", "there is no setting “till”"),
        ('[grid]\n"A.text" = { file = "none.txt" }', "none.txt cannot be read as text"),
        ("[grid]\nA.b = [[1]]", r"expected text, a number, true or false, got \[1\]"),
        ("[set]\nA.b = 1\n[grid]\nA.b = [1]", "“A.b” is set twice"),
        ("[workers]\n[cluster]\nray = 'auto'", r"\[workers\] and \[cluster\]: a sweep runs in one place"),
        ("[servers]\nurls = []", r"\[servers\] urls: expected addresses of servers"),
        ('[servers]\nurls = ["127.0.0.1:8188"]', "expected addresses such as http://127.0.0.1:8188"),
        ('[servers]\nurls = ["http://a", "http://a"]', "named twice"),
        ("[cluster]", r"\[cluster\] ray: expected an address"),
        ("attempts = ", "it is not TOML"),
    ],
)
def test_what_is_wrong_is_named(written, body, said):
    with pytest.raises(SweepError, match=said) as caught:
        read(written(body))
    assert "sweep.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("[grid]\nVelaturaLcmSampl.seed = [1]", "no node of the workflow is called “VelaturaLcmSampl”. Did you mean"),
        ("[grid]\nVelaturaLcmSample.sed = [1]", "has no input “sed”. Did you mean “seed”?"),
        ("[grid]\nVelaturaLcmSample.seed = [1.5]", "“1.5” is not a whole number"),
        ("[grid]\nVelaturaLcmSample.steps = [1, 99999]", "99999 is above the largest value"),
        ('[grid]\nVelaturaLcmSample.method = ["lcm", "tdc"]', "“tdc” is not one of"),
        ("[grid]\nVelaturaLcmSample.model = [1]", "is wired to another node"),
        ('[grid]\nVelaturaLcmSample.seed = [1]\n"5.seed" = [2]', "are the same input"),
        ('[measure.accuracy]\nprompt = "What to drow.text"', "Did you mean “What to draw”?"),
        ('[measure.psnr]\nreference = "{VelaturaLcmSample.sed}.png"', "Did you mean “seed”?"),
    ],
)
def test_what_the_workflow_does_not_have_is_named(written, known, body, said):
    with pytest.raises((SweepError, WorkflowError), match=said):
        Plan(read(written(body)), *known)


def test_pictures_names_an_output_node(written, known):
    plan = Plan(read(written("", f'{FIRST}\npictures = "SaveImage"')), *known)
    assert plan.ends == ["7"]
    with pytest.raises(SweepError, match="is no output node"):
        Plan(read(written("", f'{FIRST}\npictures = "VAEDecode"')), *known)


def test_every_combination_once_and_what_is_upstream_changes_least(written, known):
    """A changed sampler input runs fewer nodes again than a changed model: the model is the outermost."""
    body = (
        "[grid]\nVelaturaLcmSample.seed = [1, 2, 1]\n"
        '"What to draw.text" = ["a red star", "a blue fish"]\nVelaturaLcmModel.strength = [1.0, 0.5]'
    )
    tasks = Plan(read(written(body)), *known).tasks
    seen = [
        tuple(task.settings[name] for name in ("VelaturaLcmModel.strength", f"{TEXT}.text", f"{LCM}.seed"))
        for task in tasks
    ]
    assert set(seen) == set(itertools.product([1.0, 0.5], ["a red star", "a blue fish"], [1, 2])) and len(seen) == 8
    assert [strength for strength, *_ in seen] == [1.0] * 4 + [0.5] * 4
    assert [task.group for task in tasks] == [0] * 4 + [1] * 4


def test_the_example_that_ships_is_a_sweep(known):
    plan = Plan(read(WORKFLOW.parent / "lcm_sweep.toml"), *known)
    assert len(plan.tasks) == 12 * 2 * 4 * 3
    steps = {plan.order(task).prompt["5"]["inputs"]["steps"] for task in plan.tasks[::7]}
    assert steps == {1, 2, 4, 8}
    page = (WORKFLOW.parent.parent / "web" / "docs" / "Sweeps.md").read_text(encoding="utf-8")
    assert "\n".join((WORKFLOW.parent / "lcm_sweep.toml").read_text(encoding="utf-8").splitlines()[3:]) in page


def test_rows_vary_together(written, known, tmp_path):
    with open(tmp_path / "cases.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([[f"{TEXT}.text", f"{LCM}.seed"], ["a red star", "3"], ["a blue, wet fish", "4"]])
    body = "[grid]\nVelaturaLcmSample.steps = [1, 2]"
    plan = Plan(read(written(body, f'{FIRST}\nrows = "cases.csv"')), *known)
    found = {(t.settings[f"{TEXT}.text"], t.settings[f"{LCM}.seed"], t.settings[f"{LCM}.steps"]) for t in plan.tasks}
    assert found == {("a red star", 3, 1), ("a red star", 3, 2), ("a blue, wet fish", 4, 1), ("a blue, wet fish", 4, 2)}
    order = plan.order(plan.tasks[-1])
    assert order.prompt["5"]["inputs"]["seed"] == plan.tasks[-1].settings[f"{LCM}.seed"]
    assert next(node for node in order.document["nodes"] if node["id"] == 5)["widgets_values"][0] in (3, 4)


def test_a_key_is_the_graph_and_the_measures_not_the_file(written, known):
    def keys(body):
        return {task.key for task in Plan(read(written(body)), *known).tasks}

    some, more = "[grid]\nVelaturaLcmSample.seed = [1, 2]", '[grid]\n"5.seed" = [2, 1, 3]\n[workers]\ncount = 2'
    assert keys(some) < keys(more)
    assert not keys(some) & keys(some + '\n[measure.accuracy]\nprompt = "What to draw.text"')
    assert not keys(some) & keys(some + "\n[set]\nVelaturaLcmSample.steps = 2")
