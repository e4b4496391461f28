"""Few-step sampling. A failure means an LCM is sampled at other timesteps, or otherwise, than its authors define."""

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler, TCDScheduler
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from velatura.core.consistency import (
    boundary_scalings,
    consistency_function,
    consistency_sample,
    consistency_steps,
    lcm_timesteps,
    noise_after_start,
    tcd_step,
)
from velatura.core.schedule import NoiseSchedule

from .gaussian import NO_TEXT, GaussianModel

SCHEDULE = NoiseSchedule.scaled_linear()
SETTINGS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
GENERATOR = torch.Generator().manual_seed(0)
NOISE = torch.randn(9, 2, 4, 8, 8, generator=GENERATOR)


class Network:
    """A LatentModel of any prediction type: its x_0 is a smooth function of x and t in -1 .. 1. Counts its calls."""

    def __init__(self, prediction: str) -> None:
        self.schedule, self.prediction, self.calls = SCHEDULE, prediction, 0

    def output(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        x_0 = torch.tanh(x * 0.7 + t.reshape(-1, 1, 1, 1) / 1000)
        eps = SCHEDULE.epsilon_from_x0(x, x_0, t)
        return {"sample": x_0, "epsilon": eps, "v_prediction": SCHEDULE.velocity(x_0, eps, t)}[self.prediction]

    def predict_noise(self, x: Tensor, t: Tensor, condition: object, *, guidance_embedding: object = None) -> Tensor:
        return self.schedule.to_epsilon(self.output(x, t), x, t, self.prediction)


def test_the_papers_four_steps() -> None:
    assert lcm_timesteps(4).tolist() == [999, 759, 519, 279]
    assert lcm_timesteps(4, grid="diffusers").tolist() == [999, 759, 499, 259]
    assert lcm_timesteps(1).tolist() == [999]


def test_strength_keeps_the_low_end_of_the_grid() -> None:
    # Half of 50 steps: 19 .. 499.
    assert lcm_timesteps(4, strength=0.5).tolist() == [499, 379, 259, 139]


@example(22, 0.984375, 100)  # 11 of 22 steps is half of 98 levels, but not after rounding 98 / 22
@given(st.integers(1, 50), st.floats(0.02, 1), st.sampled_from([10, 20, 25, 50, 100, 200, 500, 1000]))
def test_diffusers_grid_for_any_original_steps(steps: int, strength: float, original: int) -> None:
    scheduler = LCMScheduler(**SETTINGS)
    if steps > int(original * strength):
        with pytest.raises(ValueError, match="steps: expected"):
            lcm_timesteps(steps, original_steps=original, strength=strength, grid="diffusers")
        return
    scheduler.set_timesteps(steps, original_inference_steps=original, strength=strength)
    ours = lcm_timesteps(steps, original_steps=original, strength=strength, grid="diffusers")
    assert ours.tolist() == scheduler.timesteps.tolist()


@given(st.integers(1, 50), st.sampled_from([25, 50, 100]))
def test_both_grids_fall_and_stay_on_the_distillation_grid(steps: int, original: int) -> None:
    for grid in ("paper", "diffusers"):
        if steps > original:
            continue
        times = lcm_timesteps(steps, original_steps=original, grid=grid)
        assert len(times) == steps
        assert times[0] == 999
        assert bool((times.diff() < 0).all())
        assert bool(((times + 1) % (1000 // original) == 0).all())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 51}, "steps"),
        ({"steps": 4, "strength": 0.05}, "steps"),
        ({"steps": 4, "strength": 0.0}, "strength"),
        ({"steps": 4, "original_steps": 48}, "original_steps"),
    ],
)
def test_an_impossible_grid_is_refused(arguments: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: expected"):
        lcm_timesteps(**arguments)  # pyright: ignore[reportArgumentType]


def test_the_function_is_the_identity_on_clean_data() -> None:
    c_skip, c_out = boundary_scalings(torch.tensor([0, 999]))
    assert (c_skip[0], c_out[0]) == (1, 0)
    assert c_skip[1] < 1e-6
    assert c_out[1] == pytest.approx(1, abs=1e-6)
    x = NOISE[0]
    torch.testing.assert_close(consistency_function(SCHEDULE, x, NOISE[1], torch.tensor(0)), x)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", range(1, 9))
def test_every_step_is_that_of_diffusers_scheduler(prediction: str, steps: int) -> None:
    scheduler = LCMScheduler(**SETTINGS, prediction_type=prediction)
    scheduler.set_timesteps(steps)
    network = Network(prediction)
    x, generator = NOISE[0], torch.Generator().manual_seed(5)
    seen = []
    for t in scheduler.timesteps:
        x, x_0 = scheduler.step(network.output(x, t), t, x, generator=generator, return_dict=False)
        seen.append(x_0)
    ours, network, generator = [], Network(prediction), torch.Generator().manual_seed(5)
    last = consistency_sample(
        network,
        NOISE[0],
        NO_TEXT,
        lcm_timesteps(steps, grid="diffusers"),
        lambda: torch.randn(NOISE[0].shape, generator=generator),
        progress=lambda step, total, preview: ours.append(preview),
    )
    torch.testing.assert_close(torch.stack(ours), torch.stack(seen), rtol=0, atol=1e-5)
    torch.testing.assert_close(last, x, rtol=0, atol=1e-5)
    assert network.calls == steps  # one network call for a step


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_a_tcd_step_is_that_of_diffusers_scheduler(gamma: float) -> None:
    scheduler = TCDScheduler(**SETTINGS)
    scheduler.set_timesteps(4)
    eps = torch.tanh(NOISE[1])
    theirs = scheduler.step(
        eps, scheduler.timesteps[0], NOISE[0], eta=gamma, generator=torch.Generator().manual_seed(3)
    )
    noise = torch.randn(NOISE[0].shape, generator=torch.Generator().manual_seed(3))
    ours = tcd_step(SCHEDULE, NOISE[0], eps, scheduler.timesteps[0], scheduler.timesteps[1], gamma, noise)
    torch.testing.assert_close(ours, theirs.prev_sample, rtol=0, atol=1e-5)


def test_one_step_on_a_gaussian_is_the_posterior_mean() -> None:
    model = GaussianModel(SCHEDULE)

    class Guided(Network):
        def predict_noise(
            self, x: Tensor, t: Tensor, condition: object, *, guidance_embedding: object = None
        ) -> Tensor:
            return model.predict_noise(x, t)

    x = NOISE[2].double()
    got = consistency_sample(Guided("epsilon"), x, NO_TEXT, lcm_timesteps(1), lambda: x)
    abar = SCHEDULE.alphas_cumprod[999]
    gain = abar.sqrt() * model.std**2 / (abar * model.std**2 + 1 - abar)
    torch.testing.assert_close(got, model.mean + gain * (x - abar.sqrt() * model.mean), rtol=0, atol=1e-4)


@pytest.mark.parametrize("gamma", [None, 0.5])
def test_what_the_mask_keeps_is_kept_exactly(gamma: float | None) -> None:
    known, mask = NOISE[3], torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    draws = iter(NOISE[4:])
    got = consistency_sample(
        Network("epsilon"),
        NOISE[0],
        NO_TEXT,
        lcm_timesteps(4),
        lambda: next(draws),
        known=known,
        mask=mask,
        gamma=gamma,
    )
    torch.testing.assert_close(got[..., 4:], known[..., 4:], rtol=0, atol=0)
    assert (got[..., :4] - known[..., :4]).abs().max() > 0.1


def test_guidance_reaches_the_network_and_cancel_takes_effect_within_a_step() -> None:
    heard: list[object] = []

    class Guided(Network):
        def predict_noise(
            self, x: Tensor, t: Tensor, condition: object, *, guidance_embedding: object = None
        ) -> Tensor:
            heard.append(guidance_embedding)
            return super().predict_noise(x, t, condition)

    def cancel(step: int, total: int, preview: object) -> None:
        raise KeyboardInterrupt

    omega = torch.tensor([7.0])
    with pytest.raises(KeyboardInterrupt):
        consistency_sample(
            Guided("epsilon"), NOISE[0], NO_TEXT, lcm_timesteps(8), lambda: NOISE[1], omega=omega, progress=cancel
        )
    assert heard == [omega]


def test_no_timesteps_is_an_error() -> None:
    with pytest.raises(ValueError, match="timesteps"):
        consistency_sample(Network("epsilon"), NOISE[0], NO_TEXT, torch.tensor(np.zeros(0)), lambda: NOISE[1])


def in_sigma_space(
    network: Network,
    x: Tensor,
    times: Tensor,
    draw: object,
    gamma: float | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """What `consistency_steps` makes of x at times[0], through a host's kind of denoiser; the predicted x_0."""
    sigmas = torch.cat([SCHEDULE.sigma(times), torch.zeros(1)]).to(dtype or torch.float32)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        t = SCHEDULE.nearest_timestep(sigma).expand(len(x))
        x_t = x / (1 + sigma**2).sqrt()
        return SCHEDULE.to_x0(network.output(x_t, t), x_t, t, network.prediction)

    seen: list[Tensor] = []
    x = x * (1 + sigmas[0].to(x) ** 2).sqrt()
    out = consistency_steps(SCHEDULE, denoise, x, sigmas, draw, lambda i, x_0: seen.append(x_0), gamma=gamma)
    return out, seen


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("gamma", [None, 0.0, 0.3, 1.0])
def test_steps_in_sigma_space_are_the_same_steps(prediction: str, gamma: float | None) -> None:
    noise, times = NOISE.double(), lcm_timesteps(5)
    draws, again = iter(noise[1:]), iter(noise[1:])
    expected = consistency_sample(Network(prediction), noise[0], NO_TEXT, times, lambda: next(draws), gamma=gamma)
    network = Network(prediction)
    got, seen = in_sigma_space(network, noise[0], times, lambda: next(again), gamma, torch.float64)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(seen[-1], got, rtol=0, atol=0)
    assert (len(seen), network.calls) == (5, 5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", range(1, 9))
def test_every_step_in_sigma_space_is_that_of_diffusers_scheduler(prediction: str, steps: int) -> None:
    # From the seed's own noise on, as diffusers' pipeline draws it, with float32 levels as hosts pass them.
    scheduler = LCMScheduler(**SETTINGS, prediction_type=prediction)
    scheduler.set_timesteps(steps)
    network, generator = Network(prediction), torch.Generator().manual_seed(5)
    x = start = torch.randn(NOISE[0].shape, generator=generator)
    theirs = []
    for t in scheduler.timesteps:
        x, x_0 = scheduler.step(network.output(x, t), t, x, generator=generator, return_dict=False)
        theirs.append(x_0)
    draw = noise_after_start(start, 5)
    _, ours = in_sigma_space(Network(prediction), start, lcm_timesteps(steps, grid="diffusers"), draw)
    # An x_0 made of eps at t = 999 carries float32's rounding times 15.
    torch.testing.assert_close(torch.stack(ours), torch.stack(theirs), rtol=0, atol=2e-5)


@pytest.mark.parametrize("gamma", [None, 0.3])
def test_a_last_level_above_zero_leaves_its_noise(gamma: float | None) -> None:
    sigmas = SCHEDULE.sigma(lcm_timesteps(4))[:3]
    noise = NOISE.double()
    draws = iter(noise[1:])
    got = consistency_steps(
        SCHEDULE,
        lambda x, sigma: torch.zeros_like(x),
        sigmas[0] * noise[0],
        sigmas,
        lambda: next(draws),
        lambda i, x_0: None,
        gamma=gamma,
    )
    assert got.std() / sigmas[-1] == pytest.approx(1, rel=0.15)
    if gamma is None:
        torch.testing.assert_close(got, sigmas[-1] * noise[2], rtol=0, atol=1e-6)


def test_levels_of_other_schedulers_run_at_the_time_between() -> None:
    # ComfyUI's sgm_uniform: none of its levels is a timestep's. f is nearly x_0 there, so the steps are Algorithm 3's.
    sigmas = torch.tensor([14.6146, 3.8, 1.5, 0.6, 0.0], dtype=torch.float64)
    clean = NOISE[3].double()
    seen: list[Tensor] = []
    heard: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        heard.append(float(sigma))
        return clean

    got = consistency_steps(
        SCHEDULE, denoise, 14.6 * NOISE[0].double(), sigmas, lambda: NOISE[1].double(), lambda i, x: seen.append(x)
    )
    assert heard == sigmas[:-1].tolist()
    torch.testing.assert_close(got, clean, rtol=0, atol=1e-5)


def test_no_levels_leave_x_as_it_is() -> None:
    x = NOISE[0]
    for sigmas in (torch.zeros(0), torch.tensor([14.6])):
        assert consistency_steps(SCHEDULE, lambda x, s: x, x, sigmas, lambda: x, lambda i, x: None) is x


def test_noise_after_the_start_is_new_and_reproducible() -> None:
    x = torch.zeros(2, 4, 8, 8)
    start = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
    state = torch.random.get_rng_state()
    draw, again = noise_after_start(x, 7), noise_after_start(x, 7)
    first, second = draw(), draw()
    assert (first - start).abs().max() > 1 and (first - second).abs().max() > 1
    torch.testing.assert_close(again(), first, rtol=0, atol=0)
    assert bool((torch.random.get_rng_state() == state).all())
