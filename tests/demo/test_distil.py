"""The shipped model as a few-step one: the recipes' runs leave a file of the promised size that the nodes read, in
either style; a run whose teacher has changed is not gone on with."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from velatura.core.lcm_file import read_lcm
from velatura.demo import data, distil, lineart, recipes
from velatura.hosts import load
from velatura.training import checkpoint, students

SMALL = {"scenes": 2, "steps": 1, "batch": 1, "rank": 2, "warmup": 0, "rate": 0.01}


@pytest.fixture
def run(tmp_path, random_folder, monkeypatch):
    """`run(name, fields)` runs a small recipe on the random model."""
    monkeypatch.setattr(distil, "MODEL", random_folder)
    monkeypatch.setattr(distil, "sample_sheet", small_sheet(distil.sample_sheet))

    def go(name: str, **fields):
        path = tmp_path / f"{name}.toml"
        lines = [f"{key} = {json.dumps(value)}" for key, value in ({"kind": "consistency"} | SMALL | fields).items()]
        path.write_text("\n".join(lines), encoding="utf-8")
        return recipes.run(path, folder=tmp_path / "runs" / name)

    return go


def small_sheet(sheet):
    return lambda *args: sheet(*args, count=2)


def test_distilled_then_fine_tuned_in_another_style(run, tmp_path):
    told = run("lcm", steps=2)
    assert told["file"] == str(tmp_path / "runs" / "lcm" / distil.RESULT_FILE)
    with safe_open(told["file"], "pt") as file:
        assert file.metadata() | {"velatura_guidance": "omega", "velatura_guidance_default": "5"} == file.metadata()
    first = read_lcm(load_file(told["file"]))
    assert first.deltas is not None and first.projection is not None and bool(first.projection.abs().sum() > 0)
    told = run("art", method="finetune", start_from="lcm", style="lineart")
    second = read_lcm(load_file(told["file"]))
    assert second.deltas is not None
    near = [
        float((low.up - second.deltas.of("unet")[name].up).abs().max()) for name, low in first.deltas.of("unet").items()
    ]
    assert 0 < max(near) < 0.1, "the second run goes on from the first"
    assert {"loss.png", "samples.png", "result.safetensors"} <= {p.name for p in (tmp_path / "runs" / "art").iterdir()}


def test_a_whole_network_may_be_trained(run, random_folder):
    told = run("full", trained="full")
    tensors = load_file(told["file"])
    before = load_file(random_folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert set(tensors) == {*before, students.PROJECTION}
    assert any(not torch.allclose(tensors[key].float(), before[key].float(), atol=5e-3) for key in before)


def test_another_teacher_is_not_gone_on_with(run, tmp_path, monkeypatch):
    from velatura.demo.architecture import write_random

    run("lcm")
    write_random(tmp_path / "other", seed=1)
    monkeypatch.setattr(distil, "MODEL", tmp_path / "other")
    with pytest.raises(checkpoint.CheckpointError, match=r"made by another recipe \(teacher"):
        run("lcm")


def test_the_start_must_be_there(run):
    with pytest.raises(checkpoint.CheckpointError, match=r"no such result; run `velatura train nothing` first"):
        run("art", start_from="nothing")


@pytest.mark.parametrize("name", ["lcm", "lcm_lineart"])
def test_the_shipped_recipes_file_is_small(name, random_folder):
    model, _, _ = load("diffusers").load_folder(random_folder)
    student = distil.new_student(model, recipes.load(recipes.find(name)))
    assert sum(t.numel() * t.element_size() for t in students.tensors_of(student).values()) < 3.95e6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"style": "cubist"}, "style: expected one of painted, lineart"),
        ({"trained": "half"}, "trained: expected 'lora' or 'full'"),
        ({"trained": "full", "start_from": "lcm"}, "start_from: a whole network"),
        ({"mu": 1.0}, "mu: expected"),
        ({"layers": "nowhere"}, "matches none of the network's 119 layers"),
    ],
)
def test_an_impossible_recipe_says_why(run, fields, message):
    with pytest.raises(ValueError, match=message):
        run("bad", **fields)


def test_line_art_is_the_same_scene_on_paper():
    indices = torch.arange(6)
    drawn, captions = lineart.captioned(3, indices, 0.4, 64)
    painted, same = data.captioned(3, indices, 0.4, 64)
    assert captions == same and drawn.shape == painted.shape
    assert float(drawn.min()) >= -1 and float(drawn.max()) <= 1
    alone, _ = lineart.captioned(3, indices[2:3], 0.4, 64)
    assert torch.equal(alone[0], drawn[2])
    paper = torch.tensor(lineart.PAPER).view(3, 1, 1)
    share = ((drawn + 1) / 2 - paper).abs().amax(1).lt(0.1).float().mean((1, 2))
    assert bool((share > 0.3).all())
    bare = data.is_bare(3, indices, 0.4)
    ink = drawn.amax(1).lt(-0.5).float().mean((1, 2))
    assert float(ink[~bare].mean()) > 3 * float(ink[bare].mean())
