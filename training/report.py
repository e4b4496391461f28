"""Pictures of a run: its loss curves, and a sheet of samples."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .checkpoint import whole
from .loop import HISTORY_EVERY


def loss_curve(history: Mapping[str, Sequence[float]], path: str | os.PathLike[str]) -> None:
    """The curves of `loss_picture` as a PNG."""
    save_picture(loss_picture(history), path)


def loss_picture(history: Mapping[str, Sequence[float]]) -> Tensor:
    """One panel for each loss, smoothed over the raw values, logarithmic: [3, H, W] in 0 .. 1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = sorted(history)
    figure = Figure(figsize=(6, 2.4 * max(1, len(names))), dpi=120, layout="constrained")
    for k, name in enumerate(names):
        values = torch.tensor(history[name], dtype=torch.float64)
        steps = torch.arange(len(values)) * HISTORY_EVERY
        axes = figure.add_subplot(len(names), 1, k + 1)
        axes.plot(steps.numpy(), values.numpy(), color="#b9c6d3", linewidth=0.8)
        axes.plot(steps.numpy(), running_mean(values, 20).numpy(), color="#1f5f8b", linewidth=1.6)
        axes.set(xlabel="step", ylabel=name, yscale="log")
        axes.grid(alpha=0.2)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
    width, height = canvas.get_width_height()
    return pixels.view(height, width, 4)[..., :3].permute(2, 0, 1).float() / 255


def running_mean(values: Tensor, width: int) -> Tensor:
    """Mean of the last `width` values at each place, ignoring those that are not numbers."""
    known = torch.isfinite(values)
    sums = torch.cat([torch.zeros(1), torch.where(known, values, 0.0)]).cumsum(0)
    counts = torch.cat([torch.zeros(1), known.double()]).cumsum(0)
    low = (torch.arange(1, len(values) + 1) - width).clamp(min=0)
    high = torch.arange(1, len(values) + 1)
    return (sums[high] - sums[low]) / (counts[high] - counts[low])


def sheet(images: Tensor, columns: int) -> Tensor:
    """Pictures [B, 3, H, W] in rows of `columns`: one picture [3, rows*H, columns*W], white where there is none."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    padded = torch.ones(rows * columns, c, h, w)
    padded[:n] = images.cpu().float()
    return padded.view(rows, columns, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, rows * h, columns * w)


def save_picture(image: Tensor, path: str | os.PathLike[str]) -> None:
    """A picture [3, H, W] in 0 .. 1, as JPEG where the name says so and PNG otherwise."""
    from PIL import Image

    pixels = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    jpeg = str(path).lower().endswith((".jpg", ".jpeg"))
    with whole(path) as scratch:
        Image.fromarray(pixels).save(scratch, format="JPEG" if jpeg else "PNG", quality=88)
