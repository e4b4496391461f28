"""The trainer of layer LoRAs: whose LoRA runs where, what is trained, and a run that is killed and resumed."""

from __future__ import annotations

import pytest
import torch

from velatura.core.ddim import ddim_sample, ddim_timesteps
from velatura.core.lora import read_lora
from velatura.core.protocols import Condition
from velatura.core.schedule import NoiseSchedule
from velatura.hosts.diffusers import build
from velatura.hosts.diffusers.model import DiffusersModel
from velatura.training import adapters
from velatura.training.layers import LayerLoras, LayerSettings, drawn, train

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


def seeded(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def new_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DiffusersModel(build.new_unet(UNET), SCHEDULE)


def new_loras(model, count, *, learned=False, which="attention"):
    made = [adapters.LowRankLayers(model.layers(), 2, which=which, seed=k) for k in range(count)]
    if learned:
        for k, lora in enumerate(made):
            for n, up in enumerate(lora.up.values()):
                up.data.copy_(seeded(*up.shape, seed=100 * k + n) / 10)
    return LayerLoras(made)


def data(layers):
    """Every sample its own latents and prompts, the same for the same number."""

    def examples(first, count):
        rows = [seeded(layers, 4, 4, 4, seed=n) for n in range(first, first + count)]
        texts = [seeded(layers, 3, 16, seed=1000 + n) for n in range(first, first + count)]
        return torch.cat(rows), Condition(torch.cat(texts))

    return examples


def run(folder, layers=2, settings=None, model=None, loras=None, **more):
    model = model or new_model()
    loras = loras or new_loras(model, layers)
    return train(model, loras, data(layers), NULL, settings or LayerSettings(**SETTINGS), folder, **more)


@torch.no_grad()
def test_a_layer_runs_as_its_own_lora_would_and_the_layers_see_each_other():
    """In a network without self-attention to share each row is what the merged LoRA of its layer gives; the rows of
    one sample depend on each other, those of two samples do not."""
    model = new_model()
    loras = new_loras(model, 2, learned=True, which=r"attn2|conv")
    z, condition = data(2)(0, 3)
    t = torch.tensor([5, 5, 400, 400, 900, 900])
    rows = loras(model, z, t, condition)
    for k in range(2):
        alone = model.with_lora(loras.loras[k].deltas())
        with torch.no_grad():
            both = torch.stack([z[k::2]] * 2, 1).flatten(0, 1)
            same = Condition(condition.embedding[k::2].repeat_interleave(2, 0))
            # Two layers that are the same share attention with themselves, which changes nothing.
            expected = alone.predict_noise(z[k::2], t[k::2], Condition(condition.embedding[k::2]))
            twins = LayerLoras([loras.loras[k], loras.loras[k]])(model, both, t, same)[::2]
        torch.testing.assert_close(twins, expected, atol=1e-5, rtol=1e-4)
    moved = z.clone()
    moved[1] += 1  # the second layer of the first sample
    change = (loras(model, moved, t, condition) - rows).abs().amax((1, 2, 3))
    assert (change[:2] > 1e-4).all() and (change[2:] == 0).all()


def test_a_clean_layer_is_given_as_it_is_and_not_trained(tmp_path):
    """At conditional = 1 one layer of each sample is seen at t = 0 without noise, and its LoRA alone has no part in
    the loss; over many samples each layer is it as often."""
    settings = LayerSettings(**SETTINGS, conditional=1.0, prompt_dropout=0.5)
    z = torch.zeros(2000, 4, 1, 1)
    r = drawn(z, 2, 1000, settings, torch.Generator().manual_seed(0))
    clean = r.clean.view(-1, 2)
    assert (clean.sum(1) == 1).all() and 0.45 < clean[:, 0].float().mean() < 0.55
    assert (r.t[r.clean] == 0).all() and r.t.view(-1, 2)[clean[:, 1]][:, 0].float().mean() > 400
    assert 0.45 < r.dropped[~r.clean].float().mean() < 0.55 and 0.7 < r.dropped[r.clean].float().mean() < 0.8
    both = drawn(z, 2, 1000, LayerSettings(**SETTINGS, prompt_dropout=0.5), torch.Generator().manual_seed(0)).dropped
    assert torch.equal(both[::2], both[1::2])  # all layers of a sample lose their prompts together

    model, seen = new_model(), []
    predict = model.predict_noise

    def watched(x, t, condition):
        seen.append((x.clone(), t.clone()))
        return predict(x, t, condition)

    model.predict_noise = watched
    run(tmp_path, settings=settings, model=model)
    for number, (x, t) in enumerate(seen):
        z_0 = data(2)(2 * number, 2)[0]
        as_it_is = (x == z_0).flatten(1).all(1)
        assert as_it_is.view(-1, 2).sum(1).tolist() == [1, 1] and (t[as_it_is] == 0).all()


def test_both_loras_and_nothing_else_learn(tmp_path):
    model = new_model()
    before = {name: value.clone() for name, value in model.unet.state_dict().items()}
    rng = torch.get_rng_state()
    done = run(tmp_path, model=model, settings=LayerSettings(**SETTINGS, conditional=0.3))
    for lora in done.modules["loras"].loras:
        assert all(up.abs().max() > 0 for name, up in lora.up.items() if "attn1" in name)
    assert all(torch.equal(value, model.unet.state_dict()[name]) for name, value in before.items())
    assert torch.equal(rng, torch.get_rng_state())


@pytest.mark.parametrize("layers", [1, 2])
def test_the_loss_falls_and_the_file_is_the_average(tmp_path, layers):
    """A few examples again and again: what is learned is what a host reads from the file."""
    model, few = new_model(), data(layers)
    settings = LayerSettings(**SETTINGS | {"steps": 40, "rate": 3e-2, "ema": 0.5, "save_every": 40}, min_snr=5.0)
    loras, losses = new_loras(model, layers), []
    watch = lambda step, seen: losses.append(seen["loss"])  # noqa: E731
    done = train(model, loras, lambda first, count: few(0, count), NULL, settings, tmp_path, watch=watch)
    assert sum(losses[-15:]) < 0.97 * sum(losses[:15])
    best = done.modules["loras"]
    file = adapters.lora_tensors(best.loras[0].deltas())
    adapters.write_weights(tmp_path / "first.safetensors", file)
    from safetensors.torch import load_file

    merged = model.with_lora(read_lora(load_file(tmp_path / "first.safetensors")))
    condition = few(0, 2)[1]
    timesteps, start = ddim_timesteps(1000, 3), seeded(2, 4, 4, 4, seed=5)
    rows = Condition(condition.embedding[::layers])
    with torch.no_grad():
        expected = ddim_sample(merged, start, rows, timesteps=timesteps)
        with LayerLoras([best.loras[0]]).applied(model):
            made = ddim_sample(model, start, rows, timesteps=timesteps)
    torch.testing.assert_close(made, expected, atol=2e-2, rtol=2e-2)


def test_killed_and_resumed_is_bit_for_bit_the_whole_run(tmp_path):
    settings = LayerSettings(**SETTINGS, conditional=0.3)
    whole = run(tmp_path / "whole", settings=settings)

    def kill(done, total, preview=None):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", settings=settings, progress=kill)
    resumed = run(tmp_path / "broken", settings=settings, resume=True).modules["loras"].state_dict()
    expected = whole.modules["loras"].state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())


def test_low_memory_trains_the_same(tmp_path):
    plain = run(tmp_path / "plain").modules["loras"].state_dict()
    low = run(tmp_path / "low", low_memory=True).modules["loras"].state_dict()
    for name, value in plain.items():
        torch.testing.assert_close(low[name], value, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("bad", [{"conditional": 1.5}, {"prompt_dropout": 1.0}, {"min_snr": -1.0}])
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        LayerSettings(**bad)


def test_what_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(ValueError, match="conditional"):
        run(tmp_path, layers=1, settings=LayerSettings(**SETTINGS, conditional=0.5))
    with pytest.raises(ValueError, match="null"):
        train(new_model(), new_loras(new_model(), 1), data(1), None, LayerSettings(**SETTINGS), tmp_path)
    with pytest.raises(ValueError, match="one at least"):
        LayerLoras([])
