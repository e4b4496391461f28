"""Guidance. A failure means a guidance scale means something else than the papers' and the user's."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from velatura.core.guidance import guidance_scale_embedding, guide, guide_omega

NULL, COND = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@given(st.floats(-1, 20))
def test_the_two_conventions_differ_by_one(omega: float) -> None:
    torch.testing.assert_close(guide(NULL, COND, 1 + omega), guide_omega(COND, NULL, omega))


def test_the_ends_are_the_predictions_themselves() -> None:
    torch.testing.assert_close(guide(NULL, COND, 0.0), NULL)
    torch.testing.assert_close(guide(NULL, COND, 1.0), COND)
    torch.testing.assert_close(guide(NULL, COND, 7.5), 7.5 * COND - 6.5 * NULL)


def test_each_sample_may_have_its_own_scale() -> None:
    both = guide(NULL, COND, torch.tensor([2.0, 9.0]))
    torch.testing.assert_close(both[1], guide(NULL, COND, 9.0)[1])


def test_scale_embedding_has_the_released_networks_form() -> None:
    embedding = guidance_scale_embedding(torch.tensor([0.0, 0.0075]), 256)
    assert embedding.shape == (2, 256)
    torch.testing.assert_close(embedding[0], torch.cat([torch.zeros(128), torch.ones(128)]))
    # 1000 omega = 7.5 at frequency 1 and, at the other end, at frequency 1e-4.
    angles = torch.tensor([7.5, 7.5e-4])
    torch.testing.assert_close(embedding[1, [0, 127]], angles.sin())
    torch.testing.assert_close(embedding[1, [128, 255]], angles.cos())
