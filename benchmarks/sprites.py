"""The Sprites model's figures on held-out seeds: reconstruction, text accuracy, Frechet distance, speed and size."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from ..core import metrics
from ..core.protocols import Progress, no_progress
from ..demo import classifier, measure, release, sprites
from ..demo.half import quick_half

IMAGES, QUICK_IMAGES = 2000, 96


def run(
    progress: Progress = no_progress,
    *,
    quick: bool = False,
    folder: str | Path = release.MODEL,
    images: int | None = None,
    steps: int = 50,
    half: bool = True,
) -> dict[str, Any]:
    """The figures of `velatura bench sprites`. `quick` takes fewer pictures; their number is among the figures.
    `half`: the judged pictures are made under bfloat16 autocast, a third quicker on a CPU; the times are float32's.

    FileNotFoundError if the model is not there.
    """
    from ..hosts import load

    count = images or (QUICK_IMAGES if quick else IMAGES)
    model, text, codec = load("diffusers").load_folder(folder)
    judge = classifier.load(Path(folder, "classifier.safetensors"))
    pictures, kind, colour, place = measure.real(measure.HELD_OUT, count)
    figures: dict[str, Any] = {"images": count}
    figures |= _autoencoder(codec, pictures[: min(count, 512)])
    figures["samples_per_second"] = _samples_per_second(256 if quick else 1024)
    figures["model_megabytes"] = release.megabytes(folder)
    figures["seconds_per_image_20_steps"] = _seconds_per_image(model, text, codec)
    figures |= _classifier(judge, count)

    scenes = [sprites.draw(measure.HELD_OUT, part, 8).captions for part in torch.arange(count).split(64)]
    prompts = [caption for part in scenes for caption in part]
    with quick_half(model.device, half):
        made = measure.generate(model, text, codec, prompts, seed=0, steps=steps, progress=progress)
    verdict = measure.judge(judge, made, kind, colour, place)
    figures |= {"accuracy_kind": verdict.kind, "accuracy_colour": verdict.colour, "accuracy_background": verdict.place}
    # Both sets stand before the same third one: pictures of the same captions would flatter the model.
    truth = measure.judge(judge, *measure.real(measure.HELD_OUT + 1, count)).features
    same = measure.judge(judge, pictures, kind, colour, place).features
    figures["fid"] = measure.frechet(verdict.features, truth)
    figures["fid_real"] = measure.frechet(same, truth)
    return figures


@torch.no_grad()
def _autoencoder(codec: Any, pictures: torch.Tensor) -> dict[str, float]:
    """Mean PSNR and SSIM of reconstructions."""
    out = torch.cat([(codec.decode(codec.encode(part * 2 - 1)) + 1) / 2 for part in pictures.split(16)])
    return {
        "autoencoder_psnr": float(metrics.psnr(out, pictures).mean()),
        "autoencoder_ssim": float(metrics.ssim(out, pictures).mean()),
    }


def _classifier(judge: classifier.Classifier, count: int) -> dict[str, float]:
    """Share of real pictures, some of them bare, judged right in everything."""
    images, kind, colour, place = measure.real(measure.HELD_OUT + 2, count, bare=0.1)
    with torch.no_grad():
        verdicts = [judge(part) for part in images.split(64)]
    right = torch.cat([v.kind.argmax(1) for v in verdicts]) == kind
    right &= torch.cat([v.place.argmax(1) for v in verdicts]) == place
    right &= (torch.cat([v.colour.argmax(1) for v in verdicts]) == colour) | (colour < 0)
    return {"classifier_accuracy_real": float(right.float().mean())}


def _seconds_per_image(model: Any, text: Any, codec: Any) -> float:
    """One picture, 20 steps with guidance; the second of two, so that nothing is loaded within it."""
    start = 0.0
    for _ in range(2):
        start = time.perf_counter()
        measure.generate(model, text, codec, ["a red glass ball, warm sunset from the left"], seed=1, steps=20)
    return time.perf_counter() - start


def _samples_per_second(count: int) -> float:
    sprites.draw(0, range(64))
    start = time.perf_counter()
    sprites.draw(1, range(count))
    return count / (time.perf_counter() - start)
