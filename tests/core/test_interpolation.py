"""Ways between latents and prompts. A failure means animations jump, change speed, or mix the samples of a batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from velatura.core.interpolation import eased, latent_path, lerp, mix_conditions, same_length, slerp
from velatura.core.protocols import Condition

SEEDS = st.integers(0, 2**31)
ALPHAS = st.floats(0, 1)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Between the samples of two batches, [B]; exact for small angles too."""
    u, v = (x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True) for x in (a, b))
    return 2 * torch.atan2((u - v).norm(dim=1), (u + v).norm(dim=1))


@settings(max_examples=30)
@given(SEEDS, st.booleans())
def test_the_ends_are_exact(seed: int, keep_norm: bool) -> None:
    a, b = noise(seed, 2, 3, 4, 4).float()
    a, b = a[None], b[None]
    assert torch.equal(slerp(a, b, 0.0, keep_norm=keep_norm), a)
    assert torch.equal(slerp(a, b, 1.0, keep_norm=keep_norm), b)


@settings(max_examples=30)
@given(SEEDS, ALPHAS, st.booleans())
def test_the_way_back_is_the_same_way(seed: int, alpha: float, keep_norm: bool) -> None:
    a, b = noise(seed, 2, 2, 30).unbind()
    there, back = slerp(a, b, alpha, keep_norm=keep_norm), slerp(b, a, 1 - alpha, keep_norm=keep_norm)
    torch.testing.assert_close(there, back, rtol=1e-9, atol=1e-9)


@settings(max_examples=30)
@given(SEEDS, ALPHAS)
def test_the_angle_grows_evenly_and_the_norm_goes_straight(seed: int, alpha: float) -> None:
    a, b = noise(seed, 2, 3, 50).unbind()
    b = 2.5 * b
    between = slerp(a, b, alpha)
    torch.testing.assert_close(angle(a, between), alpha * angle(a, b), rtol=1e-7, atol=1e-7)
    expected = (1 - alpha) * a.norm(dim=1) + alpha * b.norm(dim=1)
    torch.testing.assert_close(between.norm(dim=1), expected)


@settings(max_examples=30)
@given(SEEDS, st.integers(1, 6), ALPHAS)
def test_samples_do_not_see_each_other(seed: int, rows: int, alpha: float) -> None:
    a, b = noise(seed, 2, rows, 4, 3, 5).unbind()
    alone = torch.cat([slerp(u[None], v[None], alpha) for u, v in zip(a, b, strict=True)])
    assert torch.equal(slerp(a, b, alpha), alone)


def test_without_keep_norm_it_is_shoemakes_formula() -> None:
    a, b = noise(1, 2, 1, 40).unbind()
    b = 3 * b
    w = angle(a, b)[:, None]
    expected = (torch.sin(0.7 * w) * a + torch.sin(0.3 * w) * b) / torch.sin(w)
    torch.testing.assert_close(slerp(a, b, 0.3, keep_norm=False), expected)


@pytest.mark.parametrize("keep_norm", [True, False])
def test_equal_directions_go_straight(keep_norm: bool) -> None:
    a = noise(2, 3, 20)
    torch.testing.assert_close(slerp(a, a, 0.4, keep_norm=keep_norm), a)
    torch.testing.assert_close(slerp(a, 3 * a, 0.5), 2 * a)


def test_opposite_directions_turn_and_do_not_vanish() -> None:
    a = noise(3, 2, 20)
    half = slerp(a, -a, 0.5)
    torch.testing.assert_close(half.norm(dim=1), a.norm(dim=1))
    torch.testing.assert_close(angle(a, half), torch.full((2,), math.pi / 2, dtype=torch.float64))
    torch.testing.assert_close(slerp(-a, a, 0.25), slerp(a, -a, 0.75))


def test_a_zero_vector_has_a_way_too() -> None:
    a = noise(4, 1, 20)
    torch.testing.assert_close(slerp(a, torch.zeros_like(a), 0.25), 0.75 * a)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        slerp(torch.zeros(1, 3), torch.zeros(1, 4), 0.5)


@settings(max_examples=10)
@given(SEEDS, st.integers(2, 5), st.booleans())
def test_a_path_moves_at_one_speed_through_every_key_frame(seed: int, keys: int, loop: bool) -> None:
    frames = noise(seed, keys, 60)
    path = latent_path(frames, 801, loop=loop)
    steps = angle(path[:-1], path[1:])
    # Only a step around a key frame, where the path turns, may be shorter than the rest.
    assert int((steps < 0.999 * steps.max()).sum()) <= keys
    distance = torch.stack([angle(key.expand_as(path), path).min() for key in frames])
    assert float(distance.max()) <= float(steps.max())
    assert torch.equal(path[0], frames[0])
    assert loop or torch.equal(path[-1], frames[-1])


def test_a_closed_path_repeats_without_a_standstill() -> None:
    path = latent_path(noise(6, 3, 40), 600, loop=True)
    again = torch.cat([path, path[:1]])
    steps = angle(again[:-1], again[1:])
    assert float(steps[-1]) == pytest.approx(float(steps.max()), rel=1e-3)


def test_straight_paths_measure_distances() -> None:
    keys = torch.tensor([[0.0], [1.0], [4.0]], dtype=torch.float64)
    assert latent_path(keys, 5, mode="lerp")[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_smooth_starts_and_ends_slowly() -> None:
    at = eased(101, "smooth")
    assert float(at[1]) < 0.001 and float(at[50]) == 0.5 and float(at[-1]) == 1
    assert bool((at.diff() > 0).all())


def test_paths_need_two_key_frames() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        latent_path(torch.zeros(1, 4), 3)


def attention(q: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, context, context)


def test_bringing_prompts_to_one_length_leaves_their_meaning() -> None:
    """A longer prompt must not change what the network hears of the shorter."""
    a, b, q = noise(7, 1, 4, 8), noise(8, 1, 6, 8), noise(9, 1, 10, 8)
    long_a, long_b = same_length(a, b)
    assert long_a.shape == long_b.shape == (1, 12, 8)
    torch.testing.assert_close(attention(q, long_a), attention(q, a))
    torch.testing.assert_close(attention(q, long_b), attention(q, b))


def test_awkward_lengths_repeat_the_last_token() -> None:
    a, b = noise(7, 1, 7, 2), noise(8, 1, 13, 2)
    long_a, long_b = same_length(a, b)
    assert torch.equal(long_b, b)
    assert torch.equal(long_a[:, 7:], a[:, -1:].expand(-1, 6, -1))


@pytest.mark.parametrize("mode", ["lerp", "slerp"])
def test_conditions_mix_with_their_pooled_vectors(mode: str) -> None:
    a = Condition(noise(1, 1, 3, 4), noise(2, 1, 5), {"from": "a"})
    b = Condition(noise(3, 1, 3, 4), noise(4, 1, 5), {"from": "b"})
    mixed = mix_conditions(a, b, torch.tensor([0.0, 0.25, 1.0]), mode)  # pyright: ignore[reportArgumentType]
    assert mixed.embedding.shape == (3, 3, 4) and mixed.pooled is not None and mixed.pooled.shape == (3, 5)
    assert torch.equal(mixed.embedding[:1], a.embedding) and torch.equal(mixed.embedding[2:], b.embedding)
    if mode == "lerp":
        torch.testing.assert_close(mixed.embedding[1:2], lerp(a.embedding, b.embedding, 0.25))
    else:
        norms = 0.75 * a.embedding.norm(dim=2) + 0.25 * b.embedding.norm(dim=2)
        torch.testing.assert_close(mixed.embedding[1:2].norm(dim=2), norms)
    assert mix_conditions(a, b, 0.2).extras == {"from": "a"}


def test_prompts_of_different_encoders_are_refused() -> None:
    with pytest.raises(ValueError, match="different text encoders"):
        mix_conditions(Condition(torch.zeros(1, 2, 3)), Condition(torch.zeros(1, 2, 4)), 0.5)
    with pytest.raises(ValueError, match="pooled"):
        mix_conditions(Condition(torch.zeros(1, 2, 3), torch.zeros(1, 2)), Condition(torch.zeros(1, 2, 3)), 0.5)
