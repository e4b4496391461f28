"""Moving least squares, the cut-out that is moved by it, and the outline found in a broad mask."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from velatura.core.matting import snapped
from velatura.core.warp import move, moving_least_squares, pixel_grid, sample_at, warp

places = st.lists(
    st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=5, unique_by=lambda p: (p[0] // 5, p[1] // 5)
)


@given(places, st.floats(-3, 3), st.floats(0.5, 2), st.tuples(st.floats(-20, 20), st.floats(-20, 20)))
@settings(deadline=None, max_examples=50)
def test_a_similarity_is_reproduced_everywhere(points, turn, size, shift):
    """Two or more handles that turn, scale and shift together say so for the whole plane, not only for themselves."""
    p = torch.tensor(points, dtype=torch.float64)
    if len(p) == 1:
        turn, size = 0.0, 1.0  # one handle says no more than a step
    a = torch.tensor(complex(size * math.cos(turn), size * math.sin(turn)), dtype=torch.complex128)

    def similarity(x):
        return torch.view_as_real(a * torch.view_as_complex(x)) + torch.tensor(shift, dtype=torch.float64)

    at = torch.tensor([[3.0, 7.0], [50.0, 50.0], [99.0, 0.5]], dtype=torch.float64)
    found = moving_least_squares(at, p, similarity(p))
    assert torch.allclose(found, similarity(at), atol=1e-5)


@given(places, st.integers(0, 1000))
@settings(deadline=None, max_examples=50)
def test_handles_go_exactly_to_their_targets(points, seed):
    p = torch.tensor(points, dtype=torch.float64)
    q = p + 10 * torch.randn(p.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for rigid in (False, True):
        assert torch.allclose(moving_least_squares(p, p, q, rigid=rigid), q, atol=1e-3)


def test_rigid_keeps_sizes():
    p = torch.tensor([[0.0, 0.0], [10.0, 0.0]], dtype=torch.float64)
    far = torch.tensor([[500.0, 500.0], [501.0, 500.0]], dtype=torch.float64)
    a, b = moving_least_squares(far, p, 2 * p, rigid=True)
    assert float((a - b).norm()) == pytest.approx(1, abs=1e-2)


def test_sampling_at_pixel_centres_gives_the_pixels():
    values = torch.rand(2, 3, 5, 7)
    assert torch.allclose(sample_at(values, pixel_grid(5, 7)), values, atol=1e-5)
    # A map of half the size: the point between four pixels of the picture is the centre of one of the map's.
    small = torch.rand(1, 3, 4, 4)
    assert torch.allclose(sample_at(small, torch.tensor([[2.5, 4.5]]), (8, 8))[0, :, 0], small[0, :, 2, 1], atol=1e-6)


def test_a_moved_cut_out_is_the_picture_elsewhere():
    """Whole pixels move exactly; what is left behind is marked, and filled from around it."""
    image = torch.full((1, 3, 32, 32), 0.2)
    image[..., 8:14, 8:14] = torch.tensor([0.9, 0.5, 0.1]).view(3, 1, 1)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:14, 8:14] = 1
    handle = torch.tensor([[10.0, 10.0]])
    moved = move(image, mask, handle, handle + torch.tensor([8.0, 4.0]))
    wanted = torch.full((1, 3, 32, 32), 0.2)
    wanted[..., 12:18, 16:22] = image[..., 8:14, 8:14]
    assert torch.allclose(moved.picture, wanted, atol=1e-3)
    assert float(moved.left[..., 8:12, 8:14].min()) == 1 and float(moved.left[..., 20:, :].max()) == 0
    colour, alpha = warp(image, mask, handle, handle)
    assert torch.equal(alpha, mask) and torch.allclose(colour * mask, image * mask)


def test_a_broad_mask_snaps_to_the_thing():
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    disc = ((x - 30) ** 2 + (y - 34) ** 2).sqrt()
    thing = (disc < 12).float()[None, None]
    image = torch.lerp(0.3 + 0.2 * (x / 64).expand(1, 3, -1, -1), torch.tensor([0.9, 0.1, 0.2]).view(3, 1, 1), thing)
    image[..., 32:36, 28:32] = image[..., :1, 28:32]  # a spot in it as the background is
    found = snapped(image, (disc < 19).float()[None, None])
    assert float((found - thing).abs().mean()) < 0.01
    assert float(found[..., 33:35, 29:31].min()) > 0.9, "what the thing encloses is part of it"


def test_a_mask_inside_the_thing_is_taken_as_it_is():
    """Its surroundings are the thing itself: nothing can be told apart."""
    image = torch.full((1, 3, 40, 40), 0.5)
    mask = torch.zeros(1, 1, 40, 40)
    mask[..., 10:30, 10:30] = 1
    assert torch.equal(snapped(image, mask), mask)
    assert torch.equal(snapped(image, torch.ones(1, 1, 40, 40)), torch.ones(1, 1, 40, 40))
