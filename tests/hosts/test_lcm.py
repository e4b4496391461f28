"""Few-step sampling through a host. A failure means an LCM's guidance is lost, leaks into other models, or a picture
comes out of noise, levels or masks that are not the authors'."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from velatura import hosts
from velatura.core.consistency import consistency_sample, consistency_steps, lcm_timesteps, noise_after_start
from velatura.core.guidance import guide
from velatura.core.protocols import Condition
from velatura.hosts.diffusers.sampling import normal_noise

from .conftest import Loaded
from .test_model import DELTAS

PROJECTION = torch.randn(96, 256, generator=torch.Generator().manual_seed(4)) / 8
SEED = 11


def network(loaded: Loaded, native: Any) -> torch.nn.Module:
    return native.unet if loaded.host.name == "diffusers" else native.model.diffusion_model


@pytest.fixture
def calls(loaded: Loaded) -> Any:
    """The batch sizes of the network's calls, samplers' included."""
    seen: list[int] = []
    hook = network(loaded, loaded.native[0]).register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    yield seen
    hook.remove()


def guided(loaded: Loaded, omega: float, model: Any = None) -> Any:
    return loaded.host.with_guidance(loaded.native[0] if model is None else model, PROJECTION, omega)


def conditioning(loaded: Loaded, text: str = "a red ball") -> Any:
    return loaded.host.conditioning(loaded.text.encode([text]))


def sigmas_of(loaded: Loaded, *args: Any, **kwargs: Any) -> Tensor:
    levels = loaded.model.schedule.sigma(lcm_timesteps(*args, **kwargs)).float()
    return torch.cat([levels, levels.new_zeros(1)])


def sample(loaded: Loaded, sigmas: Tensor, latent: dict[str, Any], model: Any = None, **options: Any) -> Tensor:
    steps = loaded.host.sampler("lcm", partial(consistency_steps, gamma=options.pop("gamma", None)))
    model = loaded.native[0] if model is None else model
    settings = {"negative": None, "cfg": 1.0} | options
    done, clean = loaded.host.sample(
        model, steps, sigmas, conditioning(loaded), settings["negative"], settings["cfg"], latent, SEED
    )
    if sigmas[-1] == 0:
        torch.testing.assert_close(done["samples"], clean["samples"], rtol=0, atol=1e-5)
    return done["samples"]


def empty(batch: int = 2) -> dict[str, Any]:
    return {"samples": torch.zeros(batch, 4, 16, 16)}


def test_omega_reaches_the_network_and_no_other_model(
    loaded: Loaded, x: Tensor, t: Tensor, condition: Condition
) -> None:
    plain = loaded.model.predict_noise(x, t, condition)
    two, seven = (loaded.host.model(guided(loaded, omega)) for omega in (2.0, 7.0))
    at_two, at_seven = two.predict_noise(x, t, condition), seven.predict_noise(x, t, condition)
    assert (at_two - plain).abs().max() > 1e-2
    assert (at_two - at_seven).abs().max() > 1e-2
    torch.testing.assert_close(two.predict_noise(x, t, condition), at_two, rtol=0, atol=0)
    torch.testing.assert_close(loaded.model.predict_noise(x, t, condition), plain, rtol=0, atol=0)


def test_each_sample_may_have_its_own_omega(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition) -> None:
    model = loaded.host.model(guided(loaded, 2.0))
    omegas = torch.tensor([2.0, 7.0, 4.5])
    got = model.predict_noise(x, t, condition, guidance_embedding=omegas)
    for i, omega in enumerate(omegas):
        alone = loaded.host.model(guided(loaded, float(omega))).predict_noise(x, t, condition)
        torch.testing.assert_close(got[i], alone[i], rtol=0, atol=2e-5)
    one = model.predict_noise(x, t, condition, guidance_embedding=torch.tensor([7.0]))
    torch.testing.assert_close(one[1], got[1], rtol=0, atol=2e-5)


def test_a_projection_of_zero_changes_nothing(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition) -> None:
    still = loaded.host.model(loaded.host.with_guidance(loaded.native[0], torch.zeros(96, 256), 7.0))
    torch.testing.assert_close(still.predict_noise(x, t, condition), loaded.model.predict_noise(x, t, condition))


def test_guidance_and_lora_in_either_order(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition) -> None:
    lora = loaded.host.with_lora(loaded.native[0], None, DELTAS, 0.5, 0.0)[0]
    first = loaded.host.model(guided(loaded, 7.0, lora))
    second = loaded.host.model(guided(loaded, 7.0)).with_lora(DELTAS, 0.5)
    ours = first.predict_noise(x, t, condition)
    torch.testing.assert_close(second.predict_noise(x, t, condition), ours, rtol=0, atol=2e-5)
    assert (ours - loaded.host.model(lora).predict_noise(x, t, condition)).abs().max() > 1e-2


def test_a_second_guidance_replaces_the_first(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition) -> None:
    again = loaded.host.model(guided(loaded, 7.0, guided(loaded, 2.0)))
    once = loaded.host.model(guided(loaded, 7.0))
    torch.testing.assert_close(again.predict_noise(x, t, condition), once.predict_noise(x, t, condition))


@pytest.mark.parametrize("shape", [(160, 256), (96, 255), (96,)])
def test_a_projection_of_another_network_is_refused(loaded: Loaded, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cond_proj"):
        loaded.host.with_guidance(loaded.native[0], torch.zeros(shape), 7.0)


@pytest.mark.parametrize("inference", [False, True], ids=["plain", "inference mode"])
def test_gradients_pass(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition, inference: bool) -> None:
    with torch.inference_mode(inference):
        model = loaded.host.model(guided(loaded, 7.0))
        with model.differentiable():
            z = x.clone().requires_grad_()
            (grad,) = torch.autograd.grad(model.predict_noise(z, t, condition).square().sum(), z)
    assert grad.isfinite().all() and grad.abs().max() > 0


def test_a_folder_of_a_guidance_distilled_network(
    loaded: Loaded, random_folder: Path, tmp_path: Path, x: Tensor, t: Tensor, condition: Condition
) -> None:
    folder = lcm_folder(random_folder, tmp_path)
    native = hosts.load(loaded.host.name).load_folder(folder)[0]  # pyright: ignore[reportArgumentType]
    model = loaded.host.model(native)
    plain = loaded.model.predict_noise(x, t, condition)
    torch.testing.assert_close(model.predict_noise(x, t, condition), plain)  # none given, none taken
    omega = torch.tensor([7.0])
    expected = loaded.host.model(guided(loaded, 7.0)).predict_noise(x, t, condition)
    got = model.predict_noise(x, t, condition, guidance_embedding=omega)
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


def lcm_folder(random_folder: Path, tmp_path: Path) -> Path:
    """The random folder as diffusers saves a full LCM."""
    import json
    import shutil

    folder = tmp_path / "lcm"
    shutil.copytree(random_folder, folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "time_embedding.cond_proj.weight": PROJECTION.to(next(iter(tensors.values())))}, weights)
    config = json.loads((folder / "unet" / "config.json").read_text())
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "time_cond_proj_dim": 256}))
    return folder


@pytest.mark.parametrize("gamma", [None, 0.3])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_sampler_is_algorithm_3_on_the_seeds_noise(loaded: Loaded, steps: int, gamma: float | None) -> None:
    times = lcm_timesteps(steps)
    native = guided(loaded, 7.0)
    with torch.no_grad():
        model, noise = loaded.host.model(native), normal_noise((2, 4, 16, 16), SEED)
        expected = consistency_sample(
            model, noise, loaded.text.encode(["a red ball"]), times, noise_after_start(noise, SEED), gamma=gamma
        )
    calls: list[int] = []
    hook = network(loaded, native).register_forward_hook(lambda _, args, out: calls.append(len(args[0])))
    got = sample(loaded, sigmas_of(loaded, steps), empty(), native, gamma=gamma)
    hook.remove()
    assert calls == [2] * steps  # one evaluation for a step
    torch.testing.assert_close(got, model.unscale(expected), rtol=0, atol=2e-4)


def test_one_evaluation_for_a_step_and_two_prompts_above_cfg_1(loaded: Loaded, calls: list[int]) -> None:
    sample(loaded, sigmas_of(loaded, 4), empty())
    assert calls == [2] * 4
    calls.clear()
    sample(loaded, sigmas_of(loaded, 4), empty(), negative=conditioning(loaded, ""), cfg=2.0)
    assert calls == [4] * 4


def test_cfg_and_guidance_embedding_together(loaded: Loaded) -> None:
    native = guided(loaded, 7.0)
    noise = normal_noise((2, 4, 16, 16), SEED)
    model = loaded.host.model(native)
    t = torch.tensor([999, 999])
    eps, null = (model.predict_noise(noise, t, loaded.text.encode([text])) for text in ("a red ball", ""))
    expected = model.schedule.x0_from_epsilon(noise, guide(null, eps, 2.0), t)
    got = sample(loaded, sigmas_of(loaded, 1), empty(), native, negative=conditioning(loaded, ""), cfg=2.0)
    # At t = 999 x_0 is the noise prediction's error times 15.
    torch.testing.assert_close(got, model.unscale(expected), rtol=0, atol=1e-2)


def test_image_to_image_starts_from_the_image(loaded: Loaded) -> None:
    image = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    weak, strong = (
        sample(loaded, sigmas_of(loaded, 2, strength=strength), {"samples": image}) for strength in (0.04, 1.0)
    )
    assert (weak - image).abs().mean() < 0.3 * (strong - image).abs().mean()


def test_a_mask_keeps_the_picture(loaded: Loaded) -> None:
    image = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 128, 128)
    mask[..., :64] = 1
    for gamma in (None, 0.3):
        done = sample(loaded, sigmas_of(loaded, 4), {"samples": image, "noise_mask": mask}, gamma=gamma)
        torch.testing.assert_close(done[..., 10:], image[..., 10:], rtol=0, atol=1e-4)
        assert (done[..., :6] - image[..., :6]).abs().mean() > 0.1


def test_a_batch_index_picks_the_start_noise(loaded: Loaded) -> None:
    whole = sample(loaded, sigmas_of(loaded, 1), empty(3))
    last = sample(loaded, sigmas_of(loaded, 1), {**empty(1), "batch_index": [2]})
    torch.testing.assert_close(last[0], whole[2], rtol=0, atol=1e-3)


def test_a_last_level_above_zero_leaves_its_noise(loaded: Loaded) -> None:
    sigmas = sigmas_of(loaded, 4)[:3]
    sampler = loaded.host.sampler("lcm", consistency_steps)
    prompt = conditioning(loaded)
    done, clean = loaded.host.sample(loaded.native[0], sampler, sigmas, prompt, None, 1.0, empty(), SEED)
    draw = noise_after_start(torch.zeros(2, 4, 16, 16), SEED)
    draw()
    left = loaded.model.scale(done["samples"]) - loaded.model.scale(clean["samples"])
    torch.testing.assert_close(left, sigmas[2] * draw(), rtol=0, atol=1e-4)


def test_an_empty_latent_of_other_channels_fits_the_model(loaded: Loaded) -> None:
    assert sample(loaded, sigmas_of(loaded, 1), {"samples": torch.zeros(1, 1, 16, 16)}).shape == (1, 4, 16, 16)
