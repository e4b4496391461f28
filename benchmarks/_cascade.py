"""Why not a cascade of pixel models (Latent Diffusion, section 1): two of them, each twice as large as the one before,
against one latent model, trained from nothing on the same pictures in the same time.

The stages of a cascade are trained apart: the second learns from true pictures and is then given the first one's. What
the first gets wrong is a picture like any other to it. Both ways get as many seconds of this processor; the
autoencoder, which was trained before, is not counted, and neither is drawing the pictures; encoding them is.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core.ddim import ddim_timesteps, ddim_transfer
from ..core.enlarge import bicubic, given_of
from ..core.metrics import psnr
from ..core.schedule import NoiseSchedule
from ..demo import architecture, degrade, measure, sprites
from ..demo.half import quick_half
from ..training import supervised
from ..training.autoencoder import encode_mean
from ..training.diffusion import loss_weight, stratified
from ..training.loop import Settings
from ..training.share import Draw

if TYPE_CHECKING:
    from .conditions import Bench

SECONDS, SCENES, SEED, STEPS = 60.0, 256, 31, 10
SCHEDULE = NoiseSchedule.scaled_linear()
PIXELS: dict[str, Any] = {
    "in_channels": 6,
    "out_channels": 3,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "block_out_channels": [32, 64, 96],
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 3,
    "norm_num_groups": 32,
}


class Pairs(NamedTuple):
    """What is drawn [N, C, h, w] and what is given [N, C', h, w], both about -1 .. 1."""

    wanted: Tensor
    given: Tensor


class Learned(NamedTuple):
    """A network, the steps it had, and the seconds they took."""

    network: Any
    steps: int
    seconds: float


def figures(bench: Bench, home: Path, quick: bool) -> dict[str, Any]:
    """PSNR and the judge's accuracy of both ways on held-out scenes, and what the first stage costs the second."""
    seconds, scenes = (1.0, 8) if quick else (SECONDS, SCENES)
    real = torch.cat([sprites.draw(SEED, part).blend for part in torch.arange(scenes).split(64)])
    small = degrade.degraded(real, SEED, torch.arange(scenes))
    middle = degrade.reduced(real, "area", 2)
    start = time.process_time()
    latents = Pairs(*_encoded(bench, real, small))
    encoding = time.process_time() - start

    latent = learn(latents, architecture.UNET | {"in_channels": 20}, seconds - encoding, home / "latent", bench, 8)
    first = learn(_twice(small, middle), PIXELS, seconds / 2, home / "first", bench, 8)
    second = learn(_twice(middle, real), PIXELS, seconds / 2, home / "second", bench, 4)

    held = sprites.draw(measure.HELD_OUT, range(bench.count))
    tiny = degrade.degraded(held.blend, measure.HELD_OUT, torch.arange(bench.count))
    half = degrade.reduced(held.blend, "area", 2)
    made = sample(first.network, _twice(tiny, half), quick)
    cascade = sample(second.network, _twice(made, held.blend), quick)
    told = sample(second.network, _twice(half, held.blend), quick)
    one = bench.decoded(_latent_sample(bench, latent.network, held.blend, tiny, quick))
    found: dict[str, Any] = {
        "cascade_seconds": first.seconds + second.seconds,
        "cascade_steps": [first.steps, second.steps],
        "cascade_first_stage_psnr": float(psnr(made, half).mean()),
        "cascade_second_stage_psnr_given_the_truth": float(psnr(told, held.blend).mean()),
        "latent_seconds": latent.seconds + encoding,
        "latent_steps": latent.steps,
    }
    for name, images in (("cascade", cascade), ("latent", one)):
        seen = measure.judge(bench.judge, images, held.kind, held.colour, held.place)
        found |= {f"{name}_psnr": float(psnr(images, held.blend).mean()), f"{name}_kind": seen.kind}
    return found


@torch.no_grad()
def _encoded(bench: Bench, real: Tensor, small: Tensor) -> tuple[Tensor, Tensor]:
    vae, scale = bench.codec.vae, bench.codec.scaling_factor
    wanted, near = [], []
    for picture, tiny in zip(real.split(16), small.split(16), strict=True):
        wanted.append(encode_mean(vae, picture * 2 - 1) * scale)
        near.append(encode_mean(vae, bicubic(tiny, 4) * 2 - 1) * scale)
    return torch.cat(wanted), given_of(small, torch.cat(near))


def _twice(small: Tensor, wanted: Tensor) -> Pairs:
    """A stage's pairs: the picture twice as large, and the small one enlarged the classic way."""
    return Pairs(wanted * 2 - 1, bicubic(small, 2) * 2 - 1)


def learn(
    pairs: Pairs, config: dict[str, Any], seconds: float, folder: Path, bench: Bench, batch: int, probe: int = 4
) -> Learned:
    """A new network trained for about so many seconds of the processor: the steps are counted after a few."""
    from ..hosts.diffusers import build

    def fresh() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build.new_unet(config)

    def loss(network: nn.Module, first: int, count: int, draw: Draw) -> Tensor:
        rows = torch.arange(first, first + count) % len(pairs.wanted)
        z_0, given = pairs.wanted[rows], pairs.given[rows]
        t = draw(lambda n, g: stratified(n, len(SCHEDULE), g))
        eps = draw(lambda n, g: torch.randn(n, *z_0.shape[1:], generator=g))
        out = _predict(network, SCHEDULE.add_noise(z_0, eps, t), given, t)
        errors = (out.float() - eps).square().mean((1, 2, 3))
        return (loss_weight(SCHEDULE, t, 5.0) * errors).mean()

    def train(steps: int, where: Path) -> tuple[Any, float]:
        settings = Settings(steps, batch, 1e-3, 20, 0.5, ema=0.98, save_every=steps, precision="bf16")
        start = time.process_time()
        done = supervised.train(fresh(), loss, settings, where, progress=bench.progress)
        return done.modules["network"].eval().requires_grad_(False), time.process_time() - start

    _, once = train(1, folder / "warm")
    _, more = train(1 + probe, folder / "probe")
    steps = max(2, int(seconds / max((more - once) / probe, 1e-3)))
    return Learned(train(steps, folder / "whole")[0], steps, steps * (more - once) / probe)


def _predict(network: Any, x: Tensor, given: Tensor, t: Tensor) -> Tensor:
    text = x.new_zeros(len(x), 1, network.config.cross_attention_dim)
    return network(torch.cat([x, given], 1), t, encoder_hidden_states=text).sample


@torch.no_grad()
def _drawn(network: Any, given: Tensor, shape: tuple[int, ...], quick: bool) -> Tensor:
    """DDIM from numbered noise."""
    made = []
    times = ddim_timesteps(len(SCHEDULE), 2 if quick else STEPS)
    ends = torch.cat([times[1:], times.new_tensor([-1])])
    for rows in torch.arange(len(given)).split(16):
        x = torch.stack([measure.numbered_noise(shape, int(n)) for n in rows])
        for t, s in zip(times, ends, strict=True):
            with quick_half():
                eps = _predict(network, x, given[rows], t.expand(len(rows))).float()
            x = ddim_transfer(SCHEDULE, x, eps, t, s)
        made.append(x)
    return torch.cat(made)


def sample(network: Any, pairs: Pairs, quick: bool) -> Tensor:
    """A stage's pictures in 0 .. 1."""
    return ((_drawn(network, pairs.given, tuple(pairs.wanted.shape[1:]), quick) + 1) / 2).clamp(0, 1)


def _latent_sample(bench: Bench, network: Any, real: Tensor, small: Tensor, quick: bool) -> Tensor:
    side = real.shape[-1] // 8
    return _drawn(network, _encoded(bench, real, small)[1], (4, side, side), quick)
