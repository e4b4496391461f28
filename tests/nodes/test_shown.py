"""What nodes show on themselves: files that the browser can ask for, and numbers as they come."""

import itertools
import json

import pytest
import torch
from PIL import Image

from velatura.hosts import running
from velatura.hosts.folders import Folders, using
from velatura.nodes import _live
from velatura.nodes._live import Curves
from velatura.nodes._shown import PAIRS, comparison, film
from velatura.nodes.layers import VelaturaCompositeLayers
from velatura.nodes.measure import VelaturaCompareImages


@pytest.fixture
def folders(tmp_path):
    with using(Folders(temp=tmp_path / "temp")) as chosen:
        yield chosen


def opened(folders, file):
    assert file["type"] == "temp"
    with Image.open(folders.temp / file["subfolder"] / file["filename"]) as picture:
        return torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).reshape(
            picture.height, picture.width, 3
        )


def test_a_comparison_keeps_every_pixel(folders):
    # A lossy file would show differences that are not there.
    a, b = torch.rand(2, 8, 6, 3), torch.rand(1, 8, 6, 3)
    (shown,) = comparison(a, b, ("A", "B"))["velatura_compare"]
    assert (len(shown["a"]), len(shown["b"]), shown["names"]) == (2, 1, ["A", "B"])
    assert torch.equal(opened(folders, shown["a"][1]), (a[1] * 255).byte())
    assert torch.equal(opened(folders, shown["b"][0]), (b[0] * 255).byte())
    names = [file["filename"] for file in shown["a"] + shown["b"]]
    assert len(set(names)) == 3, "files of one run replace each other"


def test_values_outside_of_the_range_are_cut_off_and_not_wrapped_around(folders):
    bright = torch.tensor([-0.5, 1.5, 0.5]).expand(1, 4, 4, 3)
    (shown,) = comparison(bright, bright, ("A", "B"))["velatura_compare"]
    assert opened(folders, shown["a"][0])[0, 0].tolist() == [0, 255, 127]


def test_a_batch_without_end_does_not_fill_the_disk(folders):
    (shown,) = comparison(torch.zeros(PAIRS + 9, 4, 4, 3), torch.zeros(1, 4, 4, 3), ("A", "B"))["velatura_compare"]
    assert len(shown["a"]) == PAIRS


def test_a_film_has_all_its_frames_in_order(folders):
    grey = torch.linspace(0, 1, 5).reshape(5, 1, 1, 1).expand(5, 16, 16, 3)
    (shown,) = film(grey)["velatura_frames"]
    levels = [float(opened(folders, file).float().mean()) for file in shown["frames"]]
    assert levels == sorted(levels) and len(levels) == 5
    assert sorted(file["filename"] for file in shown["frames"]) == [file["filename"] for file in shown["frames"]]


def test_comparing_shows_the_pictures_themselves(folders):
    ui = VelaturaCompareImages.execute(torch.zeros(1, 16, 16, 3), torch.ones(1, 16, 16, 3), 4.0).ui
    (shown,) = ui["velatura_compare"]
    assert opened(folders, shown["a"][0]).max() == 0 and opened(folders, shown["b"][0]).min() == 255


def test_a_stack_shows_each_layer_for_itself_with_its_alpha(folders):
    below = VelaturaCompositeLayers.execute(torch.full((2, 4, 6, 3), 0.2), name="ground").args[0]
    leaf, mask = torch.ones(1, 2, 2, 3), torch.tensor([[[0.0, 1.0], [1.0, 1.0]]])
    done = VelaturaCompositeLayers.execute(leaf, below, mask, "leaf", 0.5, 3, -1, "multiply")
    (shown,) = done.ui["velatura_layers"]
    assert (shown["width"], shown["height"]) == (6, 4)
    ground, top = shown["layers"]
    assert (ground["name"], ground["blend"], ground["opacity"]) == ("ground", "normal", 1.0)
    assert [top[name] for name in ("name", "x", "y", "opacity", "blend")] == ["leaf", 3, -1, 0.5, "multiply"]
    with Image.open(folders.temp / top["image"]["subfolder"] / top["image"]["filename"]) as picture:
        assert picture.mode == "RGBA" and picture.size == (2, 2)
        assert [picture.getpixel((x, y))[3] for y in range(2) for x in range(2)] == [255, 0, 0, 0]


class Heard:
    """A browser that draws what it is told."""

    def __init__(self):
        self.lines, self.messages = {}, 0

    def __call__(self, event, data):
        assert event == "curves"
        data = json.loads(json.dumps(data, allow_nan=False))
        self.messages += 1
        if data["anew"]:
            self.lines = {}
        for line in data["lines"]:
            self.lines.setdefault(line["name"], []).extend(line["points"])


def watched(monkeypatch, pause=0.0):
    monkeypatch.setattr(_live, "PAUSE", pause)
    return Heard()


def test_what_is_told_on_the_way_adds_up_to_what_stays(monkeypatch):
    heard, curves = watched(monkeypatch, -1), Curves("step")
    with running.reporting(lambda total: None, heard):
        for step in range(50):
            curves.add(step, {"loss": 1 / (step + 1), "norm": float("nan") if step % 2 else step})
    (kept,) = curves.shown()["velatura_curves"]
    assert heard.lines == {line["name"]: line["points"] for line in kept["lines"]}
    assert heard.lines["norm"] == [[step, step] for step in range(0, 50, 2)], "there is no place for NaN"


def test_a_long_run_is_thinned_evenly_and_the_browser_with_it(monkeypatch):
    monkeypatch.setattr(_live, "POINTS", 100)
    heard, curves = watched(monkeypatch, -1), Curves("step")
    with running.reporting(lambda total: None, heard):
        for step in range(1000):
            curves.add(step, {"loss": float(step)})
    (kept,) = curves.shown()["velatura_curves"]
    points = kept["lines"][0]["points"]
    assert 50 <= len(points) <= 100 and heard.lines["loss"] == points
    assert len({b[0] - a[0] for a, b in itertools.pairwise(points)}) == 1


def test_a_quick_run_does_not_flood_the_line(monkeypatch):
    heard, curves = watched(monkeypatch, 1e9), Curves("step")
    with running.reporting(lambda total: None, heard):
        for step in range(1000):
            curves.add(step, {"loss": 1.0})
    assert heard.messages == 1


def test_nobody_need_listen():
    Curves("step").add(0, {"loss": 1.0})
