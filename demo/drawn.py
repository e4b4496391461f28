"""Latents that the shipped model drew, beside the pictures that a decoder should make of them: what a decoder is
trained on that fails on some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..core.ddim import ddim_timesteps, ddim_transfer
from ..core.guidance import guide
from ..core.lora import read_lora
from ..core.protocols import Progress
from ..training.autoencoder import Drawn, encode_mean
from ..training.checkpoint import CheckpointError, fingerprint, read_tensors, write_tensors
from ..training.droplets import decode_like
from ..training.examples import shuffled_rows
from ..training.share import this_process
from . import measure, smoothing, sprites
from .half import quick_half
from .runs import MODEL, SHIPPED

STEPS, KEPT = 12, (5, 7, 9, 11)
"""Steps of the sampler, and those whose x0_hat is kept: from half way on they look like pictures."""
GUIDANCE = (3.0, 9.0)  # the least and the most that is usual
BATCH, BLOCK = 16, 64  # scenes drawn together, and those in one file
COLUMNS = ("latents", "pictures", "errors")


def drawn(vae: nn.Module, r: Any, folder: Path, progress: Progress) -> Drawn:
    """Latents drawn for the captions of `r.drawn_scenes` scenes, once, by the shipped model and with the Smooth-LoRA of
    the run `r.smooth` in turn, and what `vae` makes of them with the norms of the scenes' own latents (`decode_like`).

    The further from that `vae`'s picture is, the more often a latent comes. CheckpointError if those in `folder` are of
    another autoencoder, other models or other scenes.
    """
    file = smoothing.SMOOTH if r.smooth == SHIPPED else folder.parent.parent / r.smooth / smoothing.RESULT_FILE
    if not file.is_file():
        raise CheckpointError(f"{file}: no such result; run `velatura train {r.smooth}` first")
    made_by = fingerprint([*vae.state_dict().values(), *load_file(file).values()])
    note = {"seed": r.scenes_seed, "made_by": made_by}
    rank, of, wait = this_process()
    blocks = {
        Path(folder, f"{first // BLOCK:05d}.safetensors"): range(first, min(first + BLOCK, r.drawn_scenes))
        for first in range(0, r.drawn_scenes, BLOCK)
    }
    mine = [path for path in [*blocks][rank::of] if not _whole(path, blocks[path])]
    for done, path in enumerate(mine):
        write_tensors(path, _block(vae, file, r.scenes_seed, blocks[path]), note)
        progress(done + 1, len(mine), None)
    wait()
    parts = []
    for path in blocks:
        tensors, found = read_tensors(path)
        if found != note:
            raise CheckpointError(f"{path}: drawn for another recipe or autoencoder; delete {folder} to draw anew")
        parts.append(tensors)
    latents, pictures, errors = (torch.cat([part[name] for part in parts]) for name in COLUMNS)
    rows = shuffled_rows(len(latents), r.seed, errors)

    def chosen(first: int, count: int) -> tuple[Tensor, Tensor]:
        which = rows(first, count)
        return latents[which].float(), pictures[which].float() / 127.5 - 1

    return chosen


def _whole(path: Path, scenes: range) -> bool:
    return path.exists() and len(read_tensors(path)[0]["errors"]) >= len(scenes) * len(KEPT)


@torch.no_grad()
def _block(vae: nn.Module, smooth: Path, seed: int, numbers: range) -> dict[str, Tensor]:
    """Latents [N, C, h, w], unscaled, the pictures [N, 3, H, W] in 0 .. 255 and the errors [N] of `vae`'s own."""
    from ..hosts import load

    base, text, codec = load("diffusers").load_folder(MODEL)
    models = [base, base.with_lora(read_lora(load_file(smooth)))]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    net: Any = vae
    for at in numbers[::BATCH]:
        scenes = sprites.draw(seed, range(at, min(at + BATCH, numbers.stop)))
        with quick_half("cpu"):
            own = encode_mean(vae, (scenes.blend * 2 - 1).contiguous(memory_format=torch.channels_last))
            for x_0 in _predictions(models[at // BATCH % 2], text, scenes.captions, own.shape, at):
                latents = x_0 / codec.scaling_factor
                wanted = decode_like(vae, latents, own).clamp(-1, 1)
                made = net.decode(latents).sample.float().clamp(-1, 1)
                error = (made - wanted).square().mean((1, 2, 3)).sqrt()
                found.append((latents, ((wanted + 1) * 127.5).round().to(torch.uint8), error))
    columns = (torch.cat(column) for column in zip(*found, strict=True))
    return dict(zip(COLUMNS, columns, strict=True))


def _predictions(model: Any, text: Any, captions: list[str], shape: torch.Size, first: int) -> list[Tensor]:
    """x0_hat [B, C, h, w] at the KEPT steps of DDIM, each row at a guidance of its own, for scenes from number `first`
    on."""
    x = torch.stack([measure.numbered_noise(shape[1:], first + n) for n in range(len(captions))])
    w = GUIDANCE[0] + (GUIDANCE[1] - GUIDANCE[0]) * sprites.uniform(first, torch.arange(len(captions)), 1)[:, 0]
    condition, null = text.encode(captions), text.encode([""])
    null = null.with_embedding(null.embedding.expand(len(captions), -1, -1))
    times = ddim_timesteps(len(model.schedule), STEPS).tolist()
    kept = []
    for step, (t, s) in enumerate(zip(times, [*times[1:], -1], strict=True)):
        t, s = torch.full((len(x),), t), torch.full((len(x),), s)
        eps = guide(model.predict_noise(x, t, null).float(), model.predict_noise(x, t, condition).float(), w)
        if step in KEPT:
            kept.append(model.schedule.x0_from_epsilon(x, eps, t))
        x = ddim_transfer(model.schedule, x, eps, t, s)
    return kept
