"""Pairs of layers: what is kept is kept, the object is out of its background, and the same seed makes the same."""

import pytest
import torch
import torch.nn.functional as F

from velatura.core.alpha import over
from velatura.core.ddim import ddim_timesteps
from velatura.core.protocols import Condition
from velatura.core.schedule import NoiseSchedule
from velatura.training.pairs import make_pairs, shrunk

SIDE = 64
SCHEDULE = NoiseSchedule.scaled_linear()


class Painter:
    """Knows one grey for each prompt, and predicts the noise towards it."""

    schedule, latent_channels, device, dtype = SCHEDULE, 3, torch.device("cpu"), torch.float32

    def predict_noise(self, x, t, condition, *, guidance_embedding=None):
        target = condition.embedding.mean((1, 2)).view(-1, 1, 1, 1).expand_as(x)
        return SCHEDULE.epsilon_from_x0(x, target, t)


class Codec:
    """Means of cells, and cells of one colour."""

    latent_channels, factor = 3, 8

    def encode(self, image):
        return F.avg_pool2d(image, 8)

    def decode(self, latent):
        return F.interpolate(latent, scale_factor=8.0).clamp(-1, 1)


def told(value):
    return Condition(torch.full((1, 1, 1), value))


def a_disc():
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    radius = ((x - 31.5) ** 2 + (y - 31.5) ** 2).sqrt()
    alpha = (20 - radius).clamp(0, 1)[None, None]
    return torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE), alpha


def made(seed=0, **more):
    colour, alpha = a_disc()
    options = {"w": 1.0, "timesteps": ddim_timesteps(1000, 4), "generator": torch.Generator().manual_seed(seed)} | more
    return make_pairs(Painter(), Codec(), colour, alpha, told(0.5), told(-0.5), told(0.0), **options)


def test_the_object_is_in_the_scene_and_not_in_the_background():
    """The scene was painted around the object with its own prompt; behind it the prompt says nothing is there."""
    colour, alpha = a_disc()
    pair = made()
    torch.testing.assert_close(pair.scene, over(colour, alpha, pair.background)[0])
    inside, outside = (alpha == 1).expand(1, 3, -1, -1), (shrunk((alpha == 0).float()) == 1).expand(1, 3, -1, -1)
    assert torch.equal(pair.scene[inside], colour[inside])
    torch.testing.assert_close(pair.background[outside], torch.full_like(pair.background[outside], 0.75))
    red = pair.background[:, 0] - pair.background[:, 1]
    assert red.abs().max() < 0.02 and pair.background[inside].max() < 0.7
    centre = pair.background[..., 28:36, 28:36]
    torch.testing.assert_close(centre, torch.full_like(centre, 0.25))


def test_what_is_kept_shrinks_by_8_pixels_in_1024():
    mask = torch.ones(1, 1, 1024, 32)
    mask[:, :, :512] = 0
    assert shrunk(mask)[0, 0, :, 0].argmax() == 520 and shrunk(mask)[0, 0, -1].all()
    small = torch.ones(1, 1, 128, 128)
    small[..., :64] = 0
    assert shrunk(small)[0, 0, 0].argmax() == 65


def test_progress_counts_both_paintings_and_the_seed_decides():
    seen = []
    first = made(progress=lambda step, total, preview: seen.append((step, total)))
    assert seen == [(n, 8) for n in range(1, 9)]
    assert torch.equal(first.background, made().background)


def test_an_object_that_is_hardly_there_is_refused():
    colour, alpha = a_disc()
    with pytest.raises(ValueError, match="alpha"):
        make_pairs(
            Painter(), Codec(), colour, alpha * 0.3, told(0.5), told(-0.5), told(0.0),
            timesteps=ddim_timesteps(1000, 4), generator=torch.Generator(),
        )  # fmt: skip
