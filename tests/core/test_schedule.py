"""The forward process. A failure here means every sampler, inverter and trainer is at the wrong noise level."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from velatura.core.schedule import NoiseSchedule

SD = NoiseSchedule.scaled_linear()
KINDS = ("epsilon", "v_prediction", "sample")


def test_scaled_linear_has_stable_diffusions_published_values() -> None:
    # First and last sigma of SD1.x as every implementation prints them.
    assert SD.sigmas[0].item() == pytest.approx(0.0292, abs=1e-4)
    assert SD.sigmas[-1].item() == pytest.approx(14.6146, abs=1e-4)


def test_alpha_bar_is_the_product_of_alphas() -> None:
    betas = torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64)
    assert NoiseSchedule.from_betas(betas).alphas_cumprod.tolist() == pytest.approx([0.9, 0.72, 0.36])


def test_linear_schedule_is_ddpms() -> None:
    # DDPM's process ends near pure noise: abar_T about 4e-5 (Ho et al. 2020, Section 4).
    assert NoiseSchedule.linear().alphas_cumprod[-1].item() == pytest.approx(4.04e-5, rel=0.01)


def test_log_snr_is_that_of_alpha_bar() -> None:
    abar = SD.alphas_cumprod
    torch.testing.assert_close(SD.log_snr, (abar / (1 - abar)).log())


def test_zero_terminal_snr_keeps_the_first_and_zeroes_the_last() -> None:
    schedule = SD.rescaled_to_zero_snr()
    assert schedule.alphas_cumprod[-1] == 0
    torch.testing.assert_close(schedule.alphas_cumprod[0], SD.alphas_cumprod[0])
    x, v = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    last = torch.tensor(999)
    torch.testing.assert_close(schedule.to_x0(v, x, last, "v_prediction"), -v)
    torch.testing.assert_close(schedule.alpha_bar(torch.tensor([999.0])), torch.zeros(1, dtype=torch.float64))


def test_clean_data_is_timestep_minus_one() -> None:
    assert SD.alpha_bar(torch.tensor([-1, 0])).tolist() == [1.0, SD.alphas_cumprod[0].item()]
    assert SD.alpha_bar(torch.tensor([-1.0])).tolist() == [1.0]


@given(st.floats(0, 999))
def test_timestep_inverts_sigma(t: float) -> None:
    at = torch.tensor([t], dtype=torch.float64)
    torch.testing.assert_close(SD.timestep(SD.sigma(at)), at, rtol=0, atol=1e-6)


@given(st.integers(0, 999))
def test_whole_and_fractional_timesteps_agree(t: int) -> None:
    torch.testing.assert_close(SD.alpha_bar(torch.tensor([t])), SD.alpha_bar(torch.tensor([float(t)])))
    assert SD.nearest_timestep(SD.sigmas[t]).item() == t


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**31), t=st.integers(0, 999))
def test_every_prediction_type_gives_back_x0_and_epsilon(kind: str, seed: int, t: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_0, eps = torch.randn(2, 3, 4, 5, 5, generator=generator, dtype=torch.float64)
    at = torch.tensor([t, 999 - t, 500])
    x_t = SD.add_noise(x_0, eps, at)
    output = {"epsilon": eps, "sample": x_0, "v_prediction": SD.velocity(x_0, eps, at)}[kind]
    torch.testing.assert_close(SD.to_x0(output, x_t, at, kind), x_0)
    torch.testing.assert_close(SD.to_epsilon(output, x_t, at, kind), eps)


@pytest.mark.parametrize("t", [-2, 1000, -1.5, 999.5])
def test_a_timestep_outside_the_schedule_is_refused(t: float) -> None:
    with pytest.raises(ValueError, match=r"t: expected timesteps in -1 \.\. 999"):
        SD.alpha_bar(torch.tensor([t]))


@pytest.mark.parametrize("abar", [[0.5], [0.5, 0.5], [0.5, 0.9], [1.2, 0.5]])
def test_a_schedule_that_does_not_fall_is_refused(abar: list[float]) -> None:
    with pytest.raises(ValueError, match="alphas_cumprod"):
        NoiseSchedule(torch.tensor(abar))
