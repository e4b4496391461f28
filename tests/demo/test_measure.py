"""The measures against values known in advance."""

import math

import pytest
import torch

from velatura.core import metrics
from velatura.demo import classifier, data, measure, sprites


def test_psnr_of_a_known_error():
    a = torch.full((1, 3, 16, 16), 0.5)
    assert metrics.psnr(a, a + 0.1).item() == pytest.approx(20.0, abs=1e-3)


def test_ssim_is_one_for_the_same_picture_and_falls_with_noise():
    a = sprites.draw(0, range(2), 64).blend
    noisy = a + 0.1 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    assert metrics.ssim(a, a).tolist() == pytest.approx([1, 1])
    assert (metrics.ssim(a, noisy) < 0.8).all()


def test_frechet_distance_of_gaussians_in_closed_form():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20000, 4, generator=generator, dtype=torch.float64)
    moved = a * torch.tensor([1.0, 2.0, 1.0, 1.0]) + torch.tensor([3.0, 0, 0, 0])
    assert measure.frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert measure.frechet(a, moved) == pytest.approx(9 + 1, rel=0.03)


def test_the_told_side_is_seen_in_the_light():
    """In nearly all real scenes, hardly ever in mirrored ones; where no caption says a side, there is no share."""
    scenes = sprites.draw(measure.HELD_OUT, range(64), 64)
    assert measure.side_heard(scenes.blend, scenes.captions) > 0.95
    assert measure.side_heard(scenes.blend.flip(3), scenes.captions) < 0.05
    assert math.isnan(measure.side_heard(scenes.blend[:1], ["a red star in a cold night"]))


def test_bare_scenes_are_named_no_object_and_have_no_colour():
    images, kind, colour, _ = measure.real(5, 40, bare=0.5)
    bare = data.is_bare(5, torch.arange(40), 0.5)
    assert torch.equal(kind == classifier.NO_OBJECT, bare) and torch.equal(colour == -100, bare)
    assert 0 < bare.sum() < 40
    assert torch.equal(images[bare], sprites.draw(5, range(40)).background[bare])


def test_the_latents_examples_go_through_every_scene_once_an_epoch():
    latents, ids = torch.arange(10.0).view(10, 1, 1, 1).half(), torch.arange(10).view(10, 1)
    examples = data.shuffled(latents, ids, 2.0, seed=1)
    drawn = torch.cat([examples(at, 5)[1][:, 0] for at in (0, 5)])
    assert sorted(drawn.tolist()) == list(range(10)) and drawn.tolist() != list(range(10))
    values, rows = examples(3, 4)
    assert torch.equal(values.view(-1), 2.0 * rows.view(-1)) and torch.equal(rows[:, 0], drawn[3:7])
