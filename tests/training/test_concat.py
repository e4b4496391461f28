"""The trainer of spatial conditions: where it starts, what it trains, what its file means in a host, and a run that is
killed and resumed."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from velatura.core.layer_patch import LayerPatch
from velatura.core.protocols import Condition
from velatura.core.schedule import NoiseSchedule
from velatura.core.spatial_file import SpatialPatch, spatial_patch_from
from velatura.hosts import load
from velatura.hosts.diffusers import build
from velatura.hosts.diffusers.model import DiffusersModel
from velatura.training.concat import ConcatSettings, ToldLayers, read_told, train, write_told

SCHEDULE = NoiseSchedule.scaled_linear()
UNET = {
    "block_out_channels": [8, 8],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
NULL = Condition(torch.zeros(1, 3, 16))
SETTINGS = {"steps": 6, "batch": 2, "rate": 1e-2, "warmup": 0, "save_every": 3}
GIVEN = 8


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def new_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DiffusersModel(build.new_unet(UNET), SCHEDULE)


def examples(first, count):
    """The latent is what is given, blurred: who reads it can tell the noise."""
    given = torch.stack([seeded(GIVEN, 4, 4, seed=n) for n in range(first, first + count)])
    texts = torch.stack([seeded(3, 16, seed=1000 + n) for n in range(first, first + count)])
    return given[:, :4] + given[:, 4:], Condition(texts), given


def run(folder, settings=None, model=None, **more):
    model = model or new_model()
    layers = ToldLayers(model.layers(), GIVEN, 2, which="attn1|conv")
    return train(model, layers, examples, NULL, settings or ConcatSettings(**SETTINGS), folder, **more)


@torch.no_grad()
def test_training_starts_from_the_model_that_was_there():
    model = new_model()
    layers = ToldLayers(model.layers(), GIVEN, 2)
    z_0, condition, given = examples(0, 2)
    t = torch.tensor([10, 700])
    torch.testing.assert_close(layers(model, z_0, t, condition, given), model.predict_noise(z_0, t, condition))


def test_the_loss_falls_and_what_is_given_is_what_was_learned(tmp_path):
    """Two pictures again and again, without words: told the other one's condition, the model does worse."""
    few = {"steps": 60, "rate": 3e-2, "save_every": 60, "ema": 0.5}
    model, losses = new_model(), []
    layers = ToldLayers(model.layers(), GIVEN, 4)
    z_0, _, given = examples(0, 2)
    settings = ConcatSettings(**SETTINGS | few, prompt_dropout=0.0)
    watch = lambda step, seen: losses.append(seen["loss"])  # noqa: E731
    best = train(
        model, layers, lambda first, count: (2 * z_0, NULL, given), NULL, settings, tmp_path, watch=watch
    ).modules["layers"]
    assert sum(losses[-20:]) < 0.95 * sum(losses[:20])
    eps, t = seeded(32, 2, 4, 4, 4), torch.tensor([700, 700])
    with torch.no_grad():
        errors = [
            sum(
                float((best(model, SCHEDULE.add_noise(2 * z_0, each, t), t, NULL, what) - each).square().mean())
                for each in eps
            )
            for what in (given, given.flip(0))
        ]
    assert errors[0] < 0.98 * errors[1], errors


def test_the_columns_and_the_lora_learn_and_nothing_else(tmp_path):
    model = new_model()
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    rng = torch.get_rng_state()
    best = run(tmp_path, model=model).modules["layers"]
    assert best.columns.abs().max() > 0
    assert all(up.abs().max() > 0 for up in best.lora.up.values())
    assert all(torch.equal(value, model.unet.state_dict()[name]) for name, value in before.items())
    assert torch.equal(rng, torch.get_rng_state())


def test_the_file_means_in_a_host_what_was_trained(tmp_path):
    model = new_model()
    best = run(tmp_path, model=model).modules["layers"]
    path = tmp_path / "told.safetensors"
    write_told(path, best, SpatialPatch(LayerPatch(), "small picture", size=32))
    with safe_open(path, "pt") as file:
        patch = spatial_patch_from({name: file.get_tensor(name) for name in file.keys()}, file.metadata())  # noqa: SIM118
    assert patch.size == 32 and patch.channels() == 4 + GIVEN
    z_0, condition, given = examples(5, 2)
    t = torch.tensor([10, 700])
    raw = torch.cat([model.unscale(part) for part in given.split(4, 1)], 1)
    with torch.no_grad():
        made = load("diffusers").with_layer_patch(model, patch.patch, 1.0, 0.0, 1.0, raw)
        torch.testing.assert_close(
            made.predict_noise(z_0, t, condition), best(model, z_0, t, condition, given), atol=2e-3, rtol=2e-3
        )


def test_killed_and_resumed_is_bit_for_bit_the_whole_run(tmp_path):
    settings = ConcatSettings(**SETTINGS, given_dropout=0.3, min_snr=5.0)
    whole = run(tmp_path / "whole", settings)

    def kill(done, total, preview=None):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", settings, progress=kill)
    resumed = run(tmp_path / "broken", settings, resume=True).modules["layers"].state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.modules["layers"].state_dict().items())


def test_another_run_goes_on_from_a_file_of_the_same_layers_only(tmp_path):
    best = run(tmp_path / "first").modules["layers"]
    path = tmp_path / "told.safetensors"
    write_told(path, best, SpatialPatch(LayerPatch(), "small picture"))
    layers = new_model().layers()
    other = ToldLayers(layers, GIVEN, 2, which="attn1|conv", seed=9)
    read_told(path, other)
    torch.testing.assert_close(other.columns, best.columns, atol=1e-3, rtol=1e-3)
    name = next(iter(best.lora.up))
    torch.testing.assert_close(other.lora.up[name], best.lora.up[name], atol=1e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="expected 4 channels beside the noise"):
        read_told(path, ToldLayers(layers, 4, 2, which="attn1|conv"))
    with pytest.raises(ValueError, match="rank"):
        read_told(path, ToldLayers(layers, GIVEN, 3, which="attn1|conv"))


def test_less_strength_trains_the_lower_noise_levels_alone(tmp_path):
    model, seen = new_model(), []
    predict = model.predict_noise

    def watched(x, t, condition):
        seen.append(int(t.max()))
        return predict(x, t, condition)

    model.predict_noise = watched
    run(tmp_path, ConcatSettings(**SETTINGS, strength=0.3), model=model)
    assert 150 < max(seen) < 300


@pytest.mark.parametrize(
    "bad", [{"given_dropout": 1.0}, {"prompt_dropout": -0.1}, {"min_snr": -1.0}, {"strength": 0.0}]
)
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ConcatSettings(**bad)


def test_what_cannot_be_trained_is_refused(tmp_path):
    model = new_model()
    with pytest.raises(ValueError, match="has no conv_in"):
        ToldLayers({"other": torch.nn.Linear(2, 2)}, GIVEN, 2)
    with pytest.raises(ValueError, match="channels: expected at least 1"):
        ToldLayers(model.layers(), 0, 2)
    layers = ToldLayers(model.layers(), GIVEN, 2)
    with pytest.raises(ValueError, match="prompt_dropout needs"):
        train(model, layers, examples, None, ConcatSettings(**SETTINGS), tmp_path)
