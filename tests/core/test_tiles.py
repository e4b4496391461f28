"""Tiles that are joined at every step. A failure means seams, or cells that nobody computes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from velatura.core.tiles import Tiles, tiled


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@given(st.integers(2, 40), st.data())
def test_tiles_cover_every_cell_and_share_enough(side, data):
    overlap, length = data.draw(st.integers(0, side - 1)), data.draw(st.integers(1, 200))
    tiles = Tiles(side, overlap)
    starts = tiles.starts(length)
    if length <= side:
        assert starts == [0]
        return
    assert starts[0] == 0 and starts[-1] + side == length
    steps = [b - a for a, b in pairwise(starts)]
    assert all(0 < step <= side - overlap for step in steps)
    count = len(starts) - 1  # one tile fewer would not share enough
    assert count == 1 or (length - side) / (count - 1) > side - overlap


def test_the_weights_rise_over_the_overlap_and_no_cell_has_none():
    weight = Tiles(8, 4).weight(8, 8)
    torch.testing.assert_close(
        weight[3], torch.tensor([0.125, 0.375, 0.625, 0.875, 0.875, 0.625, 0.375, 0.125]) * 0.875
    )
    assert (Tiles(8, 0).weight(8, 8) == 1).all() and (weight > 0).all()


def test_what_looks_at_one_cell_is_the_same_in_tiles():
    x = seeded(2, 3, 21, 34)
    out = tiled(lambda part, window: part.square() + 1, x, Tiles(8, 3))
    torch.testing.assert_close(out, x.square() + 1)


def test_a_tile_is_told_where_it_lies():
    x, given = seeded(1, 2, 12, 20), seeded(1, 2, 12, 20)
    torch.testing.assert_close(tiled(lambda part, w: part * given[(..., *w)], x, Tiles(6, 2)), x * given)


def test_a_convolution_differs_near_borders_only_and_less_with_more_overlap():
    """Away from tiles' borders the result is the whole one's; blending leaves less of the error than cutting does."""
    x, kernel = seeded(1, 1, 40, 40), seeded(1, 1, 5, 5)

    def convolve(part, window=None):
        return F.conv2d(part, kernel, padding=2)

    whole = convolve(x)
    errors = [(tiled(convolve, x, Tiles(16, overlap)) - whole).square().mean() for overlap in (0, 4, 8)]
    assert errors[0] > errors[1] > errors[2] > 0
    cut = tiled(convolve, x, Tiles(20, 0)) - whole
    assert (cut[..., :18, :18] == 0).all() and (cut[..., 18:22, :].abs() > 1e-3).any()


def test_one_tile_is_the_network_itself():
    calls = []
    x = seeded(1, 2, 6, 8)
    assert tiled(lambda part, w: calls.append(w) or part, x, Tiles(8, 4)) is x
    assert calls == [(slice(0, 6), slice(0, 8))]


@pytest.mark.parametrize(
    ("side", "overlap", "said"), [(1, 0, "tile: expected at least 2"), (8, 8, "overlap: expected")]
)
def test_impossible_tiles_are_refused(side, overlap, said):
    with pytest.raises(ValueError, match=said):
        Tiles(side, overlap)
