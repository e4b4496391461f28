"""The runtime's samplers and schedules beside ComfyUI's own, on the same noise predictor."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from velatura.core.schedule import NoiseSchedule
from velatura.hosts.diffusers.samplers import SAMPLERS, SKIPS_PENULTIMATE
from velatura.hosts.diffusers.sampling import normal_noise, sample
from velatura.hosts.diffusers.sigmas import SCHEDULES, NoiseLevels, sigmas_for

SHAPE = (2, 4, 8, 8)
SCHEDULE = NoiseSchedule.scaled_linear()


@pytest.fixture(scope="module")
def comfy(comfyui):
    """comfy.samplers and SD1.5's model_sampling."""
    import comfy.model_sampling as model_sampling
    import comfy.samplers as samplers

    class Sampling(model_sampling.ModelSamplingDiscrete, model_sampling.EPS):
        pass

    return SimpleNamespace(samplers=samplers, sampling=Sampling())


def predictor(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth, nonlinear noise predictor: the posterior mean for data at +1 and -1."""
    abar = SCHEDULE.alphas_cumprod[t].to(x.dtype).reshape(-1, 1, 1, 1)
    x0 = torch.tanh(abar.sqrt() * x / (1 - abar))
    return (x - abar.sqrt() * x0) / (1 - abar).sqrt()


class OurModel:
    schedule, scaling_factor, device = SCHEDULE, 1.0, torch.device("cpu")
    colours = None

    def scale(self, raw):
        return raw

    unscale = scale

    def predict_noise(self, x, t, condition):
        return predictor(x, t)


class TheirModel:
    def __init__(self, sampling):
        self.inner_model = SimpleNamespace(model_sampling=sampling, scale_latent_inpaint=self._noised)
        self.sampling = sampling

    def _noised(self, sigma, noise, latent_image, **_):
        return self.sampling.noise_scaling(sigma.reshape(-1, 1, 1, 1), noise, latent_image)

    def __call__(self, x, sigma, model_options=None, seed=None):
        eps = predictor(self.sampling.calculate_input(sigma, x), self.sampling.timestep(sigma))
        return self.sampling.calculate_denoised(sigma, eps, x)


def run_both(comfy, name, sigmas, latent, mask=None, seed=7):
    noise = normal_noise(SHAPE, seed)
    prompt = [[torch.zeros(1, 1, 1), {}]]
    ours, _ = sample(OurModel(), SAMPLERS[name], sigmas, prompt, prompt, 1.0, latent, noise, seed=seed, noise_mask=mask)
    theirs = comfy.samplers.sampler_object(name).sample(
        TheirModel(comfy.sampling),
        sigmas,
        {"seed": seed},
        None,
        noise.clone(),
        latent_image=latent,
        denoise_mask=mask,
        disable_pbar=True,
    )
    return ours, theirs


def worst(ours, theirs):
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_schedules_have_comfyuis_levels(comfy, scheduler):
    levels = NoiseLevels.of(SCHEDULE)
    for steps in (1, 2, 3, 5, 8, 20, 30, 50, 333, 1000):
        if scheduler == "kl_optimal" and steps == 1:
            continue  # theirs divides by zero
        ours, theirs = (
            sigmas_for(levels, scheduler, steps),
            comfy.samplers.calculate_sigmas(comfy.sampling, scheduler, steps),
        )
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=0)


def test_names_are_comfyuis_in_its_order(comfy):
    theirs = comfy.samplers.SAMPLER_NAMES
    assert list(SAMPLERS) == sorted(SAMPLERS, key=theirs.index)
    assert list(SCHEDULES) == comfy.samplers.SCHEDULER_NAMES
    assert comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS & set(SAMPLERS) == SKIPS_PENULTIMATE


@pytest.mark.parametrize("scheduler", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_same_seed_same_latent(comfy, name, scheduler):
    sigmas = sigmas_for(NoiseLevels.of(SCHEDULE), scheduler, 20)
    difference = worst(*run_both(comfy, name, sigmas, torch.zeros(SHAPE)))
    assert difference < 2e-4  # 74 dB


@pytest.mark.parametrize("name", SAMPLERS)
def test_same_latent_from_an_image_with_a_mask_and_leftover_noise(comfy, name):
    levels = NoiseLevels.of(SCHEDULE)
    latent = normal_noise(SHAPE, 3)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:6, 3:] = 1
    for sigmas in (sigmas_for(levels, "karras", 12, 0.6), sigmas_for(levels, "normal", 12)[3:9]):
        assert worst(*run_both(comfy, name, sigmas, latent)) < 2e-4
        assert worst(*run_both(comfy, name, sigmas, latent, mask)) < 2e-4
