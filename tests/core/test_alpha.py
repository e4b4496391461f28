"""Alpha arithmetic against what is known in closed form."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from velatura.core import alpha as al


def rgba(seed, *size):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(1, 4, *size, generator=generator, dtype=torch.float64)
    return drawn[:, :3], drawn[:, 3:]


@given(st.integers(0, 1000))
def test_premultiplying_is_undone_and_over_is_associative(seed):
    """Layers may be flattened in any grouping: a stack of three is the same from the bottom or from the top."""
    (a, aa), (b, ba), (c, ca) = (rgba(seed + k, 3, 5) for k in range(3))
    torch.testing.assert_close(al.unpremultiply(al.premultiply(a, aa), aa), a)
    upper = al.over(*al.over(a, aa, b, ba), c, ca)
    lower = al.over(a, aa, *al.over(b, ba, c, ca))
    torch.testing.assert_close(upper, lower)


def test_over_something_opaque_is_the_usual_blend():
    (a, aa), (b, _) = rgba(0, 4, 4), rgba(1, 4, 4)
    colour, total = al.over(a, aa, b)
    torch.testing.assert_close(colour, a * aa + b * (1 - aa))
    assert bool((total == 1).all())


def test_nothing_over_nothing_is_nothing_and_not_nan():
    colour, total = al.over(*(torch.ones(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)) * 2)
    assert not colour.any() and not total.any()


@pytest.mark.parametrize(("full", "size"), [((12, 7), (10, 5)), ((5, 5), (4, 1)), ((9, 6), (3, 2))])
def test_shrinking_keeps_the_mean_and_a_whole_ratio_is_pooling(full, size):
    image = torch.rand(2, 3, *full, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    small = al.shrink(image, *size)
    torch.testing.assert_close(small.mean((2, 3)), image.mean((2, 3)))
    if full == (9, 6):
        torch.testing.assert_close(small, torch.nn.functional.avg_pool2d(image, 3))


def test_padding_keeps_opaque_colours_and_spreads_them():
    """A box, half red and half blue: the empty sides must turn red and blue, with none of the black that lies under
    alpha 0: that is the grey fringe."""
    colour, alpha = torch.zeros(1, 3, 48, 64), torch.zeros(1, 1, 48, 64)
    alpha[:, :, 16:32, 16:48] = 1
    colour[:, 0, 16:32, 16:32], colour[:, 2, 16:32, 32:48] = 1, 1
    padded = al.pad_rgb(colour, alpha)
    inside = alpha.expand_as(colour) > 0
    assert torch.equal(padded[inside], colour[inside])
    torch.testing.assert_close(padded.sum(1), torch.ones(1, 48, 64), atol=1e-4, rtol=0)  # red + blue, never black
    assert padded[0, 0, 24, 13] > 0.9 and padded[0, 2, 24, 50] > 0.9
    assert padded[0, 0, 24, 2] > 0.6 and padded[0, 2, 24, 61] > 0.6


def test_the_colour_under_alpha_0_has_no_say():
    colour, alpha = rgba(3, 20, 20)
    alpha = (alpha > 0.7).double()
    other = torch.where(alpha > 0, colour, 1 - colour)
    torch.testing.assert_close(al.pad_rgb(colour, alpha), al.pad_rgb(other, alpha))


def test_soft_pixels_are_mixed_or_kept():
    colour, alpha = rgba(4, 16, 16)
    kept = al.pad_rgb(colour, alpha, keep_soft=True)
    assert torch.equal(kept, colour) and not torch.allclose(al.pad_rgb(colour, alpha), colour, atol=1e-2)


def test_a_picture_without_anything_in_it_pads_to_black():
    padded = al.pad_rgb(torch.rand(1, 3, 9, 9), torch.zeros(1, 1, 9, 9))
    assert torch.equal(padded, torch.zeros_like(padded))


@given(st.integers(1, 40), st.integers(1, 40))
def test_any_size_pads(height, width):
    colour, alpha = rgba(5, height, width)
    padded = al.pad_rgb(colour, (alpha > 0.5).double())
    assert padded.shape == colour.shape and bool(((padded >= -1e-9) & (padded <= 1 + 1e-9)).all())


def test_an_alpha_of_another_size_is_refused():
    with pytest.raises(ValueError, match="alpha: expected"):
        al.pad_rgb(torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 9))
