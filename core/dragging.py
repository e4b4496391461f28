"""Drag edits from picture to picture: the careful one, which optimises, and the quick one, which warps and fills.

Both first move what is painted as one moves a paper cut-out (`warp.move`). The careful edit takes this as the place
to start from, pulls the features of the handles the rest of the way (`drag.optimise`), and samples with an eye on the
original (`drag_sampling`). The quick edit (as FastDrag, Zhao et al. 2024, and Inpaint4Drag, Lu et al. 2025) keeps the
cut-out and has a few-step model paint what it uncovers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from . import drag
from .consistency import consistency_sample
from .ddim import ddim_timesteps
from .ddim_inversion import Preview, ddim_invert
from .drag_sampling import sample_beside
from .matting import snapped
from .protocols import Condition, LatentCodec, LatentModel, Progress, no_progress
from .warp import Moved, move, warp

CHANGED = 0.25  # the mean square by which a latent must change for the moved picture's details not to be its own
SEAM = 6  # pixels around what changes in which the edit fades into the original


@dataclass(frozen=True)
class Task:
    """What to drag in which picture: `image` [1, 3, H, W] in 0 .. 1, `mask` [1, 1, H, W] (1 = may move), `handles` and
    `targets` [N, 2] as (x, y) in pixels."""

    image: Tensor
    mask: Tensor
    handles: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Edited:
    """`image` [1, 3, H, W] in 0 .. 1 and its `latent`; the `track` [steps + 1, N, 2] of the handles, and what the
    optimisation knew (None for the quick edit)."""

    image: Tensor
    latent: Tensor
    track: Tensor
    dragged: drag.Dragged | None = None


def careful(
    model: LatentModel,
    codec: LatentCodec,
    task: Task,
    condition: Condition,
    settings: drag.Settings,
    *,
    steps: int = 20,
    strength: float = 0.7,
    moved_start: bool = True,
    snap: bool = True,
    reference: bool = True,
    low_memory: bool = False,
    pivots: Tensor | None = None,
    timesteps: Tensor | None = None,
    progress: Progress = no_progress,
    preview: Preview | None = None,
    watch: Callable[[int, Tensor, Tensor], None] | None = None,
    better: Callable[[drag.Kept], None] | None = None,
    begin: drag.Kept | None = None,
) -> Edited:
    """Drag by optimising z_t at `strength` of the way to noise, of `steps` DDIM steps.

    `moved_start` starts from the cut-out moved; without it from the picture as it is, as published. `snap` keeps of the
    mask what differs from its surroundings. `pivots` [n + 1, 1, C, h, w] with their `timesteps` [n] are the picture's
    inversion, where there is one already. `watch(step, latent, handles)` is told how the optimisation goes on, with
    its prediction of the picture's latent; `better` what a cancelled one would keep, for `begin` to go on from.
    ValueError names an input that cannot work.
    """
    _check(task)
    image, mask = padded(task.image, codec.factor), padded(task.mask, codec.factor)
    size = (image.shape[2], image.shape[3])
    moved_start = moved_start and not _everything(mask)  # a picture is no cut-out of itself
    timesteps = timesteps if timesteps is not None else ddim_timesteps(len(model.schedule), steps)
    timesteps = timesteps[len(timesteps) - max(1, round(len(timesteps) * strength)) :]
    cut = snapped(image, mask) if snap else mask
    moved = move(image, cut, task.handles, task.targets) if moved_start else None
    total = len(timesteps) * 2 + settings.steps

    def counted(done: int) -> Progress:
        return lambda step, _, shown: progress(min(done + step, total), total, shown)

    with torch.no_grad():
        originals = [] if pivots is not None else [codec.encode(image * 2 - 1)]
        starts = [*originals, *([] if moved is None else [codec.encode(moved.picture * 2 - 1)])]
        paths = [] if pivots is None else [pivots[: len(timesteps) + 1].to(model.device)]
        if starts:
            paths.append(
                ddim_invert(
                    model,
                    torch.cat(starts),
                    _repeated(condition, len(starts)),
                    timesteps=timesteps,
                    progress=counted(0),
                    preview=preview,
                )
            )
        path = torch.cat(paths, 1)
    change = _change(task, mask, moved, path[0, :1], size)
    if begin is None:
        begin = drag.Kept(path[-1, -1:], task.handles if moved is None else task.targets)
    found = drag.optimise(
        model,
        begin.x_t,
        timesteps[0],
        condition,
        begin.places,
        task.targets,
        change,
        size,
        settings,
        original=path[-1, :1],
        before=task.handles,
        low_memory=low_memory,
        progress=counted(len(timesteps)),
        watch=watch,
        better=better,
    )
    with torch.no_grad():
        latent = sample_beside(
            model,
            found.x_t,
            path,
            condition,
            timesteps,
            change,
            free=None if moved is None else drag.small_mask(moved.left, path[0]),
            source=None if moved is None else cut,
            moved=None if moved is None else moved.alpha,
            reference=reference,
            progress=counted(len(timesteps) + settings.steps),
            preview=preview,
        )
        made = (codec.decode(latent) + 1) / 2
        if moved is not None:
            made = made + _lost(codec, moved, path[0, -1:], latent)
    return Edited(_pasted(image, made, change, task.image), latent, found.track, found)


def quick(
    model: LatentModel,
    codec: LatentCodec,
    task: Task,
    condition: Condition,
    draw: Callable[[Tensor], Callable[[], Tensor]],
    *,
    timesteps: Tensor,
    omega: Tensor | None = None,
    snap: bool = True,
    progress: Progress = no_progress,
    preview: Preview | None = None,
) -> Edited:
    """Drag by moving the cut-out and painting what it uncovers, with a latent consistency model, one network call for
    each of the falling `timesteps`; the first says how freely.

    `draw(like)` gives a source of normal noise; `omega` [1] is the guidance of a network that takes it. The condition
    is of what lies behind, or of the whole picture. ValueError names an input that cannot work.
    """
    _check(task)
    image, mask = padded(task.image, codec.factor), padded(task.mask, codec.factor)
    if _everything(mask):
        raise ValueError("mask: everything may move, so that there is nothing to move it over; paint over one thing")
    moved = move(image, snapped(image, mask) if snap else mask, task.handles, task.targets)

    def shown(step: int, total: int, x_0: Tensor) -> None:
        progress(step, total, None if preview is None else preview(x_0))

    with torch.no_grad():
        behind = codec.encode(moved.behind * 2 - 1)
        noise = draw(behind)
        free = drag.small_mask(moved.left, behind)
        x = model.schedule.add_noise(behind, noise(), timesteps[0])
        latent = consistency_sample(
            model, x, condition, timesteps, noise, omega=omega, known=behind, mask=free, progress=shown
        )
        made = ((codec.decode(latent) + 1) / 2).clamp(0, 1)
        seam = F.avg_pool2d((moved.left > 0).to(made), 5, 1, 2)
        below = torch.lerp(image.to(made), made, seam)
        edited = torch.lerp(below, moved.colour.to(made), moved.alpha.to(made)).clamp(0, 1)
        latent = codec.encode(edited * 2 - 1)
    height, width = task.image.shape[2:]
    return Edited(edited[..., :height, :width], latent, torch.stack([task.handles, task.targets]))


def padded(image: Tensor, factor: int) -> Tensor:
    """A picture [B, C, H, W] with its last row and column repeated until its sides are multiples of `factor`."""
    height, width = image.shape[2:]
    return F.pad(image, (0, -width % factor, 0, -height % factor), mode="replicate")


def _check(task: Task) -> None:
    if len(task.handles) == 0:
        raise ValueError("points: expected at least one handle with its target; draw an arrow in the Drag Editor")
    if task.mask.shape[2:] != task.image.shape[2:]:
        raise ValueError(
            f"mask: expected the image's size {task.image.shape[3]}x{task.image.shape[2]}, got "
            f"{task.mask.shape[3]}x{task.mask.shape[2]}"
        )
    if not bool((task.mask > 0.5).any()):
        raise ValueError("mask: it is empty, so that nothing may move; paint over what is to be dragged")


def _everything(mask: Tensor) -> bool:
    return bool((mask > 0.5).all())


def _repeated(condition: Condition, count: int) -> Condition:
    if condition.embedding.shape[0] not in (1, count):
        raise ValueError(f"positive: expected one prompt, got {condition.embedding.shape[0]}")
    return condition


def _change(task: Task, mask: Tensor, moved: Moved | None, like: Tensor, size: tuple[int, int]) -> Tensor:
    """Where the latent may change: the mask, where its content goes, and a margin. [1, 1, h, w]."""
    there = moved.alpha if moved is not None else warp(mask, mask, task.handles, task.targets)[1]
    reach = 2 * SEAM + 1
    return drag.small_mask(F.max_pool2d(torch.maximum(mask, (there > 0.02).to(mask)), reach, 1, SEAM), like)


def _lost(codec: LatentCodec, moved: Moved, start: Tensor, end: Tensor) -> Tensor:
    """What the autoencoder loses of the moved cut-out, to be given back to what is made of it: where it is, and as far
    as the latent there is still the one it started as. [1, 3, H, W]"""
    detail = moved.picture.to(start) - (codec.decode(start) + 1) / 2
    same = torch.exp(-((end - start).square().mean(1, keepdim=True) / CHANGED))
    return detail * moved.alpha.to(start) * F.interpolate(same, detail.shape[2:], mode="bilinear")


def _pasted(image: Tensor, made: Tensor, change: Tensor, original: Tensor) -> Tensor:
    """The edit where it may change, fading into the original around it, cut to the original's size."""
    height, width = original.shape[2:]
    area = F.interpolate(change.to(made), image.shape[2:])
    soft = (2 * F.avg_pool2d(F.pad(area, (SEAM,) * 4, mode="replicate"), 2 * SEAM + 1, 1) - 1).clamp(0, 1)
    return torch.lerp(image.to(made), made, soft)[..., :height, :width].clamp(0, 1)
