"""What pictures are measured by, by name. A new measure is a function here and a line in MEASURES."""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Figures = dict[str, float]


@dataclass(frozen=True)
class Measure:
    """`measure(pictures, settings, options)`: figures for each of a task's pictures [3, H, W] in 0 .. 1. `options` are
    what a sweep file may say of it, by name and type, `needs` what it must; `about` says that in words."""

    measure: Callable[[Sequence[Tensor], Mapping[str, Any], Mapping[str, Any]], list[Figures]]
    options: dict[str, type]
    about: str
    needs: frozenset[str] = frozenset()


def measure(
    data: Sequence[bytes], settings: Mapping[str, Any], measures: Mapping[str, Mapping[str, Any]], home: str
) -> list[Figures]:
    """All figures of a task's pictures. Paths are relative to `home`. ValueError if one cannot be measured."""
    pictures = [decode(each) for each in data]
    found: list[Figures] = [{} for _ in data]
    for name, options in measures.items():
        for row, figures in zip(
            found, MEASURES[name].measure(pictures, settings, {**options, "home": home}), strict=True
        ):
            row |= figures
    return found


def decode(data: bytes) -> Tensor:
    """A picture's file as [3, H, W] in 0 .. 1. ValueError if it is none."""
    import numpy as np
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as picture:
            pixels = np.array(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"a picture cannot be read ({error})") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def _istd(pictures: Sequence[Tensor], settings: Mapping[str, Any], options: Mapping[str, Any]) -> list[Figures]:
    """Of a walk between two noises (Smooth Diffusion, Eq. 18): the task's pictures are its frames, or each picture is a
    strip of so many `frames`, in `rows` where it compares models."""
    import torch

    frames, count = options.get("frames", 0), options.get("rows", 1)
    if not frames:
        return [_walk(torch.stack(list(pictures)), "")] * len(pictures)
    found: list[Figures] = [{} for _ in pictures]
    for figures, picture in zip(found, pictures, strict=True):
        if picture.shape[2] % frames or picture.shape[1] % count:
            raise ValueError(
                f"istd: {picture.shape[2]}x{picture.shape[1]} pixels are no {count} rows of {frames} frames"
            )
        for place, row in enumerate(picture.chunk(count, 1)):
            figures |= _walk(torch.stack(row.chunk(frames, 2)), f"_{place + 1}" if count > 1 else "")
    return found


def _walk(frames: Tensor, name: str) -> Figures:
    from ...core.smoothness import istd, step_distances

    if len(frames) < 3:
        raise ValueError(f"istd: expected the frames of a walk, at least 3, got {len(frames)}")
    distances = step_distances(frames)
    return {f"istd{name}": float(istd(distances)), f"step_distance{name}": float(distances.mean())}


def _accuracy(pictures: Sequence[Tensor], settings: Mapping[str, Any], options: Mapping[str, Any]) -> list[Figures]:
    """The judge of the Sprites world on what the prompt asks for."""
    import torch

    asked = _asked(str(settings[options["prompt"]]))
    verdict = _judge()(torch.stack(list(pictures)))
    found: list[Figures] = [{} for _ in pictures]
    for name, wanted in asked.items():
        for row, seen in zip(found, getattr(verdict, name).argmax(1).tolist(), strict=True):
            row[f"accuracy_{name}"] = float(seen == wanted)
    return [{"accuracy": sum(row.values()) / len(row), **row} for row in found]


def _asked(prompt: str) -> dict[str, int]:
    """Kind, colour and background that a caption names, by the judge's numbers."""
    from ...demo import captions

    words = {"kind": captions.KINDS, "colour": captions.COLOURS, "place": captions.BACKGROUNDS}
    found = {}
    for name, known in words.items():
        said = [n for n, word in enumerate(known) if re.search(rf"\b{word}\b", prompt)]
        if len(said) == 1:
            found[name] = said[0]
    if not found:
        raise ValueError(f"accuracy: “{prompt}” names no kind, colour or background of the Sprites world")
    return found


@functools.cache
def _judge() -> Any:
    from ...demo import classifier
    from ...demo.runs import MODEL

    return classifier.load(MODEL / "classifier.safetensors")


def _likeness(name: str) -> Callable[..., list[Figures]]:
    def measured(pictures: Sequence[Tensor], settings: Mapping[str, Any], options: Mapping[str, Any]) -> list[Figures]:
        import torch

        path = Path(re.sub(r"\{([^{}]+)\}", lambda found: str(settings[found[1]]), options["reference"]))
        path = Path(options["home"]) / path
        try:
            reference = decode(path.read_bytes())[None]
        except OSError as error:
            raise ValueError(f"{name}: there is no reference {path}") from error
        made = torch.stack(list(pictures))
        if made.shape[1:] != reference.shape[1:]:
            size = f"{reference.shape[3]}x{reference.shape[2]}"
            raise ValueError(f"{name}: expected {path}'s size {size}, got {made.shape[3]}x{made.shape[2]}")
        return [{name: value} for value in _compared(name, made, reference.expand_as(made)).tolist()]

    return measured


def _compared(name: str, a: Tensor, b: Tensor) -> Tensor:
    from ...core import metrics
    from ...nodes.measure import perceptual_distance

    if name == "lpips":
        found = perceptual_distance(a, b)
        if found is None:
            raise ValueError(
                "lpips: its package and weights are not installed; pip install lpips, and put AlexNet's there"
            )
        return found
    if name == "ssim" and min(a.shape[2:]) < 11:
        raise ValueError(f"ssim: expected pictures of at least 11 pixels, got {a.shape[3]}x{a.shape[2]}")
    of = {"psnr": metrics.psnr, "ssim": metrics.ssim, "mse": lambda a, b: (a - b).square().flatten(1).mean(1)}
    return of[name](a, b)


_REFERENCE = "it needs the picture to compare with: a path, in which {NODE.INPUT} stands for a setting's value"
MEASURES: dict[str, Measure] = {
    "accuracy": Measure(
        _accuracy, {"prompt": str}, "it needs the NODE.INPUT that holds the prompt", frozenset({"prompt"})
    ),
    "istd": Measure(_istd, {"frames": int, "rows": int}, "a task's pictures are the walk, or strips of `frames`"),
    **{
        name: Measure(_likeness(name), {"reference": str}, _REFERENCE, frozenset({"reference"}))
        for name in ("psnr", "ssim", "mse", "lpips")
    },
}


def settings_named(measures: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The settings, as NODE.INPUT, that the measures read."""
    named = {options["prompt"] for options in measures.values() if "prompt" in options}
    return named.union(*(re.findall(r"\{([^{}]+)\}", each.get("reference", "")) for each in measures.values()))
