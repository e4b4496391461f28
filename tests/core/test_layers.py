"""Layers: what they look like together."""

import pytest
import torch

from velatura.core.alpha import over
from velatura.core.layers import BLENDS, Layer, Layers


def layer(seed, h=6, w=5, batch=1, **more):
    drawn = torch.rand(batch, 4, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Layer(f"layer {seed}", drawn[:, :3], drawn[:, 3:], **more)


def stack(*layers, size=(6, 5)):
    made = Layers(*size)
    for each in layers:
        made = made.added(each)
    return made


def test_normal_layers_are_laid_over_one_another():
    a, b, c = (layer(k) for k in range(3))
    expected = over(c.colour, c.alpha, *over(b.colour, b.alpha, a.colour, a.alpha))
    torch.testing.assert_close(stack(a, b, c).flatten(), expected)


def test_opacity_is_alpha():
    a, b = layer(0), layer(1, opacity=0.3)
    torch.testing.assert_close(stack(a, b).flatten(), over(b.colour, b.alpha * 0.3, a.colour, a.alpha))
    assert not stack(layer(0, opacity=0.0)).flatten()[1].any()


@pytest.mark.parametrize("blend", BLENDS)
def test_a_blend_is_its_formula_where_all_is_opaque_and_nothing_where_nothing_lies_below(blend):
    a, b = layer(0), layer(1)
    solid = [Layer(each.name, each.colour, torch.ones_like(each.alpha)) for each in (a, b)]
    above = Layer("b", b.colour, torch.ones_like(b.alpha), blend=blend)
    torch.testing.assert_close(stack(solid[0], above).flatten()[0], BLENDS[blend](a.colour, b.colour))
    alone = stack(Layer("b", b.colour, b.alpha, blend=blend)).flatten()
    torch.testing.assert_close(alone, (b.colour, b.alpha))


@pytest.mark.parametrize(("x", "y"), [(0, 0), (2, 1), (-3, -2), (4, 5), (50, 0), (0, -50)])
def test_a_layer_lies_where_it_is_put_and_is_cut_at_the_edges(x, y):
    made = stack(layer(0, x=x, y=y)).flatten()[1][0, 0]
    there = layer(0).alpha[0, 0]
    for row in range(6):
        for column in range(5):
            inside = 0 <= row - y < 6 and 0 <= column - x < 5
            assert made[row, column] == (there[row - y, column - x] if inside else 0)


def test_layers_are_added_and_taken_away_without_touching_the_others():
    a, b, c = (layer(k) for k in range(3))
    made = stack(a, c)
    assert made.added(b, at=1).layers == (a, b, c) and made.layers == (a, c)
    assert made.added(b, at=1).without(0).layers == (b, c)


def test_one_background_serves_a_batch_and_other_batches_are_refused():
    made = stack(layer(0), layer(1, batch=3))
    assert made.batch() == 3 and made.flatten()[0].shape == (3, 3, 6, 5)
    torch.testing.assert_close(made.flatten()[0][1:2], stack(layer(0), Layer("x", layer(1, batch=3).colour[1:2], layer(1, batch=3).alpha[1:2])).flatten()[0])  # fmt: skip  # noqa: E501
    with pytest.raises(ValueError, match="layer 'layer 2': expected a batch of 3"):
        made.added(layer(2, batch=2))


def test_nothing_is_transparent():
    colour, alpha = Layers(3, 4).flatten()
    assert colour.shape == (1, 3, 3, 4) and not alpha.any()


@pytest.mark.parametrize(("given", "message"), [({"opacity": 1.5}, "opacity: "), ({"blend": "burn"}, "blend: ")])
def test_impossible_layers_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        layer(0, **given)
