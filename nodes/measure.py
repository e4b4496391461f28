"""Measuring: how alike pictures are."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import metrics
from ._api import io, schema
from ._shown import comparison

NOT_MEASURED = -1.0


class VelaturaCompareImages(io.ComfyNode):
    """Figures and a picture of the difference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaCompareImages",
            display_name="Compare Images (Velatura)",
            category="Velatura/measure",
            description="How alike two pictures, or two batches, are: MSE, PSNR, SSIM, and LPIPS where the lpips "
            "package and its weights are installed. And where they differ. The node shows them one over the other.",
            search_aliases=["psnr", "ssim", "lpips", "mse", "difference", "metrics", "slider", "before and after"],
            is_output_node=True,
            inputs=[
                io.Image.Input("image_a", tooltip="The first pictures."),
                io.Image.Input("image_b", tooltip="The second ones: of the same size, as many, or one for all."),
                io.Float.Input(
                    "gain",
                    default=4.0,
                    min=1.0,
                    max=100.0,
                    step=0.5,
                    tooltip="How strongly the picture of the difference shows it; the figures do not change.",
                ),
            ],
            outputs=[
                io.Float.Output(display_name="mse", tooltip="Mean squared error of values in 0 to 1; 0 is equal."),
                io.Float.Output(display_name="psnr", tooltip="Peak signal-to-noise ratio in dB, at most 100."),
                io.Float.Output(display_name="ssim", tooltip="Structural similarity, 1 is equal; -1 under 11 pixels."),
                io.Float.Output(display_name="lpips", tooltip="Perceptual distance, 0 is equal; -1 if not measured."),
                io.String.Output(display_name="table", tooltip="The figures of each pair, and their mean."),
                io.Image.Output(display_name="comparison", tooltip="First, second and difference side by side."),
            ],
        )

    @classmethod
    @torch.no_grad()
    def execute(cls, image_a: Tensor, image_b: Tensor, gain: float) -> io.NodeOutput:
        a, b = _pairs(image_a, image_b)
        figures = {"mse": (a - b).square().flatten(1).mean(1), "psnr": metrics.psnr(a, b)}
        if min(a.shape[2:]) >= 11:
            figures["ssim"] = metrics.ssim(a, b)
        perceptual = perceptual_distance(a, b)
        if perceptual is not None:
            figures["lpips"] = perceptual
        means = [
            float(figures[key].mean()) if key in figures else NOT_MEASURED for key in ("mse", "psnr", "ssim", "lpips")
        ]
        difference = ((a - b).abs() * gain).clamp(0, 1)
        table, picture = _table(figures), torch.cat([a, b, difference], 3).movedim(1, -1)
        return io.NodeOutput(*means, table, picture, ui=comparison(image_a, image_b, ("A", "B")))


def _pairs(image_a: Tensor, image_b: Tensor) -> tuple[Tensor, Tensor]:
    """Both as float32 [B, 3, H, W] on the CPU, one repeated for the other's batch."""
    a, b = (each[..., :3].float().cpu().movedim(-1, 1) for each in (image_a, image_b))
    if a.shape[2:] != b.shape[2:]:
        raise ValueError(
            f"image_b: expected image_a's size {a.shape[3]}x{a.shape[2]}, got {b.shape[3]}x{b.shape[2]}; resize one"
        )
    rows = max(len(a), len(b))
    if {len(a), len(b)} - {1, rows}:
        raise ValueError(f"image_b: expected {len(a)} pictures, as many as image_a, or 1, got {len(b)}")
    return a.expand(rows, -1, -1, -1), b.expand(rows, -1, -1, -1)


def _table(figures: dict[str, Tensor]) -> str:
    head = "picture" + "".join(f"{name:>10}" for name in figures)
    count = len(next(iter(figures.values())))
    rows = [f"{k + 1:>7}" + "".join(f"{float(each[k]):>10.4f}" for each in figures.values()) for k in range(count)]
    return "\n".join([head, *rows, "   mean" + "".join(f"{float(each.mean()):>10.4f}" for each in figures.values())])


def perceptual_distance(a: Tensor, b: Tensor) -> Tensor | None:
    """LPIPS (AlexNet) of each pair, None where its package or weights are not installed: nothing is downloaded."""
    weights = Path(torch.hub.get_dir(), "checkpoints", "alexnet-owt-7be5be79.pth")
    if importlib.util.find_spec("lpips") is None or not weights.is_file():
        return None
    lpips: Any = importlib.import_module("lpips")
    return lpips.LPIPS(net="alex", verbose=False)(a * 2 - 1, b * 2 - 1).flatten()
