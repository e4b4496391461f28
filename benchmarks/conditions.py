"""Spatial conditions on the Sprites model: pictures from maps, small pictures enlarged, tiles, and a pixel cascade."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.ddim import ddim_sample, ddim_timesteps
from ..core.enlarge import bicubic, ddim_steps, given_of, levels
from ..core.metrics import psnr
from ..core.palette import colours_of, painted
from ..core.protocols import Progress, no_progress
from ..core.spatial import class_cells
from ..core.spatial_file import SpatialPatch, spatial_patch_from
from ..core.tiles import Tiles
from ..demo import classifier, conditions, degrade, measure, release, sprites, views
from ..hosts.weights import open_weights
from ..training import report
from . import _cascade, _segments

PICTURES, QUICK_PICTURES = 32, 4
STEPS, DENOISE = 4, 0.5  # the node's own
WAYS = ((1, 0.1), (2, 0.1), (2, 0.3), (4, 0.5), (8, 1.0))
MAP_STEPS, GUIDANCE = 20, conditions.GUIDANCE
SEGMENTER = 200  # steps of the judge of maps
BORDER = 8  # pixels on either side of a tile's border
SHEET = Path(__file__).parent / "results" / "conditions.jpg"


@dataclass(frozen=True)
class Bench:
    """The models, over how many pictures each figure is taken."""

    host: Any
    model: Any
    text: Any
    codec: Any
    judge: classifier.Classifier
    count: int
    progress: Progress

    def told(self, patch: SpatialPatch, given: Tensor, tiles: Tiles | None = None) -> Any:
        """The model that is told what is given."""
        model = self.model if tiles is None else self.host.with_tiles(self.model, tiles)
        raw = torch.cat([self.model.unscale(part) for part in given.split(self.model.latent_channels, 1)], 1)
        return self.host.with_layer_patch(model, patch.patch, 1.0, 0.0, 1.0, raw)

    def decoded(self, latent: Tensor) -> Tensor:
        """Scaled latents as pictures in 0 .. 1."""
        parts = [(self.codec.decode(part).float() + 1) / 2 for part in latent.split(16)]
        return torch.cat(parts).clamp(0, 1)


def run(
    progress: Progress = no_progress,
    *,
    quick: bool = False,
    folder: str | Path = release.MODEL,
    files: Sequence[str | Path] = (conditions.SEMANTIC, conditions.SUPERRES),
    runs: str | Path | None = None,
    count: int | None = None,
    cascade: bool = True,
    sheet: str | Path | None = SHEET,
) -> dict[str, Any]:
    """The figures of `velatura bench conditions`, on held-out scenes. `files` are the patches of maps and of small
    pictures. `cascade`: with the pixel cascade, which is trained for minutes. What is trained is kept in `runs`.

    FileNotFoundError if weights are missing.
    """
    from ..hosts import load

    host = load("diffusers")
    model, text, codec = host.load_folder(folder)
    judge = classifier.load(Path(folder) / "classifier.safetensors")
    bench = Bench(host, model, text, codec, judge, count or (QUICK_PICTURES if quick else PICTURES), progress)
    semantic, small = (_patch(file) for file in files)
    figures: dict[str, Any] = {"pictures": bench.count, "map_steps": MAP_STEPS, "map_guidance": GUIDANCE}
    figures["megabytes"] = sum(Path(file).stat().st_size for file in files) / 1e6
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(runs or scratch)
        segmenter = _segments.trained(home / "segmenter", 2 if quick else SEGMENTER, progress)
        maps = mapped(bench, semantic, segmenter, quick)
        larger = enlarged(bench, small)
        figures |= maps[0] | larger[0] | tiled(bench, small, 1 if quick else 6)
        if cascade:
            figures |= _cascade.figures(bench, Path(scratch), quick)
    if sheet is not None:
        report.save_picture(report.sheet(torch.cat([*maps[1], *larger[1]]), 8), sheet)
    return figures


def _patch(file: str | Path) -> SpatialPatch:
    with open_weights(file) as (tensors, header):
        return spatial_patch_from(dict(tensors), header)


def _noise(count: int, side: int) -> Tensor:
    return torch.stack([measure.numbered_noise((4, side, side), n) for n in range(count)])


def _empty(bench: Bench, count: int) -> Any:
    null = bench.text.encode([""])
    return null.with_embedding(null.embedding.expand(count, -1, -1))


@torch.no_grad()
def mapped(
    bench: Bench, patch: SpatialPatch, segmenter: _segments.Segmenter, quick: bool
) -> tuple[dict[str, Any], list[Tensor]]:
    """Pictures from the maps of held-out scenes: by the map alone, and with the caption too."""
    scenes = sprites.draw(measure.HELD_OUT, range(bench.count))
    classes = views.classes_of(scenes.semantic, scenes.place)
    several = views.views(measure.HELD_OUT, torch.arange(bench.count), near=0.0, several=1.0)
    times = ddim_timesteps(len(bench.model.schedule), 4 if quick else MAP_STEPS)
    done = 0

    def draw(maps: Tensor, prompts: Sequence[str], w: float) -> Tensor:
        nonlocal done
        noise, made = _noise(len(maps), maps.shape[-1] // conditions.FACTOR), []
        for rows in torch.arange(len(maps)).split(16):
            told = bench.told(patch, class_cells(maps[rows], len(views.CLASSES), conditions.FACTOR))
            text, null = bench.text.encode([prompts[int(n)] for n in rows]), _empty(bench, len(rows))
            made.append(bench.decoded(ddim_sample(told, noise[rows], text, null, w=w, timesteps=times)))
            done += len(rows)
            bench.progress(done, 3 * bench.count, made[-1][0])
        return torch.cat(made)

    alone = draw(classes, [""] * bench.count, 1.0)
    said = draw(classes, scenes.captions, GUIDANCE)
    more = draw(several.classes, several.captions, GUIDANCE)
    figures: dict[str, Any] = {}
    for name, images in (("map", alone), ("map_and_caption", said), ("real", scenes.blend)):
        seen = measure.judge(bench.judge, images, scenes.kind, scenes.colour, scenes.place)
        figures |= {f"{name}_kind": seen.kind, f"{name}_place": seen.place, f"{name}_colour": seen.colour}
    # A colour is no class: the map alone cannot tell it.
    figures["semantic_accuracy"] = (figures["map_and_caption_kind"] + figures["map_and_caption_place"]) / 2
    figures["semantic_accuracy_map_alone"] = (figures["map_kind"] + figures["map_place"]) / 2
    figures["pixel_accuracy"] = _segments.agreement(segmenter, said, classes)
    figures["pixel_accuracy_map_alone"] = _segments.agreement(segmenter, alone, classes)
    figures["pixel_accuracy_several"] = _segments.agreement(segmenter, more, several.classes)
    figures["pixel_accuracy_real"] = _segments.agreement(segmenter, scenes.blend, classes)
    figures["pixel_accuracy_real_several"] = _segments.agreement(segmenter, several.picture, several.classes)
    colours = colours_of(views.COLOURS)
    rows = [painted(classes[:8], colours), said[:8], painted(several.classes[:8], colours), more[:8]]
    return figures, rows


@torch.no_grad()
def enlarge(
    bench: Bench, patch: SpatialPatch, small: Tensor, steps: int, denoise: float, tiles: Tiles | None = None
) -> Tensor:
    """Small pictures [B, 3, h, w] enlarged, as the node does it, seed by picture."""
    made = []
    sigmas = levels(bench.model.schedule, steps, denoise)
    noise = _noise(len(small), small.shape[-1] // 2)
    for rows in torch.arange(len(small)).split(16):
        latent = bench.codec.encode(bicubic(small[rows], patch.scale) * 2 - 1)
        told = bench.told(patch, given_of(small[rows], latent), tiles)
        made.append(bench.decoded(_sampled(told, latent, noise[rows], sigmas, _empty(bench, len(rows)))))
    return torch.cat(made)


def _sampled(model: Any, latent: Tensor, noise: Tensor, sigmas: Tensor, condition: Any) -> Tensor:
    """DDIM from a latent, noised as a sampler of the host does it: from the noise alone at the highest level."""
    top = float(model.schedule.sigma(torch.tensor(len(model.schedule) - 1)))
    start = torch.zeros_like(latent) if float(sigmas[0]) >= top else latent
    scale = (1 + sigmas[0] ** 2).sqrt() if float(sigmas[0]) >= top else sigmas[0]
    schedule = model.schedule

    def denoised(x: Tensor, sigma: Tensor) -> Tensor:
        t = (schedule.sigma(torch.arange(len(schedule))) - sigma).abs().argmin().expand(len(x))
        return x - sigma * model.predict_noise(x / (1 + sigma**2).sqrt(), t, condition)

    return ddim_steps(schedule, denoised, start + scale * noise, sigmas, lambda: noise, lambda i, x_0: None)


@torch.no_grad()
def enlarged(bench: Bench, patch: SpatialPatch) -> tuple[dict[str, Any], list[Tensor]]:
    """Held-out scenes made small and damaged, and enlarged again, beside bicubic and what the autoencoder can hold."""
    scenes = sprites.draw(measure.HELD_OUT, range(bench.count))
    small = degrade.degraded(scenes.blend, measure.HELD_OUT, torch.arange(bench.count))
    ceiling = torch.cat([bench.decoded(bench.codec.encode(part * 2 - 1)) for part in scenes.blend.split(16)])
    large: dict[str, Tensor] = {
        "bicubic": bicubic(small, patch.scale),
        "autoencoder": ceiling,
        "original": scenes.blend,
    }
    for number, (steps, denoise) in enumerate(WAYS):
        large[f"{steps} steps at {denoise:g}"] = enlarge(bench, patch, small, steps, denoise)
        bench.progress(number + 1, len(WAYS), None)
    ours = large["super_resolution"] = large[f"{STEPS} steps at {DENOISE:g}"]
    figures: dict[str, Any] = {"super_resolution_ways": {}}
    for name, images in large.items():
        seen = measure.judge(bench.judge, images, scenes.kind, scenes.colour, scenes.place)
        quality = float(psnr(images, scenes.blend).mean())
        if " " in name:
            figures["super_resolution_ways"][name] = quality
            continue
        figures |= {f"{name}_kind": seen.kind, f"{name}_place": seen.place, f"{name}_colour": seen.colour}
        if name != "original":
            figures[f"{name}_psnr"] = quality
    return figures, [large["bicubic"][:8], ours[:8], scenes.blend[:8]]


@torch.no_grad()
def tiled(bench: Bench, patch: SpatialPatch, count: int, side: int = 256) -> dict[str, float]:
    """Pictures twice as large as a tile: in tiles against the whole at once, within BORDER pixels of a tile's border
    and elsewhere. Beside it what tiles without overlap, each by itself, make there."""
    scenes = sprites.draw(measure.HELD_OUT, range(count), side)
    small = degrade.degraded(scenes.blend, measure.HELD_OUT, torch.arange(count))
    tiles = Tiles(patch.size // conditions.FACTOR, patch.size // conditions.FACTOR // 2)
    apart = Tiles(tiles.side, 0)
    whole, blended, cut = (enlarge(bench, patch, small, STEPS, DENOISE, each) for each in (None, tiles, apart))
    near = _borders(tiles, side)
    only = _borders(apart, side)

    def quality(a: Tensor, b: Tensor, where: Tensor) -> float:
        return float(psnr(a[..., where].unsqueeze(-1), b[..., where].unsqueeze(-1)).mean())

    return {
        "tile_border_psnr": quality(blended, whole, near),
        "tile_inside_psnr": quality(blended, whole, ~near),
        "tile_border_psnr_without_overlap": quality(cut, whole, only),
        "tile_border_step": _step(blended, scenes.blend, only),
        "tile_border_step_without_overlap": _step(cut, scenes.blend, only),
        "large_psnr_tiled": float(psnr(blended, scenes.blend).mean()),
        "large_psnr_whole": float(psnr(whole, scenes.blend).mean()),
        "large_psnr_bicubic": float(psnr(bicubic(small, patch.scale), scenes.blend).mean()),
    }


def _borders(tiles: Tiles, side: int) -> Tensor:
    """Where a tile's border is within BORDER pixels, [side, side]."""
    cells = side // conditions.FACTOR
    ends = {end for start in tiles.starts(cells) for end in (start, start + tiles.side)} - {0, cells}
    line = torch.zeros(side, dtype=torch.bool)
    for end in ends:
        line[end * conditions.FACTOR - BORDER : end * conditions.FACTOR + BORDER] = True
    return line[:, None] | line


def _step(made: Tensor, real: Tensor, where: Tensor) -> float:
    """How much larger the steps from pixel to pixel are than the real picture's, at the borders: 0 without seams."""
    error = made - real
    jump = (error[..., :, 1:] - error[..., :, :-1]).abs()
    return float(jump[..., where[:, 1:]].mean() - jump[..., ~where[:, 1:]].mean())
