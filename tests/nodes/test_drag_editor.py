"""The drag editor's node, as a program without a browser meets it."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from velatura.core.points import Points
from velatura.hosts import running
from velatura.hosts.folders import Folders, using
from velatura.nodes.drag_editor import VelaturaDragEditor

DRAG = '{"points": [{"from": [2, 1], "to": [6, 3]}], "size": [8, 6]}'
PAINTED = json.dumps(json.loads(DRAG) | {"mask": [{"paint": True, "size": 2, "path": [[0, 0]]}]})


@pytest.fixture(autouse=True)
def folders(tmp_path):
    with using(Folders(temp=tmp_path / "temp")) as chosen:
        yield chosen


def run(drag=DRAG, image=None, mask=None):
    image = torch.rand(2, 6, 8, 3, generator=torch.Generator().manual_seed(0)) if image is None else image
    return VelaturaDragEditor.execute(image, drag, mask)


def test_points_and_picture_pass_and_all_may_move_where_nothing_is_painted(folders):
    image = torch.rand(2, 6, 8, 3)
    done = run(image=image)
    points, mask, passed = done.args
    assert isinstance(points, Points) and passed is image
    assert points.handles.tolist() == [[2, 1]] and points.targets.tolist() == [[6, 3]]
    assert mask.shape == (2, 6, 8) and bool((mask == 1).all())
    (shown,) = done.ui["velatura_editor"]
    with Image.open(folders.temp / shown["image"]["subfolder"] / shown["image"]["filename"]) as picture:
        assert picture.size == (8, 6)
        assert picture.getpixel((3, 2)) == tuple((image[0, 2, 3] * 255).byte().tolist())


def test_what_is_painted_and_what_is_given_may_move():
    given = torch.zeros(1, 6, 8)
    given[0, 5, 7] = 0.5
    _, mask, _ = run(PAINTED, mask=given).args
    assert mask.shape == (2, 6, 8) and torch.equal(mask[0], mask[1])
    assert mask[0, 0, 0] == mask[0, 0, 1] == mask[0, 1, 0] == 1 and mask[0, 5, 7] == 0.5
    assert mask[0].sum() == 3.5


def test_each_picture_of_a_batch_has_its_own_mask():
    given = torch.zeros(2, 6, 8)
    given[1, 5, 7] = 1
    _, mask, _ = run(mask=given).args
    assert bool((mask[0] == 1).all()), "nothing is painted on the first one"
    assert mask[1].sum() == 1


def test_the_mask_of_a_picture_without_transparency_is_nothing():
    # Load Image gives one of 64x64 then.
    _, mask, _ = run(PAINTED, mask=torch.zeros(1, 64, 64)).args
    assert mask[0].sum() == 3


def test_another_size_of_the_same_picture_scales_all_of_it():
    points, mask, _ = run(PAINTED, torch.zeros(1, 12, 16, 3)).args
    assert points.handles.tolist() == [[4.5, 2.5]] and (points.width, points.height) == (16, 12)
    assert mask.shape == (1, 12, 16) and mask.sum() == 8


@pytest.mark.parametrize(
    "more, message",
    [
        ({"drag": " "}, "drag: nothing is drawn yet; draw an arrow"),
        ({"drag": "arrows"}, "drag: this is no JSON"),
        ({"image": torch.zeros(1, 8, 8, 3)}, "drawn on, 8x6, .* got 8x8"),
        ({"mask": torch.ones(1, 12, 16)}, "mask: expected the image's size 8x6, got 16x12"),
        ({"mask": torch.ones(3, 6, 8)}, "mask: expected 2, as many as pictures, or 1, got 3"),
    ],
)
def test_bad_input_says_what_was_expected(more, message):
    with pytest.raises(ValueError, match=message):
        run(**more)


def test_who_has_drawn_nothing_yet_is_sent_the_picture_to_draw_on(folders):
    told = []
    with running.reporting(lambda total: None, lambda *message: told.append(message)), pytest.raises(ValueError):
        run("")
    ((event, data),) = told
    assert event == "editor" and (folders.temp / data["image"]["subfolder"] / data["image"]["filename"]).is_file()
