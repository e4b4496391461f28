"""Noise, masks, guidance and conditionings around the samplers, on an analytic noise predictor."""

import pytest
import torch

from velatura.core.schedule import NoiseSchedule
from velatura.hosts.diffusers.samplers import SAMPLERS
from velatura.hosts.diffusers.sampling import normal_noise, preview, sample
from velatura.hosts.diffusers.sigmas import NoiseLevels, sigmas_for, with_signal
from velatura.hosts.running import Interrupted

SCHEDULE = NoiseSchedule.scaled_linear()
LEVELS = NoiseLevels.of(SCHEDULE)
SHAPE = (2, 4, 6, 6)


class Pictures:
    """Knows one picture for each prompt: the constant that its embedding holds. Its noise prediction is exact."""

    schedule, scaling_factor, device = SCHEDULE, 0.5, torch.device("cpu")
    colours = None

    def __init__(self):
        self.calls = []

    def scale(self, raw):
        return raw * self.scaling_factor

    def unscale(self, latent):
        return latent / self.scaling_factor

    def predict_noise(self, x, t, condition):
        self.calls.append(len(x))
        abar = SCHEDULE.alphas_cumprod[t].to(x.dtype).reshape(-1, 1, 1, 1)
        wanted = condition.embedding.mean(dim=(1, 2)).reshape(-1, 1, 1, 1)
        return (x - abar.sqrt() * wanted) / (1 - abar).sqrt()


def prompt(value, tokens=3, **said):
    return [torch.full((1, tokens, 2), float(value)), said]


def go(positive, negative=None, cfg=1.0, *, latent=None, name="euler", steps=6, denoise=1.0, **more):
    model = more.pop("model", None) or Pictures()
    latent = torch.zeros(SHAPE) if latent is None else latent
    sigmas = sigmas_for(LEVELS, "simple", steps, denoise)
    noise = normal_noise(latent.shape, 3)
    return sample(model, SAMPLERS[name], sigmas, positive, negative or [prompt(0)], cfg, latent, noise, seed=3, **more)


def test_the_prompts_picture_comes_out_unscaled():
    done, x0 = go([prompt(0.25)])
    torch.testing.assert_close(done, torch.full(SHAPE, 0.5), rtol=0, atol=1e-3)
    torch.testing.assert_close(x0, done, rtol=0, atol=1e-3)


def test_guidance_goes_beyond_the_prompt():
    done, _ = go([prompt(0.25)], [prompt(0.05)], cfg=3.0)
    torch.testing.assert_close(done, torch.full(SHAPE, 2 * (0.05 + 3 * 0.2)), rtol=0, atol=2e-3)


def test_at_scale_1_the_negative_prompt_costs_nothing():
    model = Pictures()
    go([prompt(1)], cfg=1.0, model=model, steps=2)
    assert model.calls == [2, 2]


def test_prompts_share_one_call_where_their_lengths_agree():
    together, apart = Pictures(), Pictures()
    go([prompt(1)], [prompt(0)], cfg=4.0, model=together, steps=2)
    go([prompt(1)], [prompt(0, tokens=6)], cfg=4.0, model=apart, steps=2)
    assert together.calls == [4, 4]
    assert apart.calls == [2, 2, 2, 2]


def test_calling_together_or_apart_gives_the_same():
    together, _ = go([prompt(1)], [prompt(0)], cfg=4.0)
    apart, _ = go([prompt(1)], [prompt(0, tokens=6)], cfg=4.0)
    torch.testing.assert_close(together, apart)


def test_several_prompts_are_weighed_and_masked():
    left = torch.zeros(1, 12, 12)
    left[..., :6] = 1
    done, _ = go([prompt(0.1, strength=3.0), prompt(0.5, strength=1.0)])
    torch.testing.assert_close(done, torch.full(SHAPE, 2 * 0.2), rtol=0, atol=1e-3)
    done, _ = go([prompt(0.1, mask=left), prompt(0.5, mask=1 - left)])
    assert done[..., :3].mean().item() == pytest.approx(0.2, abs=1e-3)
    assert done[..., 3:].mean().item() == pytest.approx(1.0, abs=1e-3)


def test_a_prompt_may_hold_for_a_part_of_the_steps():
    model = Pictures()
    done, _ = go([prompt(0.1, end_percent=0.5), prompt(0.5, start_percent=0.5)], model=model)
    assert set(model.calls) == {2}
    torch.testing.assert_close(done, torch.full(SHAPE, 1.0), rtol=0, atol=1e-2)


@pytest.mark.parametrize("said", [{"area": (4, 4, 0, 0)}, {"control": object()}, {"hooks": object()}])
def test_what_it_cannot_do_is_refused_not_ignored(said):
    with pytest.raises(ValueError, match=f"positive: this runtime cannot use {next(iter(said))}"):
        go([prompt(1, **said)])


def test_an_empty_conditioning_is_refused():
    with pytest.raises(ValueError, match="positive: the conditioning is empty"):
        go([])


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_the_mask_protects_comes_back_unchanged(name):
    latent = normal_noise(SHAPE, 5)
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., 3:] = 1
    done, _ = go([prompt(0.25)], latent=latent, noise_mask=mask, name=name)
    torch.testing.assert_close(done[..., :3], latent[..., :3], rtol=0, atol=1e-5)
    torch.testing.assert_close(done[..., 3:], torch.full((2, 4, 6, 3), 0.5), rtol=0, atol=1e-2)


def test_a_sample_keeps_its_noise_outside_of_its_batch():
    whole = torch.cat([normal_noise((1, 4, 6, 6), 9, [i]) for i in range(4)])
    assert torch.equal(normal_noise((4, 4, 6, 6), 9, [0, 1, 2, 3]), whole)
    assert torch.equal(normal_noise((2, 4, 6, 6), 9, [2, 2]), whole[[2, 2]])
    with pytest.raises(ValueError, match="batch_index"):
        normal_noise((3, 4, 6, 6), 9, [0])


def test_the_global_generator_is_not_touched():
    before = torch.random.get_rng_state()
    go([prompt(1)], name="euler_ancestral")
    assert torch.equal(before, torch.random.get_rng_state())


def test_progress_sees_each_step_and_may_stop_it():
    seen = []
    go([prompt(1)], progress=lambda step, total, picture: seen.append((step, total, tuple(picture.shape))))
    assert seen == [(i, 6, (3, 6, 6)) for i in range(1, 7)]

    def stop(step, total, picture):
        if step == 2:
            raise Interrupted

    model = Pictures()
    with pytest.raises(Interrupted):
        go([prompt(1)], model=model, progress=stop)
    assert len(model.calls) == 2


@pytest.mark.parametrize("scaling", [0.18215, 0.13025, 1.7])
@pytest.mark.parametrize("channels", [3, 4, 16])
def test_previews_are_pictures(scaling, channels):
    picture = preview(100 * normal_noise((2, channels, 5, 7), 0), scaling)
    assert picture.shape == (3, 5, 7)
    assert picture.min() >= 0 and picture.max() <= 1


def test_without_any_signal_a_v_prediction_still_counts():
    """At zero terminal SNR the input is pure noise; all that is known of the picture is in v."""
    model = Pictures()
    model.schedule = with_signal(SCHEDULE.rescaled_to_zero_snr())

    def predict_noise(x, t, condition):
        abar = model.schedule.alphas_cumprod[t].to(x.dtype).reshape(-1, 1, 1, 1)
        eps = (x - abar.sqrt() * 0.25) / (1 - abar).sqrt()
        v = abar.sqrt() * eps - (1 - abar).sqrt() * 0.25
        return model.schedule.to_epsilon(v, x, t, "v_prediction")

    model.predict_noise = predict_noise
    sigmas = NoiseLevels.of(model.schedule).sigmas[-1:].repeat(2)
    latent = torch.zeros(SHAPE)
    _, x0 = sample(model, SAMPLERS["euler"], sigmas, [prompt(1)], [prompt(0)], 1.0, latent, normal_noise(SHAPE, 0))
    torch.testing.assert_close(x0, torch.full(SHAPE, 0.5), rtol=0, atol=5e-3)
