"""Layered pictures as files: Photoshop's PSD, OpenRaster, and a folder of PNGs. Written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ..core.layers import Layer, Layers
from .files import whole_file

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PSD_BLENDS = {
    "normal": "NORMAL", "multiply": "MULTIPLY", "screen": "SCREEN", "overlay": "OVERLAY", "darken": "DARKEN",
    "lighten": "LIGHTEN", "add": "LINEAR_DODGE",
}  # fmt: skip
ORA_BLENDS = {name: f"svg:{name}" for name in PSD_BLENDS} | {"normal": "svg:src-over", "add": "svg:plus"}
MAX_PSD = 30_000  # pixels a side, by the format


def write_psd(path: str | os.PathLike[str], layers: Layers, number: int = 0) -> None:
    """Picture `number` of the batch as a PSD. Each layer's alpha is its own transparency, not a mask, and the merged
    picture is there for programs that read no layers.

    RuntimeError names the package that is missing; ValueError for a picture that the format cannot hold.
    """
    try:
        from psd_tools import PSDImage
        from psd_tools.constants import BlendMode
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "Saving PSD needs psd-tools (Python 3.11 or later): pip install psd-tools, then start again."
        ) from error

    if max(layers.height, layers.width) > MAX_PSD:
        raise ValueError(f"layers: a PSD has at most {MAX_PSD} pixels a side, this has {layers.width}x{layers.height}")
    # An RGBA document: in an RGB one psd-tools would turn every alpha into a mask.
    document = PSDImage.frompil(_flat(layers, number))
    for layer in layers.layers:
        document.create_pixel_layer(
            _picture(layer, number),
            name=layer.name,
            top=layer.y,
            left=layer.x,
            opacity=round(255 * layer.opacity),
            blend_mode=getattr(BlendMode, PSD_BLENDS[layer.blend]),
        )
    with whole_file(path) as stream:
        document.save(stream)


def write_ora(path: str | os.PathLike[str], layers: Layers, number: int = 0) -> None:
    """Picture `number` of the batch as OpenRaster, which GIMP, Krita and MyPaint open."""
    image = ElementTree.Element(
        "image", {"version": "0.0.3", "w": str(layers.width), "h": str(layers.height), "xres": "72", "yres": "72"}
    )
    stack = ElementTree.SubElement(image, "stack")
    flat = _flat(layers, number)
    thumbnail = flat.copy()
    thumbnail.thumbnail((256, 256))
    with whole_file(path) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("mimetype", "image/openraster")  # first and not compressed: it tells what the file is
        for place, layer in reversed(list(enumerate(layers.layers))):  # the topmost first
            source = f"data/layer{place:03}.png"
            described = {"name": layer.name, "src": source, "x": str(layer.x), "y": str(layer.y)}
            described |= {"opacity": f"{layer.opacity:.4f}", "composite-op": ORA_BLENDS[layer.blend]}
            ElementTree.SubElement(stack, "layer", described)
            archive.writestr(source, _png(_picture(layer, number)))
        archive.writestr("stack.xml", ElementTree.tostring(image, encoding="UTF-8", xml_declaration=True))
        archive.writestr("mergedimage.png", _png(flat))
        archive.writestr("Thumbnails/thumbnail.png", _png(thumbnail))


def write_png_set(path: str | os.PathLike[str], layers: Layers, number: int = 0) -> None:
    """Picture `number` of the batch as a new folder: a PNG for each layer in its own size, the lowest first, all of
    them together in merged.png, and layers.json, which says where they lie. FileExistsError if it is there."""
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} is there already")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name[:64]}-", dir=path.parent))
    try:
        described: list[dict[str, Any]] = []
        for place, layer in enumerate(layers.layers):
            plain = re.sub(r"[^\w.-]+", "_", layer.name)[:60]
            file = f"{place:02}_{plain or 'layer'}.png"
            (scratch / file).write_bytes(_png(_picture(layer, number)))
            described.append({"name": layer.name, "file": file, "x": layer.x, "y": layer.y})
            described[-1] |= {"opacity": layer.opacity, "blend": layer.blend}
        (scratch / "merged.png").write_bytes(_png(_flat(layers, number)))
        note = {"width": layers.width, "height": layers.height, "layers": described}
        (scratch / "layers.json").write_text(json.dumps(note, indent=2, ensure_ascii=False), encoding="utf-8")
        scratch.chmod(0o755)  # mkdtemp's folders are for nobody but the user
        scratch.rename(path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


WRITERS = {"psd": write_psd, "ora": write_ora, "png": write_png_set}


def numbered(folder: Path, stem: str, endings: set[str]) -> Iterator[str]:
    """`STEM_00001_`, counting on from what is in the folder under any of the endings."""
    pattern = re.compile(rf"{re.escape(stem)}_(\d+)_?({'|'.join(map(re.escape, endings))})?", re.IGNORECASE)
    names = [each.name for each in folder.iterdir()] if folder.is_dir() else []
    count = max((int(found[1]) for name in names if (found := pattern.fullmatch(name))), default=0)
    while True:
        count += 1
        yield f"{stem}_{count:05}_"


def _flat(layers: Layers, number: int) -> Image:
    colour, alpha = layers.flatten()
    return _rgba(colour, alpha, number)


def _picture(layer: Layer, number: int) -> Image:
    return _rgba(layer.colour, layer.alpha, number)


def _rgba(colour: Tensor, alpha: Tensor, number: int) -> Image:
    import torch
    from PIL import Image

    values = torch.cat([colour, alpha], 1)[min(number, len(colour) - 1)]
    pixels = (values.detach().float().clamp(0, 1) * 255).round().byte().movedim(0, -1)
    return Image.fromarray(pixels.cpu().contiguous().numpy(), "RGBA")


def _png(picture: Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format="PNG", compress_level=4)
    return stream.getvalue()
