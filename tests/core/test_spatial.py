"""Spatial conditions: what the network is told of a map and of a small picture, painted maps, and their files. A
failure means that a model sees another map than the one that was painted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from velatura.core.enlarge import bicubic, ddim_steps, given_of, levels, widened
from velatura.core.layer_patch import FIRST
from velatura.core.palette import classes_of, colours_of, painted
from velatura.core.schedule import NoiseSchedule
from velatura.core.spatial import class_cells, pixel_cells, told
from velatura.core.spatial_file import DIFF, spatial_patch_from

SCHEDULE = NoiseSchedule.scaled_linear()
CODES, NAMES = ["ff0000", "00ff00", "0000ff", "ffffff"], ["rose", "leaf", "sea", "snow"]
COLOURS = colours_of(CODES)
HEADER = {"velatura_told": "classes", "velatura_classes": '[["rose", "FF0000"], ["leaf", "00ff00"]]'}
FACTORS = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2, 8)}
FACTORS |= {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(8, 2)}
FILE = {**FACTORS, DIFF: torch.ones(6, 12, 3, 3)}


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_a_cell_is_told_the_share_of_each_class_in_each_of_its_quarters():
    """Counted pixel by pixel, for cells of 8 pixels."""
    classes = torch.randint(0, 3, (2, 16, 24), generator=torch.Generator().manual_seed(0))
    cells = class_cells(classes, 3, 8)
    assert cells.shape == (2, 12, 2, 3)
    for b, kind, down, right, y, x in ((0, 0, 0, 0, 0, 0), (1, 2, 1, 0, 1, 2), (0, 1, 0, 1, 1, 1), (1, 0, 1, 1, 0, 2)):
        quarter = classes[b, 8 * y + 4 * down :, 8 * x + 4 * right :][:4, :4]
        assert float(cells[b, 4 * kind + 2 * down + right, y, x]) == (quarter == kind).sum() / 16
    torch.testing.assert_close(cells.sum(1), torch.full((2, 2, 3), 4.0))


def test_a_map_that_does_not_divide_or_has_a_class_too_many_is_refused():
    with pytest.raises(ValueError, match="map: expected sides that are multiples of 8, got 20x16"):
        class_cells(torch.zeros(1, 16, 20, dtype=torch.long), 3, 8)
    with pytest.raises(ValueError, match=r"map: expected classes 0 \.\. 2, found 7"):
        class_cells(torch.full((1, 8, 8), 7), 3, 8)
    with pytest.raises(ValueError, match="multiples of 2, got 3x4"):
        pixel_cells(torch.zeros(1, 3, 4, 3))


def test_a_first_convolution_that_is_told_more_is_one_with_more_columns():
    first = torch.nn.Conv2d(4, 6, 3, padding=1)
    columns, x, given = seeded(6, 5, 3, 3), seeded(2, 4, 8, 8), seeded(2, 5, 8, 8)
    with torch.no_grad():
        before = first(x)
        with told(first, columns, given):
            out = first(x)
        wide = F.conv2d(torch.cat([x, given], 1), torch.cat([first.weight, columns], 1), first.bias, padding=1)
        torch.testing.assert_close(out, wide, atol=1e-5, rtol=1e-5)
        with told(first, torch.zeros_like(columns), given):
            assert torch.equal(first(x), before)  # zero columns: the model that was there
        assert torch.equal(first(x), before)


def test_a_painted_map_is_read_as_it_was_painted_also_after_a_jpeg_or_a_soft_brush():
    classes = torch.zeros(1, 64, 64, dtype=torch.long)
    classes[:, 20:40, 10:50], classes[:, 30:60, 30:60] = 1, 2
    picture = painted(classes, COLOURS)
    assert torch.equal(classes_of(picture, COLOURS, NAMES), classes)
    noisy = (picture + 0.015 * torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    assert torch.equal(classes_of(noisy, COLOURS, NAMES), classes)
    soft = classes_of(F.avg_pool2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), 3, stride=1), COLOURS, NAMES)
    assert int((soft != classes).sum()) < 200  # along the edges alone
    assert set(soft.unique().tolist()) == {0, 1, 2}  # red beside green makes no third class


def test_a_colour_of_no_class_is_named_with_the_nearest_and_how_much_of_it_there_is():
    picture = painted(torch.zeros(1, 64, 64, dtype=torch.long), COLOURS)
    picture[:, :, :16] = torch.tensor([0.0, 160 / 255, 40 / 255]).view(3, 1, 1)
    with pytest.raises(ValueError, match=r"1 of its colours is no class's: #00a028 \(25.0% of it, nearest is “leaf”"):
        classes_of(picture, COLOURS, NAMES)


def test_the_small_picture_is_told_twice_and_made_whole_first():
    small = torch.rand(1, 3, 9, 30, generator=torch.Generator().manual_seed(1))
    wide = widened(small, 10)
    assert wide.shape == (1, 3, 10, 30) and torch.equal(wide[:, :, :9], small)
    assert torch.equal(wide[:, :, 9], small[:, :, 8]) and widened(small, 32).shape == (1, 3, 32, 32)
    latent = seeded(1, 4, 5, 15)
    given = given_of(wide, latent)
    assert given.shape == (1, 16, 5, 15) and torch.equal(given[:, :4], latent)
    assert torch.equal(F.pixel_shuffle(given[:, 4:], 2), wide * 2 - 1)
    assert bicubic(small, 4).shape == (1, 3, 36, 120) and float(bicubic(small, 4).min()) >= 0


def test_the_levels_fall_from_the_share_that_is_denoised_to_nothing():
    whole, part = levels(SCHEDULE, 10, 1.0), levels(SCHEDULE, 4, 0.25)
    assert len(whole) == 11 and float(whole[0]) == pytest.approx(float(SCHEDULE.sigma(torch.tensor(999))))
    assert float(part[0]) == pytest.approx(float(SCHEDULE.sigma(torch.tensor(249)))) and float(part[-1]) == 0
    assert (whole.diff() < 0).all() and (part.diff() < 0).all()
    with pytest.raises(ValueError, match="denoise: expected more than 0"):
        levels(SCHEDULE, 4, 0.0)


def test_ddim_in_sigma_space_is_exact_for_one_clean_picture():
    """Where the model knows the answer, every path ends in it; half-way the noise has shrunk as the level did."""
    clean, noise, sigmas = seeded(1, 4, 8, 8), seeded(1, 4, 8, 9)[..., :8], levels(SCHEDULE, 5, 1.0)
    seen = []
    out = ddim_steps(
        SCHEDULE, lambda x, s: clean, clean + sigmas[0] * noise, sigmas, lambda: noise, lambda i, x_0: seen.append(i)
    )
    torch.testing.assert_close(out, clean, atol=1e-4, rtol=1e-4)
    half = ddim_steps(
        SCHEDULE, lambda x, s: clean, clean + sigmas[0] * noise, sigmas[:3], lambda: noise, lambda i, x_0: None
    )
    torch.testing.assert_close(half, clean + sigmas[2] * noise, atol=1e-4, rtol=1e-4)
    assert seen == [0, 1, 2, 3, 4]


def test_a_file_says_what_it_is_told():
    patch = spatial_patch_from(FILE, HEADER)
    assert patch.classes == {"rose": "ff0000", "leaf": "00ff00"} and patch.channels() == 12
    assert set(patch.patch.low) == {"mid_block_attentions_0_proj_in"} and set(patch.patch.weights) == {FIRST}
    assert spatial_patch_from(FILE, patch.header()).classes == patch.classes


@pytest.mark.parametrize(
    ("tensors", "header", "said"),
    [
        (FILE, {}, "expected a file of a model that is told"),
        (FACTORS, HEADER, "expected a file of a model that is told"),
        (FILE, {**HEADER, "velatura_classes": "[["}, "header is damaged"),
        (FILE, {**HEADER, "velatura_classes": '[["a", "red"]]'}, "one colour each"),
        (FILE, {**HEADER, "velatura_classes": '[["a", "ff0000"], ["b", "ff0000"]]'}, "one colour each"),
        (FILE, {"velatura_told": "classes"}, "its classes, size or scale cannot be"),
        (FILE, {**HEADER, "velatura_size": "big"}, "header is damaged"),
        ({**FILE, "odd": torch.ones(1)}, HEADER, "odd"),
    ],
)
def test_another_file_is_refused_with_the_reason(tensors, header, said):
    with pytest.raises(ValueError, match=said):
        spatial_patch_from(tensors, header)
