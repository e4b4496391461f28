"""Pictures on disk: named and described as ComfyUI's are, so that dragging one into ComfyUI restores its graph."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..hosts.files import whole_file
from ..hosts.folders import folders
from ..hosts.schema import FolderType
from ..hosts.ui import SavedResult

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from ..hosts.schema import HiddenHolder


def to_bytes(image: Tensor) -> np.ndarray:
    """An image [H, W, 3 or 4] in 0 .. 1 as uint8 [H, W, C], truncated as ComfyUI does it: equal values, equal files."""
    import numpy as np

    scaled = 255.0 * image.detach().float().cpu().numpy()
    return np.clip(scaled, 0, 255).astype(np.uint8)


def metadata(hidden: HiddenHolder | None) -> dict[str, str]:
    """The text chunks of a picture: "prompt" (the graph in API form) and whatever came with it, "workflow" for one."""
    if hidden is None:
        return {}
    chunks = dict(hidden.extra_pnginfo or {})
    if hidden.prompt is not None:
        chunks = {"prompt": hidden.prompt} | chunks
    return {name: json.dumps(value) for name, value in chunks.items()}


def write_png(
    path: str | os.PathLike[str], image: Tensor, chunks: Mapping[str, str] | None = None, level: int = 4
) -> None:
    """One image [H, W, 3 or 4] in 0 .. 1 as a PNG, whole or not at all, with these text chunks."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, text in (chunks or {}).items():
        info.add_text(name, text)
    with whole_file(path) as stream:
        Image.fromarray(to_bytes(image)).save(stream, format="PNG", pnginfo=info, compress_level=level)


def read_chunks(path: str | os.PathLike[str]) -> dict[str, str]:
    """A PNG's text chunks. ValueError if it is no PNG."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return {name: text for name, text in picture.info.items() if isinstance(text, str)}
    except (UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"{path} is not a PNG picture") from error


def save_images(
    images: Iterable[Tensor], prefix: str, kind: FolderType = FolderType.output, hidden: HiddenHolder | None = None
) -> list[SavedResult]:
    """A batch of images [H, W, C] as `prefix_00001_.png`, counting on from what is there.

    `prefix` may name subfolders and hold %width%, %height%, %year%, %month%, %day%, %hour%, %minute%, %second% and
    %batch_num%. ValueError if it leads out of the folder.
    """
    batch = list(images)
    if not batch:
        return []
    root = folders().of(kind.value).absolute()
    target = _inside(root, _fill(prefix, batch[0]))
    chunks = metadata(hidden)
    count = _next_number(target)
    results = []
    for place, image in enumerate(batch):
        name = f"{target.name.replace('%batch_num%', str(place))}_{count + place:05}_.png"
        write_png(target.parent / name, image, chunks, level=4 if kind is FolderType.output else 1)
        subfolder = target.parent.relative_to(root).as_posix()
        results.append(SavedResult(name, "" if subfolder == "." else subfolder, kind))
    return results


def save_webp(
    images: Iterable[Tensor],
    prefix: str,
    *,
    fps: float,
    lossless: bool,
    quality: int,
    method: int,
    hidden: HiddenHolder | None = None,
) -> list[SavedResult]:
    """A batch of images [H, W, 3] as one animation `prefix_00001_.webp`, its graph in the EXIF tags that ComfyUI reads.

    ValueError as in `save_images`, or if the pictures are too large for the format.
    """
    from PIL import Image

    batch = list(images)
    if not batch:
        return []
    root = folders().of("output").absolute()
    target = _inside(root, _fill(prefix, batch[0]))
    frames = [Image.fromarray(to_bytes(image)) for image in batch]
    exif = frames[0].getexif()
    for tag, (name, text) in zip(range(0x0110, 0, -1), metadata(hidden).items(), strict=False):
        exif[tag] = f"{name}:{text}"
    file = target.with_name(f"{target.name}_{_next_number(target):05}_.webp")
    options = {"lossless": lossless, "quality": quality, "method": method, "duration": int(1000 / fps)}
    with whole_file(file) as stream:
        frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:], exif=exif, **options)
    subfolder = target.parent.relative_to(root).as_posix()
    return [SavedResult(file.name, "" if subfolder == "." else subfolder, FolderType.output)]


def _fill(prefix: str, image: Tensor) -> str:
    now = time.localtime()
    values = {"width": image.shape[1], "height": image.shape[0], "year": now.tm_year}
    values |= {"month": f"{now.tm_mon:02}", "day": f"{now.tm_mday:02}", "hour": f"{now.tm_hour:02}"}
    values |= {"minute": f"{now.tm_min:02}", "second": f"{now.tm_sec:02}"}
    for name, value in values.items():
        prefix = prefix.replace(f"%{name}%", str(value))
    return prefix


def _inside(root: Path, prefix: str) -> Path:
    target = Path(os.path.normpath(root / prefix))
    if not target.parent.is_relative_to(root) or target == root:
        raise ValueError(f"the file name prefix “{prefix}” must name a file inside the output folder {root}")
    return target


def _next_number(target: Path) -> int:
    pattern = re.compile(re.escape(target.name).replace("%batch_num%", r"\d+") + r"_(\d+)_")
    there = os.listdir(target.parent) if target.parent.is_dir() else []
    return 1 + max((int(found[1]) for found in map(pattern.match, there) if found), default=0)
