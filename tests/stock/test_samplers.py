"""Samplers against what is known in closed form, in float64.

For data from N(0, S^2) the best denoiser is x0(x, sigma) = x S^2 / (S^2 + sigma^2), and the probability-flow ODE takes
x(a) to x(b) = x(a) sqrt((S^2 + b^2) / (S^2 + a^2)).
"""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from velatura.core.schedule import NoiseSchedule
from velatura.hosts.diffusers.samplers import SAMPLERS, _integrals, ancestral, sampler
from velatura.hosts.diffusers.sigmas import SCHEDULES, NoiseLevels, sigmas_for

S = 0.5
ORDERS = {"euler": 1, "ddim": 1, "heun": 2, "dpm_2": 2, "dpmpp_2m": 2, "lms": 2}  # lms: its first step is Euler's
ANCESTRAL = ("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral")
LEVELS = NoiseLevels.of(NoiseSchedule.scaled_linear())


def gaussian(x, sigma):
    return x * S**2 / (S**2 + sigma**2)


def run(name, x, sigmas, denoise=gaussian):
    generator = torch.Generator().manual_seed(0)
    calls = []
    x = SAMPLERS[name].steps(
        denoise,
        x,
        sigmas,
        lambda: torch.randn(x.shape, generator=generator, dtype=x.dtype),
        lambda i, x0: calls.append(i),
    )
    assert calls == list(range(len(sigmas) - 1)), "one report for each step"
    return x


def ladder(steps, high=10.0, low=0.1):
    return torch.linspace(high ** (1 / 3), low ** (1 / 3), steps + 1, dtype=torch.float64) ** 3


def error(name, steps):
    x, sigmas = torch.ones(1, dtype=torch.float64), ladder(steps)
    exact = ((S**2 + sigmas[-1] ** 2) / (S**2 + sigmas[0] ** 2)).sqrt()
    return float((run(name, x, sigmas) - exact).abs() / exact)


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_the_error_falls_with_the_order_of_the_method(name, order):
    """A wrong coefficient anywhere lowers the order."""
    coarse, fine = error(name, 160), error(name, 320)
    assert coarse / fine > 2 ** (order - 0.1)


@given(st.integers(1, 4), st.lists(st.floats(-2, 2), min_size=4, max_size=4))
def test_multistep_weights_integrate_polynomials(order, coefficients):
    """n slopes fix a polynomial of degree n - 1, of which the weighted sum must be the integral."""
    nodes = torch.tensor([3.0, 3.7, 5.0, 8.0], dtype=torch.float64)[:order]

    def polynomial(x, shift):
        return sum(c * x ** (k + shift) / (1 if shift == 0 else k + 1) for k, c in enumerate(coefficients[:order]))

    start, end = nodes[0], torch.tensor(2.2, dtype=torch.float64)
    weights = _integrals(nodes, start, end)
    found = sum(w * polynomial(node, 0) for w, node in zip(weights, nodes, strict=True))
    assert float(found) == pytest.approx(float(polynomial(end, 1) - polynomial(start, 1)), abs=1e-9)


@pytest.mark.parametrize("name", ANCESTRAL)
def test_ancestral_sampling_ends_in_the_data_distribution(name):
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(20_000, generator=generator, dtype=torch.float64) * (S**2 + 100.0) ** 0.5
    sigmas = torch.cat([ladder(100, low=0.01), torch.zeros(1, dtype=torch.float64)])
    std = float(run(name, start, sigmas).std())
    assert abs(std - S) < 0.02


def test_lcm_is_exact_for_consistent_answers():
    """Where the network answers with the ODE's end point, each jump lands in the data distribution."""
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(20_000, generator=generator, dtype=torch.float64) * (S**2 + 100.0) ** 0.5
    sigmas = torch.cat([ladder(4), torch.zeros(1, dtype=torch.float64)])
    std = float(run("lcm", start, sigmas, lambda x, sigma: x * (S**2 / (S**2 + sigma**2)) ** 0.5).std())
    assert abs(std - S) < 0.01


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_one_known_picture_is_always_found(name, scheduler):
    picture = torch.linspace(-1, 1, 8)
    sigmas = sigmas_for(LEVELS, scheduler, 9)
    found = run(name, picture + sigmas[0] * torch.ones(8), sigmas, lambda x, sigma: picture)
    torch.testing.assert_close(found, picture, rtol=0, atol=2e-5)


@given(st.floats(0.01, 100), st.floats(0, 1))
@example(0.01171875, 9.807584147165792e-159)  # its square is no normal number
def test_an_ancestral_step_keeps_the_total_noise(sigma, share):
    above, below = torch.tensor(sigma, dtype=torch.float64), torch.tensor(sigma * share, dtype=torch.float64)
    down, up = ancestral(above, below)
    assert 0 <= down <= below and 0 <= up <= below
    torch.testing.assert_close(down**2 + up**2, below**2)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"sampler_name: .*euler.*does not have 'eulr'"):
        sampler("eulr")


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 60), st.floats(0.05, 1), st.booleans())
def test_levels_fall_to_zero_and_stay_in_the_trained_range(scheduler, steps, denoise, skip):
    sigmas = sigmas_for(LEVELS, scheduler, steps, denoise, skip_penultimate=skip)
    low, high = LEVELS.bounds
    assert sigmas[-1] == 0 and sigmas.dtype == torch.float32
    assert (sigmas.diff() < 0).all()
    # The quadratic schedule passes below the lowest level on its way to 0.
    assert (sigmas <= high * (1 + 1e-5)).all()
    if scheduler != "linear_quadratic":
        assert (sigmas[:-1] >= low * (1 - 1e-5)).all()
    if scheduler not in ("ddim_uniform", "beta"):
        assert len(sigmas) == steps + 1


def test_no_denoising_visits_no_level():
    assert len(sigmas_for(LEVELS, "normal", 20, 0.0)) == 0


def test_levels_and_timesteps_are_each_others_inverse():
    t = torch.arange(1000)
    assert torch.equal(LEVELS.timestep(LEVELS.sigma(t)), t)


def test_zero_terminal_snr_has_finite_levels():
    levels = NoiseLevels.of(NoiseSchedule.scaled_linear().rescaled_to_zero_snr())
    assert levels.sigmas.isfinite().all() and levels.bounds[1] > 4000


@pytest.mark.parametrize(
    ("given_", "message"), [(("karass", 5), "scheduler: expected one of"), (("normal", 0), "steps")]
)
def test_wrong_schedules_are_refused(given_, message):
    with pytest.raises(ValueError, match=message):
        sigmas_for(LEVELS, *given_)
