"""Point drag: a noisy latent optimised until what is at the handles has come to the targets.

Motion supervision and point tracking (Drag Your GAN, Pan et al. 2023) on the features of a diffusion network
(DragDiffusion, Shi et al. 2024). Points are (x, y) in pixels of the picture; (0, 0) is the centre of the first pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .ddim import ddim_transfer
from .protocols import Condition, LatentModel, Progress, no_progress
from .warp import sample_at

LOST = 0.75
"""A match is no match if it is not this much nearer than the feature of an average place."""


@dataclass(frozen=True)
class Settings:
    """How to optimise. Lengths are pixels of the picture; the published ones are these at 512 x 512, where features are
    compared on half the picture's grid.

    At most `steps` steps of Adam at `rate` on z_t; features of a patch of +-`patch` steps of `unit` are pushed by one
    `unit` (r_1, and the direction d); handles are sought within +-`reach` (r_2); `keep` weighs what lies outside the
    mask (lambda). A handle nearer than `arrived` to its target rests; when all do, the rest of the steps is left out.
    """

    steps: int = 80
    rate: float = 0.01
    unit: float = 2.0
    patch: int = 1
    reach: float = 6.0
    keep: float = 0.1
    arrived: float = 4.0

    def __post_init__(self) -> None:
        for name in ("steps", "patch", "keep"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("rate", "unit", "reach", "arrived"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected above 0, got {getattr(self, name)}")


class Kept(NamedTuple):
    """A latent on its way [1, C, h, w], and where its handles are [N, 2]: enough to go on from."""

    x_t: Tensor
    places: Tensor


@dataclass(frozen=True)
class Dragged:
    """`x_t` [1, C, h, w], the best of all steps; `track` [steps + 1, N, 2], where each handle was seen, and
    `losses` [steps]; `best` is the step that x_t is of, and `places` [N, 2] where the handles were then."""

    x_t: Tensor
    track: Tensor
    losses: Tensor
    best: int

    @property
    def places(self) -> Tensor:
        return self.track[self.best]


def feature_place(model: LatentModel) -> str:
    """Where to read features: the up-sampling level whose output is nearest below the latent's own size. SD 1.5, 2:
    "up.2" (DragDiffusion's); SDXL: "up.1"; Sprites: "up.0"."""
    levels = [place for place in model.places() if place.startswith("up.") and place.count(".") == 1]
    if not levels:
        raise ValueError("model: it has no up-sampling levels to read features from")
    return levels[-2] if len(levels) > 1 else levels[-1]


def features(model: LatentModel, x: Tensor, t: Tensor, condition: Condition, place: str) -> tuple[Tensor, Tensor]:
    """The features at a place [B, C, h', w'], float32, and eps, of one evaluation."""
    with model.taps(place) as seen:
        eps = model.predict_noise(x, t.expand(x.shape[0]).to(x.device), condition)
    return seen[place].float(), eps


def grid_around(radius: int) -> Tensor:
    """The whole offsets -r .. r in both directions, (x, y): float64 [(2 r + 1)^2, 2]."""
    line = torch.arange(-radius, radius + 1, dtype=torch.float64)
    return torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)


def motion_loss(now: Tensor, handles: Tensor, targets: Tensor, size: tuple[int, int], settings: Settings) -> Tensor:
    """sum_i sum_{q in Omega(h_i, r_1)} |sg F(q) - F(q + d_i)|_1 (DragDiffusion, Eq. 3, first term), the mean over
    channels, for features [1, C, h', w'] of a picture of `size` and the handles on their way [N, 2]."""
    way = targets - handles
    length = way.norm(dim=-1, keepdim=True)
    step = way / length.clamp(min=1e-9) * length.clamp(max=settings.unit)
    patch = handles[:, None] + settings.unit * grid_around(settings.patch)
    before, after = sample_at(now, patch, size).detach(), sample_at(now, patch + step[:, None], size)
    return (before - after).abs().mean(1).sum()


def track_handles(
    now: Tensor, first: Tensor, handles: Tensor, targets: Tensor, size: tuple[int, int], settings: Settings
) -> Tensor:
    """Each handle's new place: where the features [1, C, h', w'] are most like `first` [C, N], those of the handles in
    the original picture, within `reach` of where it was (DragDiffusion, Eq. 4).

    One that is found nowhere there is sought in twice that reach along its way; if it is not there either it stays,
    instead of jumping to whatever is least unlike it.
    """
    typical = (now.flatten(2)[0][:, :, None] - first[:, None]).abs().mean((0, 1))  # N
    found = []
    for i, (handle, target) in enumerate(zip(handles, targets, strict=True)):
        place = handle
        for reach, middle in ((settings.reach, handle), (2 * settings.reach, _towards(handle, target, settings.reach))):
            count = int(reach // settings.unit)
            tries = middle + settings.unit * grid_around(count)
            unlike = (sample_at(now, tries, size)[0] - first[:, i, None]).abs().mean(0)
            least = int(unlike.argmin())
            if float(unlike[least]) <= LOST * float(typical[i]):
                place = tries[least]
                break
        found.append(place)
    return torch.stack(found)


def _towards(start: Tensor, end: Tensor, length: float) -> Tensor:
    way = end - start
    return start + way * (length / way.norm().clamp(min=length))


def optimise(
    model: LatentModel,
    x_t: Tensor,
    t: Tensor,
    condition: Condition,
    handles: Tensor,
    targets: Tensor,
    mask: Tensor,
    size: tuple[int, int],
    settings: Settings,
    *,
    original: Tensor | None = None,
    before: Tensor | None = None,
    place: str | None = None,
    low_memory: bool = False,
    progress: Progress = no_progress,
    watch: Callable[[int, Tensor, Tensor], None] | None = None,
    better: Callable[[Kept], None] | None = None,
) -> Dragged:
    """Optimise z_t = `x_t` [1, C, h, w] at timestep `t` so that what is at `handles` [N, 2] comes to `targets` [N, 2].

    `mask` [1, 1, h, w] (1 = may change) is held by `keep |(z_{t-1} - z^0_{t-1}) (1 - M)|_1` (Eq. 3, second term), for
    z^0 = `original`, the picture's own latent at t; `before` [N, 2] are the handles in it. They are x_t and `handles`
    unless x_t has been moved already. Everything optimised is float32, whatever the network's weights are. `watch` is
    told each step's prediction of the picture's latent, and the handles; `better` what would be kept if it were
    cancelled now. ValueError if there are no points.
    """
    if len(handles) == 0:
        raise ValueError("points: expected at least one handle with its target")
    place = place or feature_place(model)
    start = x_t.detach().float()
    original = start if original is None else original.detach().float()
    s = torch.clamp(t - 1, min=-1)
    with torch.no_grad():
        own, eps = features(model, original, t, condition, place)
        kept = ddim_transfer(model.schedule, original, eps, t, s)
        first = sample_at(own, handles if before is None else before, size)[0]
        if before is not None:
            now, _ = features(model, start, t, condition, place)
            handles = track_handles(now, first, handles, targets, size, settings)
    track, losses = [handles], list[float]()
    best, best_miss, best_x = 0, _miss(handles, targets), start
    with model.differentiable(low_memory=low_memory):
        z = start.clone().requires_grad_(True)
        adam = torch.optim.Adam([z], lr=settings.rate)
        for step in range(settings.steps + 1):
            now, eps = features(model, z, t, condition, place)
            if step > 0:
                with torch.no_grad():
                    handles = track_handles(now.detach(), first, handles, targets, size, settings)
                track.append(handles)
                if _miss(handles, targets) < best_miss:
                    best, best_miss, best_x = step, _miss(handles, targets), z.detach().clone()
                    if better is not None:
                        better(Kept(best_x, handles))
            if watch is not None:
                watch(step, model.schedule.x0_from_epsilon(z, eps, t).detach(), handles)
            away = (targets - handles).norm(dim=-1) > settings.arrived
            if step == settings.steps or not bool(away.any()):
                break
            held = ((ddim_transfer(model.schedule, z, eps, t, s) - kept) * (1 - mask)).abs().sum()
            loss = motion_loss(now, handles[away], targets[away], size, settings) + settings.keep * held
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(float(loss.detach()))
            progress(step + 1, settings.steps, None)
    return Dragged(best_x.detach(), torch.stack(track), torch.tensor(losses), best)


def _miss(handles: Tensor, targets: Tensor) -> float:
    """The mean distance of the handles to their targets."""
    return float((handles - targets).norm(dim=-1).mean())


def small_mask(mask: Tensor, like: Tensor) -> Tensor:
    """A mask [1, 1, H, W] on a latent's grid: 1 wherever any of its pixels is. [1, 1, h, w]."""
    return (F.adaptive_max_pool2d(mask.float(), like.shape[2:]) > 0.05).to(like)
