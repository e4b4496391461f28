"""DragBench (Shi et al. 2024), for those who have it: its reader, its two measures, and a run over all of it.

A sample is a folder with `original_image.png` and `meta_data.pkl`, a pickled dict of prompt, points (handle, target,
handle, ... as [x, y]) and mask (where it is not 0 may change). A pickle can run any program, so that this one is read
by an unpickler that knows dicts, lists, numbers, text and arrays of numbers, and nothing else.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import drag as engine
from ..core.dragging import Task, careful, padded
from ..core.protocols import Condition, LatentCodec, LatentModel, Progress, no_progress
from ..core.warp import sample_at

META = "meta_data.pkl"
LARGEST = 256 * 2**20  # bytes of a meta file; a mask of 8192 x 8192 in int32 fits
ALLOWED = {
    (module, name)
    for core in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{core}.multiarray", "_reconstruct"),
        (f"{core}.multiarray", "scalar"),
        (f"{core}.numeric", "_frombuffer"),
    )
} | {("numpy", "ndarray"), ("numpy", "dtype")}
MATCH_TIME = 261  # the timestep of the features that are matched (DIFT, Tang et al. 2023)
ENSEMBLE = 8


class DragBenchError(ValueError):
    """A sample that is not one; the message names the file and what was expected."""


@dataclass(frozen=True)
class Sample:
    """`image` [1, 3, H, W] in 0 .. 1, `mask` [1, 1, H, W] (1 = may change), `handles`, `targets` [N, 2] as (x, y)."""

    name: str
    image: Tensor
    mask: Tensor
    handles: Tensor
    targets: Tensor
    prompt: str


def _latin1(text: str, encoding: str) -> bytes:
    """How old protocols write bytes."""
    if encoding != "latin1":
        raise DragBenchError(f"it asks for the encoding {encoding!r}; it was not loaded")
    return text.encode("latin1")


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        if (module, name) not in ALLOWED:
            raise DragBenchError(f"it names {module}.{name}, which no DragBench file does; it was not loaded")
        return super().find_class(module, name)


def read_meta(data: bytes) -> dict[str, Any]:
    """The dict of a meta file. DragBenchError if it holds anything but plain data and arrays of numbers."""
    try:
        found = _Plain(io.BytesIO(data)).load()
    except DragBenchError:
        raise
    except Exception as error:
        raise DragBenchError(f"it is no readable pickle: {error}") from error
    if not isinstance(found, dict) or not {"prompt", "points", "mask"} <= set(found):
        raise DragBenchError("expected a dict with prompt, points and mask")
    return found


def read_sample(folder: str | Path) -> Sample:
    """One sample's folder. DragBenchError names the file and what is wrong."""
    from PIL import Image

    folder = Path(folder)
    path, picture = folder / META, folder / "original_image.png"
    for each in (path, picture):
        if not each.is_file():
            raise DragBenchError(f"{each} is missing: expected a DragBench sample with {META} and original_image.png")
    if path.stat().st_size > LARGEST:
        raise DragBenchError(f"{path}: {path.stat().st_size} bytes is too large for a sample")
    try:
        meta = read_meta(path.read_bytes())
        points = torch.tensor([[float(v) for v in np.asarray(point).ravel()] for point in meta["points"]])
        mask = np.asarray(meta["mask"])
        prompt = str(meta["prompt"])
        with Image.open(picture) as opened:
            pixels = torch.from_numpy(np.array(opened.convert("RGB"))).float() / 255
        if points.ndim != 2 or points.shape[1] != 2 or len(points) < 2 or len(points) % 2:
            raise DragBenchError(f"points: expected handle, target, handle, ... as [x, y], got {tuple(points.shape)}")
        if mask.shape[:2] != pixels.shape[:2] or mask.dtype == object:
            raise DragBenchError(f"mask: expected the image's {tuple(pixels.shape[:2])}, got {mask.shape}")
    except DragBenchError as error:
        raise DragBenchError(f"{path}: {error}") from error
    except (TypeError, ValueError) as error:
        raise DragBenchError(f"{path}: points or mask are not numbers: {error}") from error
    area = torch.from_numpy((mask.reshape(*mask.shape[:2], -1) != 0).any(-1)).float()
    return Sample(folder.name, pixels.movedim(-1, 0)[None], area[None, None], points[::2], points[1::2], prompt)


def samples(folder: str | Path) -> list[Path]:
    """Every sample's folder below this one, sorted. DragBenchError if there is none."""
    found = sorted(path.parent for path in Path(folder).rglob(META))
    if not found:
        raise DragBenchError(f"{folder}: no {META} below it; expected the unpacked DragBench dataset")
    return found


@torch.no_grad()
def matched(
    model: LatentModel, codec: LatentCodec, condition: Condition, original: Tensor, edited: Tensor, handles: Tensor
) -> Tensor:
    """Where in `edited` [1, 3, H, W] what is at the handles [N, 2] of `original` is: [N, 2] pixels, the most similar
    feature (cosine) anywhere (DIFT). With Stable Diffusion 2.1 this is DragBench's own measure."""
    size = (original.shape[2], original.shape[3])
    place = engine.feature_place(model)
    t, sums = torch.tensor(min(MATCH_TIME, len(model.schedule) - 1)), list[Tensor]()
    for image in (original, edited):
        x_0 = codec.encode(padded(image, codec.factor) * 2 - 1)
        total: Any = 0
        for number in range(ENSEMBLE):
            eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(number)).to(x_0)
            total = total + engine.features(model, model.schedule.add_noise(x_0, eps, t), t, condition, place)[0]
        sums.append(F.interpolate(total / ENSEMBLE, size, mode="bilinear"))
    wanted = F.normalize(sample_at(sums[0], handles, size)[0], dim=0)  # C N
    best = (wanted.T @ F.normalize(sums[1][0].flatten(1), dim=0)).argmax(1)
    return torch.stack([best % size[1], best // size[1]], 1).to(handles)


def run(
    folder: str | Path, checkpoint: str | Path, progress: Progress = no_progress, *, limit: int | None = None
) -> dict[str, Any]:
    """Mean distance and image fidelity over all samples below `folder`, of the careful drag with a checkpoint (a
    .safetensors file or a diffusers folder). Fidelity is 1 - LPIPS where the lpips package and its weights are there,
    and otherwise SSIM, under that name."""
    from ..core.metrics import ssim
    from ..hosts.diffusers import checkpoints
    from ..nodes.measure import perceptual_distance

    where = samples(folder)[:limit]
    model, text, codec = cast(tuple[Any, Any, Any], checkpoints.load(checkpoint))
    distances, likeness, structure = [], [], []
    for number, each in enumerate(where):
        sample = read_sample(each)
        condition = text.encode([sample.prompt])
        task = Task(sample.image, sample.mask, sample.handles.double(), sample.targets.double())
        # Its masks hold the targets too: they say what may change, not what moves.
        made = careful(model, codec, task, condition, engine.Settings(), steps=50, moved_start=False).image
        there = matched(model, codec, condition, sample.image, made, sample.handles)
        distances.append(float((there - sample.targets).norm(dim=-1).mean()))
        perceptual = perceptual_distance(made, sample.image)
        likeness += [] if perceptual is None else [1 - float(perceptual)]
        structure.append(float(ssim(made, sample.image).mean()))
        progress(number + 1, len(where), made[0])
    mean = {"mean_distance": distances, "ssim": structure, "image_fidelity": likeness}
    return {"samples": len(where), **{name: sum(v) / len(v) if v else None for name, v in mean.items()}}
