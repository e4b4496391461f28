"""Inversions: what is kept of an image so that a sampler makes it again, and the methods that find it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from .conditions import same
from .counting import CountedModel
from .ddim import ddim_transfer
from .ddim_inversion import Preview, Watch, ddim_invert, falling, unwatched
from .edict import Predict, edict_invert
from .guidance import guide
from .null_text import null_text
from .protocols import Condition, LatentModel, Progress, no_progress

Method = Literal["null_text", "negative_prompt", "direct", "exact", "ddim"]
METHODS: tuple[Method, ...] = get_args(Method)
PROBE_TOLERANCE = 0.01
"""Relative difference of the probe's predicted noise: half precision stays below it, a LoRA does not."""


@dataclass(frozen=True)
class Settings:
    """How to invert. `timesteps` [n] fall; `shared`, `tolerance` and `iterations` are `null_text`'s, `corrected` and
    `noised_steps` `ddim_invert`'s (not for "exact", which has its own path).

    - "null_text": a null embedding for each step;
    - "negative_prompt": the source prompt stands in for the null text (Miyake et al. 2023);
    - "direct": each step's miss is kept and added back (Direct Inversion, Ju et al. 2023);
    - "exact": EDICT, exact by algebra;
    - "ddim": the noise alone (Smooth Diffusion, Eq. 4), which guidance above 1 leads astray.
    """

    timesteps: Tensor
    method: Method = "null_text"
    guidance: float = 7.5
    shared: bool = False
    corrected: bool = True
    tolerance: float = 0.005
    iterations: int = 3
    noised_steps: int = 0


class Fingerprint(NamedTuple):
    """What tells models apart: abar_t of the schedule, and the noise predicted at a fixed point [1, C, h, w] of the
    pictures' own size: a model may be told of a layer of that size, and some patches cannot work on less."""

    alphas_cumprod: Tensor
    probe: Tensor


@dataclass(frozen=True)
class Inversion:
    """B images as one model sees them. Tensors are on the CPU, float32 (or float64 if the latents were).

    Sampling starts at `noise` [B, C, h, w] and should end at `x_0`. By method: `nulls` [n, R, L, D], the null
    embeddings of each step (R is 1 or B); `residuals` [n, B, C, h, w], what each step adds; `twin` [B, C, h, w], the
    second chain's start. `condition` is the source prompt, `null` the unconditional one (its embedding replaced by
    `nulls` where there are any). `pivots` [n + 1, B, C, h, w], data first, are the path that the inversion took, and
    `losses` [n, B] how far each sampling step ends from it, RMS; None and zeros for "exact", which has none.
    `reconstructed` is what sampling makes, where the method came to know it on its way.
    """

    method: Method
    guidance: float
    timesteps: Tensor
    condition: Condition
    null: Condition
    x_0: Tensor
    noise: Tensor
    losses: Tensor
    fingerprint: Fingerprint
    pivots: Tensor | None = None
    nulls: Tensor | None = None
    residuals: Tensor | None = None
    twin: Tensor | None = None
    reconstructed: Tensor | None = None
    evaluations: int = 0

    @property
    def batch(self) -> int:
        """The number of images."""
        return self.noise.shape[0]

    def null_at(self, step: int) -> Condition:
        """The null condition of a sampling step, 0 the noisiest."""
        return self.null if self.nulls is None else self.null.with_embedding(self.nulls[step])


def invert(
    model: LatentModel,
    x_0: Tensor,
    condition: Condition,
    null: Condition | None,
    settings: Settings,
    *,
    noise: Tensor | None = None,
    progress: Progress = no_progress,
    preview: Preview | None = None,
    watch: Watch = unwatched,
) -> Inversion:
    """Find from what `reconstruct` makes the latents x_0 [B, C, h, w] again.

    Without `null`, and for "negative_prompt", the source prompt stands in for it. `noise`, standard normal like x_0,
    is needed where steps are to be noised. `watch` is told the losses that the method comes to know, as it does.
    ValueError names an input that cannot work.
    """
    _check(model, x_0, condition, settings)
    counted = CountedModel(model)
    engine = cast(LatentModel, counted)
    x_0 = x_0.to(model.device, torch.promote_types(x_0.dtype, torch.float32))
    lonely = null is None or null is condition or settings.method == "negative_prompt"
    condition = cast(Condition, _mapped(condition, lambda value: value.to(model.device)))
    null = condition if lonely else cast(Condition, _mapped(null, lambda value: value.to(model.device)))
    start = (engine, x_0, condition, null, settings)
    if settings.method == "exact":
        found = _exact(*start, progress, preview)
    else:
        found = _along_pivots(*start, noise, progress, preview, watch)
    inversion = Inversion(
        method=settings.method,
        guidance=settings.guidance,
        timesteps=settings.timesteps,
        x_0=x_0,
        fingerprint=fingerprint(engine, condition, x_0.shape[2:]),
        **{"condition": condition, "null": null, "losses": torch.zeros(len(settings.timesteps), len(x_0)), **found},
    )
    return replace(on_cpu(inversion), evaluations=counted.evaluations)


def _check(model: LatentModel, x_0: Tensor, condition: Condition, settings: Settings) -> None:
    if x_0.ndim != 4 or x_0.shape[1] != model.latent_channels:
        raise ValueError(f"latent: expected [B, {model.latent_channels}, h, w], got {tuple(x_0.shape)}")
    if not bool(torch.isfinite(x_0).all()):
        raise ValueError("latent: it has NaN or infinite values; look at what made it")
    if condition.embedding.shape[0] not in (1, x_0.shape[0]):
        raise ValueError(
            f"conditioning: expected 1 prompt or {x_0.shape[0]}, one for each image, got {condition.embedding.shape[0]}"
        )
    if not settings.guidance > 0:
        raise ValueError(
            f"guidance: expected above 0, got {settings.guidance:g}: at 0 the prompt has no part in the picture"
        )
    if settings.method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {settings.method!r}")


def _exact(
    model: LatentModel,
    x_0: Tensor,
    condition: Condition,
    null: Condition,
    settings: Settings,
    progress: Progress,
    preview: Preview | None,
) -> dict[str, Any]:
    if settings.noised_steps:
        raise ValueError("noised_steps: the exact method has no step to spare for noise; set it to 0")
    predict: Predict = lambda _, x, t: guided(model, x, t, condition, null, settings.guidance)  # noqa: E731
    x, y = edict_invert(model.schedule, predict, x_0, timesteps=settings.timesteps, progress=progress, preview=preview)
    return {"noise": x, "twin": y}


def _along_pivots(
    model: LatentModel,
    x_0: Tensor,
    condition: Condition,
    null: Condition,
    settings: Settings,
    noise: Tensor | None,
    progress: Progress,
    preview: Preview | None,
    watch: Watch,
) -> dict[str, Any]:
    total = len(settings.timesteps)
    whole = 2 * total if settings.method in ("null_text", "direct") else total
    pivots = ddim_invert(
        model,
        x_0,
        condition,
        timesteps=settings.timesteps,
        corrected=settings.corrected,
        noised_steps=settings.noised_steps,
        noise=noise,
        progress=lambda step, _, picture: progress(step, whole, picture),
        preview=preview,
    )
    found: dict[str, Any] = {"noise": pivots[-1], "pivots": pivots}
    rest: Progress = lambda step, _, picture: progress(total + step, whole, picture)  # noqa: E731
    if settings.method == "null_text":
        texts = null_text(
            model,
            pivots,
            condition,
            null,
            timesteps=settings.timesteps,
            w=settings.guidance,
            shared=settings.shared,
            tolerance=settings.tolerance,
            iterations=settings.iterations,
            progress=rest,
            preview=preview,
            watch=watch,
        )
        found |= {"nulls": texts.series, "losses": texts.losses, "null": texts.null, "reconstructed": texts.x_0}
    elif settings.method == "direct":
        found |= _residuals(model, pivots, condition, null, settings, rest)
    return found


def _residuals(
    model: LatentModel, pivots: Tensor, condition: Condition, null: Condition, settings: Settings, progress: Progress
) -> dict[str, Any]:
    """What each guided step from a pivot lacks to reach the next one (Direct Inversion, Algorithm 1)."""
    total, residuals = len(settings.timesteps), []
    for i, (t, s) in enumerate(falling(settings.timesteps)):
        x = pivots[total - i]
        eps = guided(model, x, t, condition, null, settings.guidance)
        residuals.append(pivots[total - 1 - i] - ddim_transfer(model.schedule, x, eps, t, s))
        progress(i + 1, total, None)
    return {"residuals": torch.stack(residuals)}


def guided(model: LatentModel, x: Tensor, t: Tensor, condition: Condition, null: Condition, w: float) -> Tensor:
    """eps at x [B, C, h, w] and timestep t under guidance w. One evaluation where the two conditions say the same."""
    at = t.expand(x.shape[0]).to(x.device)
    eps = model.predict_noise(x, at, condition)
    if w == 1 or same(condition, null):
        return eps
    return guide(model.predict_noise(x, at, null), eps, w)


def fingerprint(model: LatentModel, condition: Condition, size: Sequence[int]) -> Fingerprint:
    """The model's fingerprint, for one evaluation of the network on a latent of `size` (h, w) under this condition's
    first row."""
    noise = torch.randn(1, model.latent_channels, *size, generator=torch.Generator().manual_seed(0))
    t = torch.full((1,), len(model.schedule) // 2, device=model.device)
    pooled = None if condition.pooled is None else condition.pooled[:1]
    extras = {name: value for name, value in condition.extras.items() if name != "control"}
    probe = model.predict_noise(noise.to(model.device), t, Condition(condition.embedding[:1], pooled, extras))
    return Fingerprint(model.schedule.alphas_cumprod, probe.detach().float())


def check_same_model(model: LatentModel, inversion: Inversion) -> None:
    """ValueError if the inversion was made with another model or another schedule."""
    then, channels = inversion.fingerprint, inversion.noise.shape[1]
    if channels != model.latent_channels:
        raise ValueError(
            f"inversion: its latents have {channels} channels and the model's {model.latent_channels}; connect the "
            "model it was made with, or invert again"
        )
    now = model.schedule.alphas_cumprod
    if now.shape != then.alphas_cumprod.shape or not torch.allclose(now, then.alphas_cumprod, rtol=1e-4, atol=1e-7):
        raise ValueError("inversion: it was made with another noise schedule; connect that model, or invert again")
    probe = fingerprint(model, inversion.condition, then.probe.shape[2:]).probe.cpu()
    difference = float((probe - then.probe).norm() / then.probe.norm())
    if not difference <= PROBE_TOLERANCE:
        raise ValueError(
            f"inversion: it was made with another model (predicted noise differs by {difference:.0%}); connect that "
            "one, with the same LoRAs, or invert again"
        )


def on_cpu(inversion: Inversion) -> Inversion:
    """The same inversion, its tensors on the CPU, free of graphs and of inference mode."""
    there = _mapped(inversion, lambda value: value.detach().to("cpu", copy=True))
    return replace(there, null=there.condition) if inversion.null is inversion.condition else there


def _mapped(value: Any, change: Any) -> Any:
    """A value with `change` applied to every tensor in it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Fingerprint):
        return Fingerprint(*(change(each) for each in value))
    if isinstance(value, Condition | Inversion):
        return replace(value, **{each.name: _mapped(getattr(value, each.name), change) for each in fields(value)})
    if type(value) is dict:
        return {key: _mapped(each, change) for key, each in value.items()}
    return value


def gaussianity(noise: Tensor) -> dict[str, float]:
    """How near to white noise x_T [B, C, h, w] is: its standard deviation (1), excess kurtosis (0), and the
    correlation of neighbouring values (0), all samples together."""
    x = noise.double()
    x = x - x.mean()
    spread = x.square().mean()
    neighbours = [(x[..., 1:] * x[..., :-1]).mean(), (x[..., 1:, :] * x[..., :-1, :]).mean()]
    return {
        "std": float(spread.sqrt()),
        "kurtosis": float(x.pow(4).mean() / spread**2 - 3),
        "neighbours": float(sum(neighbours) / (2 * spread)),
    }
