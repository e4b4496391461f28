"""A run that is killed and resumed ends as one that was not; a checkpoint is whole, ours and of this recipe, or
refused."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from velatura.core.schedule import NoiseSchedule
from velatura.hosts.diffusers import build
from velatura.training import autoencoder, checkpoint, diffusion, loop, supervised
from velatura.training.share import Draw


class Killed(Exception):
    """Stands for whatever ends a run early."""


def kill_at(step: int):
    def progress(done: int, total: int, preview: object = None) -> None:
        if done == step:
            raise Killed

    return progress


def images(first: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(first)
    return torch.rand(count, 3, 16, 16, generator=generator) * 2 - 1


def new_vae(regulariser: str) -> nn.Module:
    config = {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build.new_autoencoder(config | ({"num_vq_embeddings": 8} if regulariser == "vq" else {}))


def train_vae(folder, regulariser, **options):
    settings = autoencoder.AutoencoderSettings(
        steps=8, batch=2, rate=1e-3, warmup=2, save_every=3, adversarial=0.1, adversarial_from=2
    )
    return autoencoder.train(new_vae(regulariser), images, settings, folder, **options).modules["vae"]


def new_denoiser() -> tuple[nn.Module, nn.Module]:
    unet = {
        "block_out_channels": [8, 8],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
    }
    text = {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 4, "eos_token_id": 8, "bos_token_id": 7}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build.new_unet(unet), build.new_text_encoder(text)


def examples(first: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(first)
    return torch.randn(count, 4, 8, 8, generator=generator), torch.randint(0, 7, (count, 4), generator=generator)


def train_diffusion(folder, **options):
    settings = diffusion.DiffusionSettings(steps=8, batch=3, rate=1e-3, warmup=2, save_every=3, min_snr=5.0)
    unet, text = new_denoiser()
    null = torch.full((4,), 8)
    done = diffusion.train(unet, text, examples, null, NoiseSchedule.scaled_linear(), settings, folder, **options)
    return nn.ModuleDict(done.modules)


def train_network(folder, steps=8, **options):
    settings = loop.Settings(steps=steps, batch=4, rate=1e-2, warmup=2, save_every=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Linear(3, 1)

    def loss(model: nn.Module, first: int, count: int, draw: Draw) -> Tensor:
        x = draw(lambda count, generator: torch.randn(count, 3, generator=generator))
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    return supervised.train(network, loss, settings, folder, **options).modules["network"]


def drawn(first: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + first)
    return 3 * torch.randn(count, 4, 8, 8, generator=generator), images(500 + first, count)


def train_drawn(folder, **options):
    settings = autoencoder.AutoencoderSettings(
        steps=8, batch=2, rate=1e-3, warmup=2, save_every=3, decoder_only=True, drawn=1
    )
    return autoencoder.train(new_vae("kl"), images, settings, folder, drawn=drawn, **options).modules["vae"]


RUNS = {
    "drawn": train_drawn,
    "kl": lambda folder, **options: train_vae(folder, "kl", **options),
    "vq": lambda folder, **options: train_vae(folder, "vq", **options),
    "diffusion": train_diffusion,
    "supervised": train_network,
}


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_resumed_is_bit_for_bit_the_whole_run(name, tmp_path):
    whole = RUNS[name](tmp_path / "whole").state_dict()
    with pytest.raises(Killed):
        RUNS[name](tmp_path / "broken", progress=kill_at(5))
    resumed = RUNS[name](tmp_path / "broken", resume=True).state_dict()
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key
    start = new_vae(name) if name in ("kl", "vq") else None
    if start is not None:
        assert any(not torch.equal(value, whole[key]) for key, value in start.state_dict().items())


def test_who_watches_sees_every_loss_and_on_resuming_what_was_recorded_before(tmp_path):
    def watched(steps, **options):
        seen = {}
        job = loop.Job({"network": nn.Linear(1, 1)}, {}, lambda step, _: {"loss": step + 0.5}, {})
        job.watch = lambda step, losses: seen.update({step: losses["loss"]})
        settings = loop.Settings(steps=steps, save_every=1000)
        loop.fit(job, settings, tmp_path, loop.accelerator_for(settings, cpu=True), **options)
        return seen

    assert watched(25) == {step: step + 0.5 for step in range(25)}
    assert watched(28, resume=True) == {step: step + 0.5 for step in (0, 10, 20, 25, 26, 27)}


def test_a_process_that_dies_between_checkpoints_resumes_from_the_last(tmp_path):
    whole = train_network(tmp_path / "whole").state_dict()
    with pytest.raises(Killed):
        train_network(tmp_path / "broken", progress=kill_at(3))
    kept = (tmp_path / "broken" / loop.CHECKPOINT).read_bytes()
    with pytest.raises(Killed):
        train_network(tmp_path / "broken", resume=True, progress=kill_at(5))
    (tmp_path / "broken" / loop.CHECKPOINT).write_bytes(kept)  # as after a power cut at step 5
    resumed = train_network(tmp_path / "broken", resume=True).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_training_touches_no_global_random_state(tmp_path):
    before = torch.get_rng_state()
    train_diffusion(tmp_path / "diffusion")
    train_vae(tmp_path / "vae", "kl")
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_is_not_overwritten(tmp_path):
    train_network(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match="there is a run here"):
        train_network(tmp_path)


def test_resuming_without_a_checkpoint_says_so(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint here"):
        train_network(tmp_path, resume=True)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    train_network(tmp_path)
    path = tmp_path / loop.CHECKPOINT
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(checkpoint.CheckpointError, match="not a whole training checkpoint"):
        train_network(tmp_path, resume=True)


def test_a_checkpoint_of_another_recipe_is_refused_and_names_the_field(tmp_path):
    then = dataclasses.asdict(loop.Settings())
    with pytest.raises(checkpoint.CheckpointError, match=r"rate 0\.0001 then, 0\.1 now"):
        checkpoint.same_recipe(tmp_path, then, then | {"rate": 0.1, "steps": 5}, loop.FREE)
    checkpoint.same_recipe(tmp_path, then, then | {"steps": 5}, loop.FREE)


def test_a_run_may_be_resumed_with_more_steps(tmp_path):
    train_network(tmp_path, steps=4)
    train_network(tmp_path, steps=6, resume=True)
    assert checkpoint.read_tensors(tmp_path / loop.CHECKPOINT)[1]["step"] == 6


def test_no_room_is_said_before_any_work(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="MB of disk"):
        checkpoint.need_room(tmp_path, 10**18)


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    full = "/dev/full"
    try:
        with open(full, "wb", buffering=0) as device:
            device.write(b"x")
    except FileNotFoundError:
        pytest.skip("this system has no /dev/full")
    except OSError as error:
        path = tmp_path / loop.CHECKPOINT
        checkpoint.write_tensors(path, {"a": torch.zeros(1)}, {})
        with pytest.raises(checkpoint.CheckpointError, match="the disk is full"), checkpoint.whole(path):
            raise error
        assert checkpoint.read_tensors(path)[0]["a"].item() == 0
        assert [p.name for p in tmp_path.iterdir()] == [loop.CHECKPOINT]


def test_a_loss_that_explodes_stops_the_run(tmp_path):
    def loss(model: nn.Module, *_: object) -> Tensor:
        return model(torch.full((1, 3), float("inf"))).sum()

    with pytest.raises(ValueError, match="not finite at step 0"):
        supervised.train(nn.Linear(3, 1), loss, loop.Settings(steps=3, batch=1), tmp_path)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"rate": 0.0}, {"rate": 2.0}, {"ema": 1.0}, {"precision": "fp8"}])
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        loop.Settings(**bad)


def test_the_rate_warms_up_stays_and_falls():
    settings = loop.Settings(steps=100, rate=1.0, warmup=9, cooldown=0.2)
    rates = [loop.rate_at(settings, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[79] == 1.0
    assert rates[80:] == sorted(rates[80:], reverse=True) and rates[-1] < 0.1


def test_standardised_latents_leave_the_reconstruction_as_it_was():
    vae = new_vae("kl").eval()
    image = images(0, 4)
    raw = autoencoder.encode_mean(vae, image)
    spread = vae.encode(image).latent_dist.std
    with torch.no_grad():
        before = vae.decode(raw).sample
        autoencoder.standardise(vae, raw)
        latents = autoencoder.encode_mean(vae, image)
        after = vae.decode(latents).sample
    assert torch.allclose(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-4)
    assert torch.allclose(latents.std((0, 2, 3)), torch.ones(4), atol=1e-4)
    assert torch.allclose(before, after, atol=1e-4)
    deviation = raw.std((0, 2, 3)).view(1, 4, 1, 1)
    assert torch.allclose(vae.encode(image).latent_dist.std, spread / deviation, rtol=1e-3)


def test_stratified_timesteps_cover_the_schedule_evenly():
    t = diffusion.stratified(50, 1000, torch.Generator().manual_seed(0))
    assert torch.equal(t // 20, torch.arange(50)) and len((t % 20).unique()) > 5


def test_min_snr_weights_only_the_clean_end_less():
    schedule = NoiseSchedule.scaled_linear()
    weight = diffusion.loss_weight(schedule, torch.tensor([0, 500, 999]), 5.0)
    assert weight[0] < 0.01 and weight[1] == weight[2] == 1
    assert torch.equal(diffusion.loss_weight(schedule, torch.tensor([0, 999]), 0.0), torch.ones(2))


def test_training_only_the_decoder_leaves_every_latent_as_it_was(tmp_path):
    vae = new_vae("kl")
    settings = autoencoder.AutoencoderSettings(steps=3, batch=2, rate=1e-2, warmup=0, decoder_only=True)
    latents, decoder = autoencoder.encode_mean(vae, images(0, 2)), vae.decoder.conv_out.weight.clone()
    best = autoencoder.train(vae, images, settings, tmp_path).modules["vae"]
    assert torch.allclose(autoencoder.encode_mean(best, images(0, 2)), latents, atol=1e-5)
    assert not torch.equal(best.decoder.conv_out.weight, decoder)


def test_latents_that_were_drawn_are_trained_to_the_pictures_they_were_given(tmp_path):
    """Were those rows not in the loss, only the error on real pictures would fall."""

    def error(vae) -> float:
        latents, pictures = drawn(0, 1)
        with torch.no_grad():
            return float((vae.decode(latents).sample - pictures).square().mean())

    settings = autoencoder.AutoencoderSettings(
        steps=60, batch=1, rate=1e-2, warmup=0, decoder_only=True, drawn=1, save_every=60
    )
    one = lambda first, count: drawn(0, 1)  # noqa: E731
    vae = new_vae("kl")
    before = error(vae)
    best = autoencoder.train(vae, images, settings, tmp_path, drawn=one).modules["vae"]
    assert error(best) < 0.8 * before


@pytest.mark.parametrize(("rows", "given"), [(1, None), (0, drawn)])
def test_drawn_rows_and_where_they_come_from_belong_together(rows, given, tmp_path):
    settings = autoencoder.AutoencoderSettings(steps=1, batch=1, drawn=rows)
    with pytest.raises(ValueError, match=rf"drawn: expected latents exactly where .* got {rows}"):
        autoencoder.train(new_vae("kl"), images, settings, tmp_path, drawn=given)
    assert not list(tmp_path.iterdir())
