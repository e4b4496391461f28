"""Spatial conditions on the Sprites: views and damage are pure functions of their number, maps show what is there, a
recipe leaves a file that a host takes, and the benchmark's figures mean what they say."""

import json
import math

import pytest
import torch

from velatura.benchmarks import _segments
from velatura.benchmarks import conditions as bench
from velatura.core.layer_patch import FIRST
from velatura.core.palette import TOLERANCE, colours_of
from velatura.core.spatial_file import spatial_patch_from
from velatura.core.tiles import Tiles
from velatura.demo import captions, conditions, degrade, recipes, sprites, views
from velatura.demo.architecture import tokenize
from velatura.hosts.weights import open_weights

SMALL = {"kind": "concat", "scenes": 2, "steps": 1, "batch": 1, "warmup": 0, "rate": 0.01, "rank": 2}
VIEWS = {"near": 0.4, "several": 0.4}


@pytest.fixture
def run(random_folder, monkeypatch, tmp_path):
    """`run(name, fields)` runs a small recipe on the random model and gives its file."""
    monkeypatch.setattr(conditions, "MODEL", random_folder)
    sheet = conditions.sample_sheet
    monkeypatch.setattr(conditions, "sample_sheet", lambda *args: sheet(*args, count=1, steps=2))

    def go(name, **more):
        path = tmp_path / f"{name}.toml"
        path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in (SMALL | more).items()), "utf-8")
        return recipes.run(path, folder=tmp_path / name)["file"]

    return go


def read(file):
    with open_weights(file) as (tensors, header):
        return spatial_patch_from(dict(tensors), header)


def test_a_view_does_not_depend_on_its_batch_and_its_words_are_known():
    whole, part = views.views(3, torch.arange(12), **VIEWS), views.views(3, torch.tensor([7]), **VIEWS)
    assert torch.equal(whole.picture[7:8], part.picture) and torch.equal(whole.classes[7:8], part.classes)
    assert whole.captions[7] == part.captions[0]
    assert (
        whole.picture.shape == (12, 3, 128, 128) and 0 <= float(whole.picture.min()) <= float(whole.picture.max()) <= 1
    )
    assert int(whole.classes.min()) >= 0 and int(whole.classes.max()) < len(views.CLASSES)
    tokenize(whole.captions)
    assert any("," in each.rpartition(",")[0] for each in whole.captions)  # several objects
    far = views.views(3, torch.arange(6), near=1.0, several=0.0, farther=4)
    assert far.picture.shape == (6, 3, 128, 128)


def test_a_map_names_the_place_and_the_object():
    drawn = sprites.draw(5, range(8))
    classes = views.classes_of(drawn.semantic, drawn.place)
    for number in range(8):
        names = {views.CLASSES[k] for k in classes[number].unique().tolist()}
        place = captions.BACKGROUNDS[int(drawn.place[number])]
        kind = captions.KINDS[int(drawn.kind[number])]
        assert kind in names and names <= {kind, f"{place} far", f"{place} ground"}


def test_no_two_classes_have_colours_that_could_be_taken_for_each_other():
    colours = colours_of(views.COLOURS)
    assert len(views.CLASSES) == len(colours) == 2 * len(captions.BACKGROUNDS) + len(captions.KINDS)
    assert float((torch.cdist(colours, colours) + 1e3 * torch.eye(len(colours))).min()) > TOLERANCE


def test_damage_depends_on_the_number_alone_and_is_of_many_kinds():
    picture = sprites.draw(5, range(16)).blend
    small = degrade.degraded(picture, 5, torch.arange(16))
    assert small.shape == (16, 3, 32, 32) and 0 <= float(small.min()) <= float(small.max()) <= 1
    assert torch.equal(degrade.degraded(picture[3:4], 5, torch.tensor([3])), small[3:4])
    clean = degrade.reduced(picture, "area")
    errors = (small - clean).square().mean((1, 2, 3))
    assert float(errors.max()) > 5 * float(errors.min())
    assert torch.allclose(degrade.blurred(picture, 1.0).mean((2, 3)), picture.mean((2, 3)), atol=0.01)


@pytest.mark.parametrize(("told", "channels"), [("semantic", 4 * 32), ("superres", 16)])
def test_a_recipe_leaves_a_file_that_says_what_it_is_told(run, told, channels):
    patch = read(run(told, told=told))
    assert patch.channels() == 4 + channels and patch.size == 128
    assert list(patch.classes) == (list(views.CLASSES) if told == "semantic" else [])
    assert patch.patch.weights[FIRST][:, 4:].abs().max() > 0


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"told": "depth"}, "told: expected one of"),
        ({"near": 0.7, "several": 0.7}, "near"),
        ({"farther": 3}, "farther"),
    ],
)
def test_an_impossible_recipe_is_refused_by_field(run, bad, said):
    with pytest.raises(recipes.RecipeError, match=said):
        run("semantic", **bad)


def test_borders_of_tiles_are_where_tiles_end():
    where = bench._borders(Tiles(16, 0), 256)
    assert bool(where[0, 120:136].all()) and not bool(where[0, :120].any()) and bool(where[130].all())


def test_the_judge_of_maps_agrees_with_itself():
    class Known(_segments.Segmenter):
        def forward(self, image):
            return torch.nn.functional.one_hot(classes[:, ::2, ::2], len(views.CLASSES)).movedim(-1, 1).float()

    classes = views.views(3, torch.arange(4), **VIEWS).classes
    assert _segments.agreement(Known(), torch.zeros(4, 3, 128, 128), classes) == 1.0
    assert _segments.agreement(Known(), torch.zeros(4, 3, 128, 128), (classes + 1) % 32) == 0.0
    assert _segments.Segmenter()(torch.zeros(1, 3, 128, 128)).shape == (1, 32, 64, 64)


@pytest.mark.slow
def test_the_benchmark_has_every_figure(run, random_folder, tmp_path, sprites_folder):
    files = [run("semantic", told="semantic"), run("superres", told="superres")]
    figures = bench.run(quick=True, folder=sprites_folder, files=files, sheet=tmp_path / "sheet.jpg", count=8)
    for name in (
        "super_resolution_psnr", "bicubic_psnr", "autoencoder_psnr", "semantic_accuracy", "tile_border_psnr",
        "pixel_accuracy", "cascade_psnr", "latent_psnr", "super_resolution_kind", "bicubic_kind",
    ):  # fmt: skip
        assert math.isfinite(figures[name]), name
    assert (tmp_path / "sheet.jpg").stat().st_size > 0
