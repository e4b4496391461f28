"""ISTD is what the paper's appendix says, computed here another way; and it measures what its name says."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from velatura.core import smoothness


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(a: np.ndarray, b: np.ndarray, eta: float) -> np.ndarray:
    """Shoemake's formula (Smooth Diffusion, Eq. 18)."""
    angle = math.acos(float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum())))
    return math.sin((1 - eta) * angle) / math.sin(angle) * a + math.sin(eta * angle) / math.sin(angle) * b


def test_istd_is_the_papers_by_an_independent_computation():
    matrix = seeded(12, 16, seed=9)

    def draw(noise: Tensor) -> Tensor:
        return torch.tanh(noise.flatten(1) @ matrix.T).reshape(-1, 3, 2, 2)

    ends = {k: (seeded(4, 2, 2, seed=2 * k), seeded(4, 2, 2, seed=2 * k + 1)) for k in range(3)}
    distances = smoothness.measure(lambda _, noise: draw(noise), 3, ends.__getitem__)
    expected = []
    for a, b in ends.values():
        pictures = [
            np.tanh(matrix.numpy() @ by_hand(a.numpy().ravel(), b.numpy().ravel(), k / 10)).ravel() for k in range(11)
        ]
        steps = [math.dist(p, q) for p, q in itertools.pairwise(pictures)]
        expected.append(np.std(steps))
    assert distances.shape == (3, 10)
    assert smoothness.istd(distances).numpy() == pytest.approx(np.array(expected), rel=1e-9)


def test_a_rotation_is_perfectly_smooth():
    """A linear isometry keeps the arc's equal steps: anything above zero would be the measure's own."""
    a, b = seeded(4, 3, 3), seeded(4, 3, 3, seed=1)
    b = b * a.norm() / b.norm()
    turn = torch.linalg.qr(seeded(36, 36, seed=2)).Q
    images = (smoothness.walk(a, b).flatten(1) @ turn).reshape(11, 4, 3, 3)
    assert float(smoothness.istd(smoothness.step_distances(images))) < 1e-9


def test_a_jump_is_what_it_measures():
    images = torch.zeros(11, 3, 2, 2)
    images[5:] = 1.0
    distances = smoothness.step_distances(images)
    assert distances.tolist() == [0.0] * 4 + [pytest.approx(math.sqrt(12))] + [0.0] * 5
    assert float(smoothness.istd(distances)) == pytest.approx(math.sqrt(12) * math.sqrt(0.1 * 0.9))


@given(st.floats(0.01, 100), st.integers(3, 12), st.integers(0, 1000))
def test_istd_scales_with_the_pictures_and_forgets_direction(scale: float, count: int, seed: int):
    images = seeded(count, 3, 4, 4, seed=seed)
    plain = smoothness.istd(smoothness.step_distances(images))
    torch.testing.assert_close(smoothness.istd(smoothness.step_distances(scale * images)), scale * plain)
    torch.testing.assert_close(smoothness.istd(smoothness.step_distances(images.flip(0))), plain)
    torch.testing.assert_close(smoothness.istd(smoothness.step_distances(images + 3)), plain)


@given(st.integers(3, 20), st.integers(0, 1000))
def test_a_walk_has_its_ends_and_turns_one_way(count: int, seed: int):
    a, b = seeded(2, 3, 3, seed=seed), seeded(2, 3, 3, seed=seed + 5000)
    noises = smoothness.walk(a, b, count)
    assert torch.equal(noises[0], a) and torch.equal(noises[-1], b)
    at = torch.stack([(n.flatten() @ a.flatten()) / (n.norm() * a.norm()) for n in noises])
    assert len(noises) == count and bool((at.clamp(-1, 1).arccos().diff() > 0).all())


def test_two_frames_have_no_deviation():
    with pytest.raises(ValueError, match="frames: expected at least 3, got 2"):
        smoothness.walk(seeded(1, 2, 2), seeded(1, 2, 2, seed=1), 2)


def test_progress_hears_of_every_walk_and_may_cancel():
    heard = []

    def progress(step: int, total: int, preview: Tensor) -> None:
        heard.append((step, total, tuple(preview.shape)))
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        smoothness.measure(
            lambda _, noise: noise[:, :3], 5, lambda k: (seeded(4, 2, 2), seeded(4, 2, 2, seed=k + 1)),
            progress=progress,
        )  # fmt: skip
    assert heard == [(1, 5, (3, 2, 2)), (2, 5, (3, 2, 2))]
