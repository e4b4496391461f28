"""The trainer of latent transparency: its losses, and a run that is killed and resumed."""

import pytest
import torch
import torch.nn.functional as F

from velatura.core.transparency import TransparencyDecoder, TransparencyEncoder
from velatura.training.transparency import Frozen, Pair, TransparencySettings, misses, reconstruction_loss, train

WIDTHS = (8, 8, 8, 8)
SETTINGS = {"steps": 6, "batch": 2, "rate": 1e-3, "warmup": 0, "save_every": 3, "adversarial_from": 2}


def frozen():
    """Averages over cells, and spreads them again: what it decodes is a known function of the latent."""
    return Frozen(
        lambda image: (F.avg_pool2d(image, 8)[:, [0, 1, 2, 0]], torch.full((len(image), 4, 2, 2), 0.1)),
        lambda latent: F.interpolate(latent[:, :3], scale_factor=8.0),
    )


def pictures(first, count):
    drawn = torch.rand(count, 4, 16, 16, generator=torch.Generator().manual_seed(first))
    return drawn[:, :3], drawn[:, 3:]


def pair():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TransparencyEncoder(WIDTHS), TransparencyDecoder(WIDTHS, layers=1, attention_from=4)


def run(folder, settings=None, **more):
    return train(*pair(), frozen(), pictures, settings or TransparencySettings(**SETTINGS), folder, **more)


def test_the_losses_are_the_papers():
    out, colour, alpha = (torch.rand(2, n, 4, 4, dtype=torch.float64) for n in (4, 3, 1))
    plain = (out[:, 1:] - colour).abs().mean() + (out[:, :1] - alpha).abs().mean()
    torch.testing.assert_close(reconstruction_loss(out, colour, alpha, TransparencySettings()), plain)
    weighed = reconstruction_loss(out, colour, alpha, TransparencySettings(visible=1.0))
    expected = ((out[:, 1:] - colour) * (1 + alpha)).abs().mean() + (out[:, :1] - alpha).abs().mean()
    torch.testing.assert_close(weighed, expected)


def test_a_dropped_offset_leaves_the_autoencoders_own_latent():
    whole = Pair(*pair()).double()
    colour, alpha = (each.double() for each in pictures(0, 2))
    mean, std = (each.double() for each in frozen().posterior(colour))
    scale = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    _, image = whole(colour, alpha, mean, std, scale, frozen().decode)
    assert torch.equal(image[0], frozen().decode(mean)[0]) and not torch.equal(image[1], frozen().decode(mean)[1])


def test_the_decoder_alone_is_trained_on_turned_and_shaken_latents_and_the_encoder_kept(tmp_path):
    """Latents made with the encoder before stay good only if no bit of it changes."""
    encoder, decoder = pair()
    before = [{name: value.clone() for name, value in part.state_dict().items()} for part in (encoder, decoder)]
    alone = TransparencySettings(**SETTINGS | {"keep_encoder": True, "turned": True, "shake": 0.1})
    train(encoder, decoder, frozen(), pictures, alone, tmp_path)
    kept, moved = (
        all(torch.equal(value, part.state_dict()[name]) for name, value in old.items())
        for old, part in zip(before, (encoder, decoder), strict=True)
    )
    assert kept and not moved
    with pytest.raises(ValueError, match="keep_encoder trains the decoder alone"):
        TransparencySettings(shake=0.1)


def test_what_a_model_misses_has_mean_square_one_at_every_extent():
    """Noise of every extent would be a mere number of `shake`, were its size not known."""
    off = misses(torch.empty(4000, 2, 8, 8, device="meta"), torch.Generator().manual_seed(0))
    whole, own = off.mean((2, 3)).square().mean(), (off - off.mean((2, 3), keepdim=True)).square().mean()
    assert 0.2 < float(whole) < 0.6 and 0.2 < float(own) < 0.7
    assert 0.7 < float(off.square().mean()) < 1.05  # what is spread between places has a little less


def test_killed_and_resumed_is_bit_for_bit_the_whole_run(tmp_path):
    whole = run(tmp_path / "whole")
    assert set(whole.history) == {"reconstruction", "identity"}

    def kill(done, total, preview=None):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", progress=kill)
    resumed = run(tmp_path / "broken", resume=True).modules["pair"].state_dict()
    expected = whole.modules["pair"].state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())


def test_training_learns_and_touches_no_global_random_state(tmp_path):
    before = torch.get_rng_state()
    settings = TransparencySettings(**SETTINGS | {"steps": 41, "rate": 5e-3, "adversarial": 0.0})
    losses = run(tmp_path, settings).history["reconstruction"]
    assert losses[-1] < 0.7 * losses[0] and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("bad", [{"dropout": 1.5}, {"backdrop": 2.0}, {"scale": 0.0}, {"identity": -1.0}])
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        TransparencySettings(**bad)
