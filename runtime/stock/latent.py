"""LATENT: making, coding, resizing and picking from batches.

The wire carries a dictionary: "samples" [B, C, h, w] unscaled, and where there are any "noise_mask" [.., H, W] and
"batch_index", the number that each sample had in the batch it was drawn with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...hosts import schema as io
from ...hosts.running import progress
from ._node import StockNode, size_inputs
from .resize import CROPS, LATENT_METHODS, resize

Latent = dict[str, Any]


class EmptyLatentImage(StockNode):
    """Zeros, to be filled by a sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="EmptyLatentImage",
            display_name="Empty Latent Image",
            category="latent",
            description="An empty batch for a sampler to fill. A latent has an eighth of the picture's sides.",
            inputs=[
                *size_inputs(minimum=16, step=8),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="How many pictures at once."),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, width: int, height: int, batch_size: int) -> io.NodeOutput:
        return io.NodeOutput({"samples": torch.zeros(batch_size, 4, height // 8, width // 8)})


def _pieces(batch: Tensor, pixels: int) -> list[Tensor]:
    """The batch in parts of about a megapixel, so that memory does not grow with it."""
    return list(batch.split(max(1, 2**20 // pixels)))


class VAEDecode(StockNode):
    """Latent to picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VAEDecode",
            display_name="VAE Decode",
            category="latent",
            description="Decodes latents to pictures.",
            inputs=[
                io.Latent.Input("samples", tooltip="The latents."),
                io.Vae.Input("vae", tooltip="The model's autoencoder."),
            ],
            outputs=[io.Image.Output()],
        )

    @classmethod
    @torch.no_grad()
    def execute(cls, samples: Latent, vae: Any) -> io.NodeOutput:
        latent = samples["samples"]
        parts = _pieces(latent, latent.shape[-1] * latent.shape[-2] * vae.factor**2)
        report, images = progress(len(parts)), []
        for i, part in enumerate(parts):
            images.append(((vae.decode(vae.scale(part)) + 1) / 2).clamp(0, 1).movedim(1, -1).float().cpu())
            report(i + 1, len(parts), None)
        return io.NodeOutput(torch.cat(images))


class VAEEncode(StockNode):
    """Picture to latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VAEEncode",
            display_name="VAE Encode",
            category="latent",
            description="Encodes pictures as latents. Sides are cut, in the middle, to multiples of the latent's cell.",
            inputs=[
                io.Image.Input("pixels", tooltip="The pictures."),
                io.Vae.Input("vae", tooltip="The model's autoencoder."),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    @torch.no_grad()
    def execute(cls, pixels: Tensor, vae: Any) -> io.NodeOutput:
        images = _cropped(pixels[..., :3], vae.factor).movedim(-1, 1)
        parts = _pieces(images, images.shape[-1] * images.shape[-2])
        report, latents = progress(len(parts)), []
        for i, part in enumerate(parts):
            latents.append(vae.unscale(vae.encode(part.float() * 2 - 1)).float().cpu())
            report(i + 1, len(parts), None)
        return io.NodeOutput({"samples": torch.cat(latents)})


def _cropped(pixels: Tensor, factor: int) -> Tensor:
    """[B, H, W, C] cut in the middle to sides in multiples of `factor`."""
    height, width = pixels.shape[1:3]
    if min(height, width) < factor:
        raise ValueError(f"pixels: expected pictures of at least {factor}x{factor}, got {width}x{height}")
    y, x = height % factor // 2, width % factor // 2
    return pixels[:, y : y + height // factor * factor, x : x + width // factor * factor]


class LatentUpscale(StockNode):
    """Another size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentUpscale",
            display_name="Upscale Latent",
            category="latent",
            description="Resizes latents. A side of 0 follows from the other; both 0 change nothing.",
            inputs=[
                io.Latent.Input("samples", tooltip="The latents."),
                io.Combo.Input("upscale_method", options=LATENT_METHODS, tooltip="How to interpolate."),
                *size_inputs(minimum=0, step=8),
                io.Combo.Input("crop", options=CROPS, tooltip="“center” keeps the proportions and cuts what is over."),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, samples: Latent, upscale_method: str, width: int, height: int, crop: str) -> io.NodeOutput:
        if width == height == 0:
            return io.NodeOutput(samples)
        latent = samples["samples"]
        h, w = latent.shape[-2:]
        wide, high = max(64, width), max(64, height)
        if width == 0:
            wide = max(64, round(w * high / h))
        elif height == 0:
            high = max(64, round(h * wide / w))
        return io.NodeOutput({**samples, "samples": resize(latent, wide // 8, high // 8, upscale_method, crop)})


class RepeatLatentBatch(StockNode):
    """The batch several times over."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RepeatLatentBatch",
            display_name="Repeat Latent Batch",
            category="latent/batch",
            description="Repeats a batch; each copy is then given noise of its own.",
            inputs=[
                io.Latent.Input("samples", tooltip="The latents."),
                io.Int.Input("amount", default=1, min=1, max=64, tooltip="How many times."),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, samples: Latent, amount: int) -> io.NodeOutput:
        result = {**samples, "samples": samples["samples"].repeat(amount, 1, 1, 1)}
        if "noise_mask" in samples and len(samples["noise_mask"]) > 1:
            mask = samples["noise_mask"]
            result["noise_mask"] = mask.repeat(amount, *[1] * (mask.ndim - 1))
        if "batch_index" in samples:
            index = samples["batch_index"]
            span = max(index) - min(index) + 1
            result["batch_index"] = [each + copy * span for copy in range(amount) for each in index]
        return io.NodeOutput(result)


class LatentFromBatch(StockNode):
    """Some samples of the batch."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentFromBatch",
            display_name="Latent From Batch",
            category="latent/batch",
            description="Picks samples out of a batch; they keep the noise that they would get in the whole batch.",
            inputs=[
                io.Latent.Input("samples", tooltip="The latents."),
                io.Int.Input("batch_index", default=0, min=0, max=63, tooltip="The first one to pick, from 0."),
                io.Int.Input("length", default=1, min=1, max=64, tooltip="How many to pick."),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, samples: Latent, batch_index: int, length: int) -> io.NodeOutput:
        latent = samples["samples"]
        size = len(latent)
        start = min(batch_index, size - 1)
        chosen = range(start, min(start + length, size))
        result = {**samples, "samples": latent[chosen.start : chosen.stop].clone()}
        result["batch_index"] = [samples.get("batch_index", range(size))[i] for i in chosen]
        if "noise_mask" in samples and len(samples["noise_mask"]) > 1:
            mask = samples["noise_mask"]
            result["noise_mask"] = mask[torch.tensor(chosen) % len(mask)]
        return io.NodeOutput(result)


class SetLatentNoiseMask(StockNode):
    """Where a sampler may change a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SetLatentNoiseMask",
            display_name="Set Latent Noise Mask",
            category="latent/inpaint",
            description="Lets a sampler change a latent only where the mask is 1.",
            inputs=[
                io.Latent.Input("samples", tooltip="The latents of a picture."),
                io.Mask.Input("mask", tooltip="1 where it may change; of any size."),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, samples: Latent, mask: Tensor) -> io.NodeOutput:
        return io.NodeOutput({**samples, "noise_mask": mask.reshape(-1, 1, *mask.shape[-2:])})


NODES = [EmptyLatentImage, VAEDecode, VAEEncode, LatentUpscale, RepeatLatentBatch, LatentFromBatch, SetLatentNoiseMask]
