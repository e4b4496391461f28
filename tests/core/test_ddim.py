"""DDIM against a Gaussian's closed-form flow. A failure means samples and inversions do not follow the ODE."""

import pytest
import torch

from velatura.core.ddim import ddim_sample, ddim_step, ddim_timesteps, ddim_transfer
from velatura.core.schedule import NoiseSchedule

from .gaussian import NO_TEXT, GaussianModel

MODEL = GaussianModel(NoiseSchedule.scaled_linear())
NOISE = torch.linspace(-3, 3, 60, dtype=torch.float64).reshape(1, 1, 6, 10)
CLEAN = torch.tensor(-1)


def sampling_error(steps: int) -> float:
    times = ddim_timesteps(1000, steps, "trailing")
    got = ddim_sample(MODEL, NOISE, NO_TEXT, timesteps=times)
    return (got - MODEL.solution(NOISE, times[0], CLEAN)).abs().max().item()


def test_sampling_converges_to_the_ode_at_first_order() -> None:
    coarse, fine = sampling_error(100), sampling_error(200)
    assert fine < 0.05
    assert 1.7 < coarse / fine < 2.3  # halving the step halves the error


def test_inversion_converges_to_the_ode() -> None:
    errors = []
    for steps in (100, 200):
        times = ddim_timesteps(1000, steps, "trailing").flip(0)
        x = x_0 = MODEL.mean + MODEL.std * NOISE
        for t, s in zip([CLEAN, *times[:-1]], times, strict=True):
            # At clean data there is no noise to predict; the first step takes the network's smallest timestep.
            eps = MODEL.predict_noise(x, t.clamp(min=0).reshape(1))
            x = ddim_transfer(MODEL.schedule, x, eps, t, s)
        errors.append((x - MODEL.solution(x_0, CLEAN, times[-1])).abs().max().item())
    assert errors[1] < 0.15
    assert errors[0] / errors[1] > 1.6


def test_a_step_and_its_inverse_with_the_same_noise_cancel() -> None:
    eps = torch.randn(2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x, t, s = 2 * eps.flip(0), torch.tensor([800, 30]), torch.tensor([600, -1])
    there = ddim_transfer(MODEL.schedule, x, eps, t, s)
    torch.testing.assert_close(ddim_transfer(MODEL.schedule, there, eps, s, t), x)


def test_eta_one_keeps_the_exact_marginal_of_ddpm() -> None:
    # x_s given x_0 must have standard deviation sqrt(1 - abar_s) whatever eta is (DDIM, Lemma 1).
    generator = torch.Generator().manual_seed(2)
    eps, noise = torch.randn(2, 200_000, 1, dtype=torch.float64, generator=generator)
    t, s = torch.tensor(700), torch.tensor(500)
    x_t = MODEL.schedule.add_noise(torch.full_like(eps, 0.5), eps, t)
    x_s = ddim_step(MODEL.schedule, x_t, eps, t, s, eta=1.0, noise=noise)
    abar = MODEL.schedule.alpha_bar(s)
    assert x_s.mean().item() == pytest.approx(0.5 * abar.sqrt().item(), abs=5e-3)
    assert x_s.std().item() == pytest.approx((1 - abar).sqrt().item(), rel=5e-3)


def test_noise_is_required_where_eta_asks_for_it() -> None:
    with pytest.raises(ValueError, match="noise"):
        ddim_step(MODEL.schedule, NOISE, NOISE, torch.tensor(9), torch.tensor(8), eta=1.0)


def test_results_do_not_depend_on_the_batch() -> None:
    times = ddim_timesteps(1000, 7)
    both = torch.cat([NOISE, -NOISE])
    together = ddim_sample(MODEL, both, NO_TEXT, timesteps=times)
    alone = torch.cat([ddim_sample(MODEL, x[None], NO_TEXT, timesteps=times) for x in both])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_grids_are_those_of_the_literature() -> None:
    assert ddim_timesteps(1000, 4, "leading").tolist() == [751, 501, 251, 1]
    assert ddim_timesteps(1000, 4, "trailing").tolist() == [999, 749, 499, 249]
    assert ddim_timesteps(1000, 3, "linspace").tolist() == [999, 500, 0]


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=r"steps: expected 1 \.\. 1000"):
        ddim_timesteps(1000, steps)


def test_cancel_takes_effect_within_a_step() -> None:
    calls = []

    def cancel(step: int, total: int, preview: object) -> None:
        calls.append((step, total))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ddim_sample(MODEL, NOISE, NO_TEXT, timesteps=ddim_timesteps(1000, 5), progress=cancel)
    assert calls == [(1, 5)]
