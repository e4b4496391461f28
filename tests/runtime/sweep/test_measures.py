"""Figures of pictures are those of the core, by name."""

import io

import pytest
import torch

from velatura.core import metrics, smoothness
from velatura.runtime.images import to_bytes
from velatura.runtime.sweep.measures import MEASURES, decode, measure


def png(picture):
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(to_bytes(picture.movedim(0, -1))).save(stream, "PNG")
    return stream.getvalue()


def frames(count):
    drawn = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return (drawn * 255).floor() / 255 + 1e-4


def istd(pictures):
    return float(smoothness.istd(smoothness.step_distances(torch.stack([decode(png(each)) for each in pictures]))))


def test_istd_of_a_batch_and_of_strips():
    walk = frames(5)
    batch = measure([png(each) for each in walk], {}, {"istd": {}}, "")
    assert [row["istd"] for row in batch] == [istd(walk)] * 5
    two = torch.cat([torch.cat(list(walk), 2), torch.cat(list(walk.flip(0) / 2), 2)], 1)
    (strip,) = measure([png(two)], {}, {"istd": {"frames": 5, "rows": 2}}, "")
    assert strip["istd_1"] == pytest.approx(istd(walk)) and strip["istd_2"] == pytest.approx(istd(walk.flip(0) / 2))
    with pytest.raises(ValueError, match="80x32 pixels are no 2 rows of 7 frames"):
        measure([png(two)], {}, {"istd": {"frames": 7, "rows": 2}}, "")
    with pytest.raises(ValueError, match="at least 3, got 2"):
        measure([png(each) for each in walk[:2]], {}, {"istd": {}}, "")


def test_likeness_to_a_reference_that_the_settings_name(tmp_path):
    a, b = frames(2)
    (tmp_path / "ref_7.png").write_bytes(png(b))
    wanted = {name: {"reference": "ref_{KSampler.seed}.png"} for name in ("psnr", "ssim", "mse")}
    (row,) = measure([png(a)], {"KSampler.seed": 7}, wanted, str(tmp_path))
    x, y = (decode(png(each))[None] for each in (a, b))
    assert row["psnr"] == float(metrics.psnr(x, y)) and row["ssim"] == float(metrics.ssim(x, y))
    assert row["mse"] == pytest.approx(float((x - y).square().mean()))
    with pytest.raises(ValueError, match=r"there is no reference .*ref_8"):
        measure([png(a)], {"KSampler.seed": 8}, wanted, str(tmp_path))
    (tmp_path / "ref_9.png").write_bytes(png(b[:, :12]))
    with pytest.raises(ValueError, match=r"ref_9\.png's size 16x12, got 16x16"):
        measure([png(a)], {"KSampler.seed": 9}, wanted, str(tmp_path))


def test_accuracy_asks_for_what_the_prompt_names():
    from velatura.demo import captions, sprites

    scenes = sprites.draw(777_000, torch.arange(6))
    prompts = [
        f"{captions.foreground_caption(int(k), int(c))} in a {captions.BACKGROUNDS[int(p)]}"
        for k, c, p in zip(scenes.kind, scenes.colour, scenes.place, strict=True)
    ]
    for picture, prompt in zip(scenes.blend, prompts, strict=True):
        (row,) = measure([png(picture)], {"T.text": prompt}, {"accuracy": {"prompt": "T.text"}}, "")
        assert row == {"accuracy": 1.0, "accuracy_kind": 1.0, "accuracy_colour": 1.0, "accuracy_place": 1.0}
    (half,) = measure([png(scenes.blend[0])], {"T.text": "a red thing"}, {"accuracy": {"prompt": "T.text"}}, "")
    assert set(half) == {"accuracy", "accuracy_colour"}
    with pytest.raises(ValueError, match="names no kind, colour or background"):
        measure([png(scenes.blend[0])], {"T.text": "a photograph"}, {"accuracy": {"prompt": "T.text"}}, "")


def test_what_is_no_picture_is_said():
    with pytest.raises(ValueError, match="a picture cannot be read"):
        measure([b"<html>"], {}, {"istd": {}}, "")


def test_every_measure_says_what_it_needs():
    assert all(each.about and each.needs <= set(each.options) for each in MEASURES.values())
