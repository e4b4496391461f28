"""The world is what its captions, masks and points say, and the same for a seed however it is drawn."""

import pytest
import torch

from velatura.demo import captions, sprites
from velatura.demo.backgrounds import PLACES
from velatura.demo.objects import OBJECTS, PALETTE

PICTURES = ("foreground", "lit_foreground", "background", "shade", "blend", "points", "semantic")


@pytest.fixture(scope="module")
def scenes() -> sprites.Scenes:
    return sprites.draw(5, range(96), 64)


def test_the_world_has_what_its_words_name():
    assert len(OBJECTS) == len(captions.KINDS) >= 12
    assert len(PALETTE) == len(captions.COLOURS) == 8
    assert len(PLACES) == len(captions.BACKGROUNDS) >= 10


def test_a_scene_does_not_depend_on_the_batch_it_is_drawn_in(scenes):
    alone = sprites.draw(5, [41], 64)
    mixed = sprites.draw(5, [95, 41, 7], 64)
    for name in PICTURES:
        assert torch.equal(getattr(alone, name)[0], getattr(scenes, name)[41]), name
        assert torch.equal(getattr(mixed, name)[1], getattr(scenes, name)[41]), name
    assert alone.captions[0] == mixed.captions[1] == scenes.captions[41]


def test_another_seed_is_another_world(scenes):
    other = sprites.draw(6, range(96), 64)
    assert (other.kind == scenes.kind).float().mean() < 0.3
    assert not torch.equal(other.blend, scenes.blend)


def test_pinned_attributes_leave_the_rest_of_the_scene(scenes):
    pinned = sprites.draw(5, range(96), 64, kind=3, colour=2)
    assert pinned.kind.unique().tolist() == [3] and pinned.colour.unique().tolist() == [2]
    assert torch.equal(pinned.background, scenes.background) and torch.equal(pinned.side, scenes.side)


def test_the_blend_is_its_layers(scenes):
    rgb, alpha = scenes.lit_foreground[:, :3], scenes.lit_foreground[:, 3:]
    over = alpha * rgb + (1 - alpha) * (scenes.background * scenes.shade).clamp(0, 1)
    assert torch.allclose(scenes.blend, over, atol=1e-5)
    far = (scenes.shade - 1).abs().amax(1, keepdim=True) < 1e-4
    untouched = (far & (alpha == 0)).expand_as(scenes.blend)
    assert untouched.any() and torch.allclose(scenes.blend[untouched], scenes.background[untouched], atol=1e-4)


def test_both_foregrounds_share_one_alpha_and_stay_in_range(scenes):
    assert torch.equal(scenes.foreground[:, 3], scenes.lit_foreground[:, 3])
    for name in ("foreground", "lit_foreground", "background", "blend"):
        picture = getattr(scenes, name)
        assert picture.isfinite().all() and picture.min() >= 0 and picture.max() <= 1, name


def test_an_object_takes_the_light_of_its_place_and_a_flame_keeps_its_own():
    heart, flame = captions.KINDS.index("heart"), captions.KINDS.index("flame")
    night, sunset = (captions.BACKGROUNDS.index(name) for name in ("cold night", "warm sunset"))

    def warmth(kind: int, place: int) -> float:
        scene = sprites.draw(1, range(8), 64, kind=kind, colour=7, place=place)
        inside = scene.lit_foreground[:, 3] > 0.9
        return float((scene.lit_foreground[:, 0][inside] / scene.lit_foreground[:, 2][inside].clamp(0.05)).mean())

    assert warmth(heart, sunset) > 1.5 * warmth(heart, night)
    assert warmth(flame, sunset) == pytest.approx(warmth(flame, night))


def test_the_light_comes_from_the_side_the_caption_says():
    heart = captions.KINDS.index("heart")
    left = sprites.draw(1, range(16), 64, kind=heart, place=0, side=0)
    right = sprites.draw(1, range(16), 64, kind=heart, place=0, side=1)
    assert torch.equal(left.background.flip(-1).round(decimals=4), right.background.round(decimals=4))
    columns = torch.arange(64.0)

    def brightest(scene: sprites.Scenes) -> torch.Tensor:
        weight = scene.lit_foreground[:, 3] * (scene.lit_foreground[:, :3] - scene.foreground[:, :3] * 0.8).mean(
            1
        ).clamp(0)
        return (weight.sum(1) * columns).sum(1) / weight.sum((1, 2)).clamp(1e-6)

    assert (brightest(left) < brightest(right)).float().mean() > 0.9


def test_the_padded_colour_continues_beyond_the_silhouette():
    heart = sprites.draw(1, range(8), 64, kind=captions.KINDS.index("heart"), colour=0)
    outside = heart.foreground[:, 3] == 0
    red, green = heart.foreground[:, 0][outside], heart.foreground[:, 1][outside]
    assert (red > green).all()


def test_points_lie_inside_the_object():
    for kind, name in enumerate(captions.KINDS):
        scene = sprites.draw(2, range(12), 128, kind=kind)
        at = scene.points.round().long().clamp(0, 127)
        alpha = torch.stack([a[p[:, 1], p[:, 0]] for a, p in zip(scene.foreground[:, 3], at, strict=True)])
        assert (alpha > 0.1).all(), (name, alpha.min(0).values)


def test_every_kind_fills_a_fair_part_of_the_picture_and_leaves_its_border():
    for kind, name in enumerate(captions.KINDS):
        alpha = sprites.draw(3, range(12), 64, kind=kind).foreground[:, 3]
        assert ((alpha > 0.1).float().mean((1, 2)) > 0.03).all(), name
        edge = torch.cat([alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]], 1)
        assert (edge < 0.1).all(), name


def test_a_smaller_picture_is_the_same_scene():
    large, small = sprites.draw(4, range(16), 128), sprites.draw(4, range(16), 64)
    assert large.captions == small.captions
    shrunk = torch.nn.functional.avg_pool2d(large.blend, 2)
    assert (shrunk - small.blend).abs().mean() < 0.01
    assert torch.allclose(large.points / 2, small.points, atol=1e-4)


def test_every_caption_word_is_in_the_vocabulary_and_captions_are_exact(scenes):
    every = scenes.captions + scenes.foreground_captions + scenes.background_captions
    words = {word for caption in every for word in caption.replace(",", " ,").split()}
    assert words <= set(captions.WORDS)
    for k, c, p, text in zip(scenes.kind, scenes.colour, scenes.place, scenes.captions, strict=True):
        assert captions.KINDS[k] in text and captions.COLOURS[c] in text and captions.BACKGROUNDS[p] in text


@pytest.mark.parametrize("bad", [{"kind": 99}, {"colour": -1}, {"size": 4}, {"indices": []}])
def test_impossible_requests_are_refused(bad):
    with pytest.raises(ValueError, match=r"expected"):
        sprites.draw(0, bad.pop("indices", [0]), **bad)
