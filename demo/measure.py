"""What the Sprites model is measured by: reconstruction, text accuracy, and the Frechet distance of the judge's
features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.ddim import Spacing, ddim_sample, ddim_timesteps
from ..core.protocols import Condition, LatentCodec, LatentModel, Progress, TextEncoder, no_progress
from . import captions, classifier, data, sprites

HELD_OUT = 777_000  # seed of the scenes that nothing was trained on


class Judged(NamedTuple):
    """Shares of pictures whose kind, colour and background are recognised, and the features [B, 128]."""

    kind: float
    colour: float
    place: float
    features: Tensor


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two sets of features [N, D]: |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))."""
    a, b = a.double(), b.double()
    sa, sb = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(sa @ sb).real.clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + sa.trace() + sb.trace() - 2 * root)


@torch.no_grad()
def judge(model: classifier.Classifier, images: Tensor, kind: Tensor, colour: Tensor, place: Tensor) -> Judged:
    """The judge's agreement with what was asked for. Images [B, 3, S, S] in 0 .. 1."""
    parts = [model(part) for part in images.split(64)]
    verdict = classifier.Verdict(*(torch.cat(column) for column in zip(*parts, strict=True)))
    seen = colour >= 0
    return Judged(
        float((verdict.kind.argmax(1) == kind).float().mean()),
        float((verdict.colour.argmax(1) == colour)[seen].float().mean()) if seen.any() else float("nan"),
        float((verdict.place.argmax(1) == place).float().mean()),
        verdict.features,
    )


SIDED = tuple(
    map(
        captions.BACKGROUNDS.index,
        ("warm sunset", "cold night", "sunny meadow", "lamplit room", "plain studio", "misty forest", "grey storm"),
    )
)
"""The places whose pictures show from which side they are lit."""


def side_heard(images: Tensor, prompts: Sequence[str]) -> float:
    """The share of pictures lit from the side that their caption says, of those in SIDED that say one; nan if there are
    none. Images [B, 3, S, S] in 0 .. 1. A side is seen as the nearer one of the mean pictures of either: as good as
    certain of real scenes there."""
    right = []
    for place in SIDED:
        rows = [n for n, said in enumerate(prompts) if captions.BACKGROUNDS[place] in said and " from the " in said]
        if rows:
            means = [
                sprites.draw(HELD_OUT, range(48), images.shape[-1], place=place, side=side).blend.mean(0)
                for side in (0, 1)
            ]
            far = torch.stack([(images[rows] - mean).flatten(1).norm(dim=1) for mean in means])
            right += [captions.SIDES[side] in prompts[n] for n, side in zip(rows, far.argmin(0).tolist(), strict=True)]
    return sum(right) / len(right) if right else float("nan")


Sample = Callable[[Tensor, Condition, Condition, int], Tensor]
"""`sample(noise, condition, null, first)`: latents from noise [B, C, h, w], for the prompts from number `first` on."""


def by_ddim(model: LatentModel, steps: int, guidance: float, spacing: Spacing = "leading") -> Sample:
    """DDIM with classifier-free guidance."""
    timesteps = ddim_timesteps(len(model.schedule), steps, spacing)

    def sample(noise: Tensor, condition: Condition, null: Condition, first: int) -> Tensor:
        return ddim_sample(model, noise, condition, null, w=guidance, timesteps=timesteps)

    return sample


@torch.no_grad()
def pictures(
    model: LatentModel,
    text: TextEncoder,
    codec: LatentCodec,
    prompts: list[str],
    sample: Sample,
    *,
    seed: int,
    size: int = 128,
    batch: int = 16,
    progress: Progress = no_progress,
) -> Tensor:
    """A picture [3, S, S] in 0 .. 1 for each prompt. Noise is drawn by prompt number: batches do not matter."""
    side = size // codec.factor
    shape = (model.latent_channels, side, side)
    null = text.encode([""])
    images: list[Tensor] = []
    for at in range(0, len(prompts), batch):
        part = prompts[at : at + batch]
        noise = torch.stack([numbered_noise(shape, seed + at + n) for n in range(len(part))]).to(model.device)
        repeated = null.with_embedding(null.embedding.expand(len(part), -1, -1))
        latent = sample(noise, text.encode(part), repeated, at)
        images.append((codec.decode(latent).float().cpu() + 1) / 2)
        progress(min(at + batch, len(prompts)), len(prompts), images[-1][0])
    return torch.cat(images)


def numbered_noise(shape: tuple[int, ...], number: int) -> Tensor:
    """Standard normal noise that depends on its number alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))


def generate(
    model: LatentModel,
    text: TextEncoder,
    codec: LatentCodec,
    prompts: list[str],
    *,
    seed: int,
    steps: int = 50,
    guidance: float = 5.0,
    **options: Any,
) -> Tensor:
    """`pictures` by DDIM."""
    return pictures(model, text, codec, prompts, by_ddim(model, steps, guidance), seed=seed, **options)


def real(seed: int, count: int, bare: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Real pictures in 0 .. 1 and their kinds, colours (-100 where bare) and backgrounds."""
    rows: list[Any] = []
    for indices in torch.arange(count).split(64):
        scenes = sprites.draw(seed, indices)
        only = data.is_bare(seed, indices, bare)
        image = torch.where(only[:, None, None, None], scenes.background, scenes.blend)
        rows.append((image, *classifier.targets(scenes, only)))
    first, *rest = (torch.cat(column) for column in zip(*rows, strict=True))
    return first, rest[0], rest[1], rest[2]
