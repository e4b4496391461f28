"""Layers in the colours of what lies around them."""

import pytest
import torch

from velatura.core.harmonise import from_axes, harmonised, moments, to_axes, transfer
from velatura.core.layers import Layer, Layers


def picture(seed: int, low: float = 0.3, high: float = 0.7, size: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(1, 3, size, size, generator=generator)


ALL = torch.ones(1, 1, 24, 24)


def test_the_axes_lead_back_to_the_colour():
    colour = picture(0, 0.05, 1.0)
    torch.testing.assert_close(from_axes(to_axes(colour)), colour.double(), rtol=0, atol=1e-9)


def test_grey_has_hardly_any_of_the_colour_axes():
    """Else a transfer between greys would tint them."""
    axes = to_axes(torch.full((1, 3, 2, 2), 0.5))
    assert float(axes[:, 1:].abs().max()) < 0.01 < float(axes[:, :1].abs().min())


def test_the_whole_transfer_takes_the_targets_mean_and_deviation():
    source, target = picture(1, 0.3, 0.6), picture(2, 0.35, 0.7)
    got, wanted = (moments(to_axes(each), ALL) for each in (transfer(source, ALL, target, ALL, 1.0), target))
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-3)


def test_half_of_it_lies_half_way():
    source, target = picture(1), picture(2)
    ends = [to_axes(transfer(source, ALL, target, ALL, amount)) for amount in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(ends[1], (ends[0] + ends[2]) / 2, rtol=0, atol=1e-5)


def scene() -> tuple[Layers, Layer]:
    """A blue canvas, and a grey disc in the middle of a layer that is half outside."""
    canvas = Layers(24, 24).added(Layer("sky", picture(3) * torch.tensor([0.3, 0.5, 1.0]).view(3, 1, 1), ALL))
    return canvas, Layer("disc", picture(4), (picture(5) > 0.5).float()[:, :1] * 0.8, x=12, y=-4)


def test_a_layer_goes_towards_what_lies_behind_it_and_keeps_its_shape_and_place():
    canvas, disc = scene()
    moved = harmonised(canvas, disc, 0.6)
    before, after = ((each.colour * each.alpha).sum((2, 3))[0] / each.alpha.sum() for each in (disc, moved))
    assert float(after[2] / after[0]) > 1.2 * float(before[2] / before[0])
    assert torch.equal(moved.alpha, disc.alpha) and (moved.x, moved.y, moved.name) == (12, -4, "disc")


@pytest.mark.parametrize("case", ["nothing below", "amount 0", "outside", "transparent", "below transparent"])
def test_where_there_is_nothing_to_take_a_layer_stays_as_it_is(case: str):
    canvas, disc = scene()
    amount = 0.0 if case == "amount 0" else 1.0
    if case == "nothing below":
        canvas = Layers(24, 24)
    if case == "outside":
        disc = Layer("disc", disc.colour, disc.alpha, x=100)
    if case == "transparent":
        disc = Layer("disc", disc.colour, disc.alpha * 0)
    if case == "below transparent":
        canvas = Layers(24, 24).added(Layer("sky", picture(3), ALL * 0))
    assert torch.equal(harmonised(canvas, disc, amount).colour, disc.colour)


def test_each_picture_of_a_batch_by_itself():
    canvas, disc = scene()
    two = Layer("two", torch.cat([disc.colour, picture(6)]), disc.alpha.expand(2, -1, -1, -1), x=12, y=-4)
    both = harmonised(canvas, two, 0.5).colour
    torch.testing.assert_close(both[:1], harmonised(canvas, disc, 0.5).colour)


def test_more_than_all_is_refused():
    with pytest.raises(ValueError, match=r"harmonise: expected 0 \.\. 1, got 1\.5"):
        harmonised(*scene(), 1.5)
