"""From a MODEL, two CONDITIONINGs and a LATENT to a sampled LATENT, with the noise, masks and guidance of ComfyUI's
samplers, so that the same seed gives the same image.

Latents come and go unscaled, as the wire carries them; inside they are scaled and variance exploding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...core.consistency import noise_after_start
from ...core.guidance import guide
from ...core.protocols import Condition, Progress, no_progress
from ..preview import Colours
from ..running import progress as progress_bar
from .model import DiffusersModel
from .samplers import Denoise, EngineSampler, Sampler
from .sigmas import NoiseLevels

Conditioning = Sequence[tuple[Tensor, Mapping[str, Any]] | list[Any]]

# What an entry of a CONDITIONING may say beside its embedding. Anything else would change ComfyUI's image and not ours.
_SIZES = {"width", "height", "crop_w", "crop_h", "target_width", "target_height"}
_UNDERSTOOD = {"pooled_output", "strength", "mask", "mask_strength", "start_percent", "end_percent"} | _SIZES


def normal_noise(
    shape: Sequence[int], seed: int, batch_index: Sequence[int] | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Noise [B, C, h, w] on the CPU from a seed.

    With `batch_index`, sample i gets what it would have had as number batch_index[i] of a batch drawn one by one.
    """
    generator = torch.Generator().manual_seed(seed)
    if batch_index is None:
        return torch.randn(tuple(shape), generator=generator, dtype=dtype)
    if len(batch_index) != shape[0]:
        raise ValueError(f"latent: batch_index lists {len(batch_index)} samples, but the batch holds {shape[0]}")
    drawn = [torch.randn((1, *shape[1:]), generator=generator, dtype=dtype) for _ in range(max(batch_index) + 1)]
    return torch.cat([drawn[i] for i in batch_index])


def sample_latent(
    model: DiffusersModel,
    sampler: Sampler | EngineSampler,
    sigmas: Tensor,
    positive: Conditioning,
    negative: Conditioning | None,
    cfg: float,
    latent: Mapping[str, Any],
    seed: int,
    add_noise: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A LATENT sampled, its masks and batch indices respected: (the LATENT at the last level, that of the last x_0).

    `negative` may be None at cfg 1.
    """
    image = _fitting(latent["samples"], model.latent_channels)
    model.check_batch(len(image))
    noise = normal_noise(image.shape, seed, latent.get("batch_index")) if add_noise else torch.zeros_like(image)
    done, x0 = sample(
        model,
        sampler,
        sigmas,
        positive,
        negative or [],
        cfg,
        image,
        noise,
        seed=seed,
        noise_mask=latent.get("noise_mask"),
        progress=progress_bar(max(len(sigmas) - 1, 1)),
    )
    return {**latent, "samples": done}, {**latent, "samples": x0}


def _fitting(image: Tensor, channels: int) -> Tensor:
    """An empty latent takes the model's number of channels; a full one must have it."""
    if image.shape[1] == channels:
        return image
    if image.any():
        raise ValueError(f"latent_image: the model works on {channels} channels, the latent has {image.shape[1]}")
    return image.new_zeros(image.shape[0], channels, *image.shape[2:])


@torch.no_grad()
def sample(
    model: DiffusersModel,
    sampler: Sampler | EngineSampler,
    sigmas: Tensor,
    positive: Conditioning,
    negative: Conditioning,
    cfg: float,
    latent: Tensor,
    noise: Tensor,
    *,
    seed: int = 0,
    noise_mask: Tensor | None = None,
    progress: Progress = no_progress,
) -> tuple[Tensor, Tensor]:
    """Run the sampler over `sigmas`: (the latent at the last level, x_0 as the last step saw it), float32 on the CPU.

    `latent` [B, C, h, w] is what the noise [B, C, h, w] is added to, or the image of which `noise_mask` [.., H, W] in
    0 .. 1 frees the part where it is 1. `seed` feeds the noise that some samplers add on their way.
    """
    if len(sigmas) == 0:
        return latent, latent
    levels = NoiseLevels.of(model.schedule)
    to = {"device": model.device, "dtype": torch.float32}
    image = model.scale(latent.to(**to)) if latent.any() else latent.to(**to)  # all zeros mean: no image
    noise, sigmas = noise.to(**to), sigmas.to(**to)
    denoise = _guided(model, levels, positive, negative, cfg, tuple(image.shape))
    if noise_mask is not None:
        kept = normal_noise(noise.shape, (seed + 1) % 2**64).to(noise) if sampler.fresh_mask_noise else noise
        denoise = _within(denoise, _fit_mask(noise_mask.to(**to), image.shape), image, kept)

    latest = [image]

    def report(i: int, x0: Tensor) -> None:
        latest[0] = x0
        progress(i + 1, len(sigmas) - 1, preview(x0, model.scaling_factor, model.colours))

    x = image + noise * _amplitude(sigmas[0], levels)
    if isinstance(sampler, EngineSampler):
        x = sampler.steps(model.schedule, denoise, x, sigmas, noise_after_start(x, seed), report)
    else:
        generator = torch.Generator(model.device).manual_seed(seed)
        x = sampler.steps(denoise, x, sigmas, lambda: torch.randn(image.shape, generator=generator, **to), report)
    raw = [model.unscale(each).cpu() for each in (x, latest[0])]
    return raw[0], raw[1]


def _amplitude(sigma: Tensor, levels: NoiseLevels) -> Tensor:
    """sigma, but sqrt(1 + sigma^2) from the highest level on: there the start is pure noise, of variance 1 in the
    variance-preserving form that the network sees."""
    highest = levels.bounds[1]
    full = float(sigma) > highest or math.isclose(float(sigma), highest, rel_tol=1e-5)
    return (1 + sigma**2).sqrt() if full else sigma


def _fit_mask(mask: Tensor, shape: Sequence[int]) -> Tensor:
    """Any mask [.., H, W] as [B, 1, h, w] for a latent of this shape."""
    mask = interpolate(mask.reshape(-1, 1, *mask.shape[-2:]), size=tuple(shape[2:]), mode="bilinear")
    return mask[torch.arange(shape[0]) % len(mask)]


def _within(denoise: Denoise, mask: Tensor, image: Tensor, noise: Tensor) -> Denoise:
    """Denoise only where the mask is 1; elsewhere the input is the image at this level and the answer is the image."""

    def masked(x: Tensor, sigma: Tensor) -> Tensor:
        x = x * mask + (image + noise * sigma) * (1 - mask)
        return denoise(x, sigma) * mask + image * (1 - mask)

    return masked


@dataclass(frozen=True)
class _Entry:
    """One prompt of a conditioning; where it holds (`weight`, a number or [B, 1, h, w]), when (levels end to start)."""

    condition: Condition
    weight: Tensor | float
    start: float
    end: float


def _entries(conditioning: Conditioning, name: str, levels: NoiseLevels, shape: Sequence[int]) -> list[_Entry]:
    if not conditioning:
        raise ValueError(f"{name}: the conditioning is empty; connect a CLIPTextEncode")
    result = []
    for embedding, said in conditioning:
        if said.get("set_area_to_bounds") is False:
            said = {key: value for key, value in said.items() if key != "set_area_to_bounds"}
        unknown = sorted(set(said) - _UNDERSTOOD)
        unknown = [key for key in unknown if not key.startswith("velatura")]
        if unknown:
            raise ValueError(
                f"{name}: this runtime cannot use {', '.join(unknown)} of a conditioning; run it in ComfyUI"
            )
        weight: Tensor | float = said.get("strength", 1.0)
        if "mask" in said:
            weight = weight * said.get("mask_strength", 1.0) * _fit_mask(said["mask"], shape)
        extras = {key: value for key, value in said.items() if key in _SIZES or key.startswith("velatura")}
        start, end = (
            levels.at_percent(said.get(f"{key}_percent", default)) for key, default in (("start", 0), ("end", 1))
        )
        condition = _to_batch(Condition(embedding, said.get("pooled_output"), extras), shape[0])
        result.append(_Entry(condition, weight, start, end))
    return result


def _guided(
    model: DiffusersModel,
    levels: NoiseLevels,
    positive: Conditioning,
    negative: Conditioning,
    cfg: float,
    shape: Sequence[int],
) -> Denoise:
    """x_0 under classifier-free guidance; at cfg 1 the negative prompt is not evaluated."""
    sides = [_entries(positive, "positive", levels, shape)]
    if not math.isclose(cfg, 1.0):
        sides.append(_entries(negative, "negative", levels, shape))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        level = float(sigma)
        held = [[each for each in side if each.end <= level <= each.start] for side in sides]
        noise = iter(_predict(model, levels, x, sigma, [each.condition for side in held for each in side]))
        x0 = [_blend([(x - sigma * next(noise), each.weight) for each in side], x) for side in held]
        return x0[0] if len(x0) == 1 else guide(x0[1], x0[0], cfg)

    return denoise


def _blend(parts: Sequence[tuple[Tensor, Tensor | float]], like: Tensor) -> Tensor:
    """The weighted mean; 0 where no weight is."""
    if len(parts) == 1 and not isinstance(parts[0][1], Tensor) and parts[0][1] != 0:
        return parts[0][0]
    total, weights = torch.zeros_like(like), torch.full_like(like, 1e-37)
    for x0, weight in parts:
        weight = weight.to(like) if isinstance(weight, Tensor) else weight
        total, weights = total + x0 * weight, weights + weight
    return total / weights


def _predict(
    model: DiffusersModel, levels: NoiseLevels, x: Tensor, sigma: Tensor, conditions: Sequence[Condition]
) -> list[Tensor]:
    """eps for each condition; those that fit in one batch go in one network call."""
    size = len(x)
    x = x / (1 + sigma**2).sqrt()
    t = levels.timestep(sigma.cpu()).to(x.device)
    result: list[Tensor] = [x] * len(conditions)
    left = list(range(len(conditions)))
    while left:
        group = [i for i in left if _batchable(conditions[left[0]], conditions[i])]
        left = [i for i in left if i not in group]
        joined = _join([conditions[i] for i in group])
        eps = model.predict_noise(x.repeat(len(group), 1, 1, 1), t.expand(size * len(group)), joined)
        for i, part in zip(group, eps.chunk(len(group)), strict=True):
            result[i] = part
    return result


def _to_batch(condition: Condition, size: int) -> Condition:
    """The rows repeated or cut to the batch."""

    def rows(tensor: Tensor) -> Tensor:
        return tensor[torch.arange(size) % len(tensor)]

    pooled = condition.pooled
    return Condition(rows(condition.embedding), None if pooled is None else rows(pooled), condition.extras)


def _batchable(one: Condition, other: Condition) -> bool:
    same_extras = one.extras is other.extras or (
        one.extras.keys() == other.extras.keys()
        and not any(isinstance(value, Tensor) for value in (*one.extras.values(), *other.extras.values()))
        and dict(one.extras) == dict(other.extras)
    )
    return (
        same_extras and one.embedding.shape == other.embedding.shape and (one.pooled is None) == (other.pooled is None)
    )


def _join(conditions: Sequence[Condition]) -> Condition:
    pooled = [each.pooled for each in conditions if each.pooled is not None]
    embedding = torch.cat([each.embedding for each in conditions])
    return Condition(embedding, torch.cat(pooled) if pooled else None, conditions[0].extras)


# Rows: the latent's four channels; columns: red, green, blue. Linear fits to decoded images, in the -1 .. 1 range of an
# image (figures as ComfyUI lists them for its latent formats), by the scaling factor that tells the formats apart.
_PREVIEW: dict[float, tuple[list[list[float]], list[float]]] = {
    0.18215: (
        [[0.3512, 0.2297, 0.3227], [0.3250, 0.4974, 0.2350], [-0.2829, 0.1762, 0.2721], [-0.2120, -0.2616, -0.7177]],
        [0.0, 0.0, 0.0],
    ),
    0.13025: (
        [[0.3651, 0.4232, 0.4341], [-0.2533, -0.0042, 0.1068], [0.1076, 0.1111, -0.0362], [-0.3165, -0.2492, -0.2188]],
        [0.1084, -0.0175, -0.0011],
    ),
}


def preview(x0: Tensor, scaling_factor: float, colours: Colours | None = None) -> Tensor:
    """The first sample of a scaled x_0 [B, C, h, w] as a small picture [3, h, w] in 0 .. 1, on the CPU.

    In the model's own `colours`, else in those of the latent format. Without either, three channels stretched to their
    own range: shapes, no true colours.
    """
    latent = x0[0].detach().float().cpu()
    known = colours or (_PREVIEW.get(scaling_factor) if len(latent) == 4 else None)
    if known:
        weights, offset = (torch.tensor(each) for each in known)
        picture = torch.einsum("chw,cr->rhw", latent, weights) + offset[:, None, None]
        return ((picture + 1) / 2).clamp(0, 1)
    latent = latent[torch.arange(3) % len(latent)]
    low, high = latent.amin((1, 2), keepdim=True), latent.amax((1, 2), keepdim=True)
    return (latent - low) / (high - low).clamp(min=1e-6)
