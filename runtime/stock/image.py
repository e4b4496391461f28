"""IMAGE [B, H, W, 3] in 0 .. 1: reading, resizing and saving."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...hosts import schema as io
from ...hosts import ui
from ...hosts.folders import folders
from ..images import save_images, save_webp
from ._node import StockNode, size_inputs
from .resize import CROPS, IMAGE_METHODS, resize

if TYPE_CHECKING:
    from PIL.Image import Image

_ANNOTATION = re.compile(r"^(?P<name>.*?)\s*\[(?P<kind>input|output|temp)\]$")


def _uploads(only_images: bool) -> list[str]:
    root = folders().input
    files = sorted(each.name for each in root.iterdir() if each.is_file()) if root.is_dir() else []
    if not only_images:
        return files
    from PIL import Image

    known = Image.registered_extensions()
    return [each for each in files if Path(each).suffix.lower() in known]


def _located(image: str) -> Path:
    """A picture by name below the input folder; "NAME [output]" and "NAME [temp]" mean the other two."""
    match = _ANNOTATION.match(image)
    name, kind = (match["name"], match["kind"]) if match else (image, "input")
    root = folders().of(kind).absolute()
    path = Path(os.path.normpath(root / name))
    if not path.is_relative_to(root) or not path.is_file():
        raise FileNotFoundError(f"image: there is no {name!r} in {root}; put the picture there or choose another")
    return path


def _opened(image: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    path = _located(image)
    try:
        picture = Image.open(path)
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"image: {path} is not a whole picture ({error}); save it as PNG or JPEG again") from error
    return picture


def _upright(frame: Image) -> Image:
    """Turned as its EXIF orientation says; 16 bits of grey brought to 8."""
    from PIL import ImageOps

    frame = ImageOps.exif_transpose(frame)
    if frame.mode.startswith("I"):
        frame = frame.convert("I").point(lambda value: value * (1 / 255))
    return frame


def _levels(channel: Image) -> Tensor:
    """8-bit pixels as float32 in 0 .. 1."""
    import numpy as np

    return torch.from_numpy(np.array(channel).astype(np.float32) / 255.0)


def _transparency(frame: Image) -> Tensor:
    """1 - alpha [H, W]; for a picture without alpha ComfyUI's stand-in, 64x64 zeros."""
    if "A" in frame.getbands():
        return 1 - _levels(frame.getchannel("A"))
    if frame.mode == "P" and "transparency" in frame.info:
        return 1 - _levels(frame.convert("RGBA").getchannel("A"))
    return torch.zeros(64, 64)


def _frames(picture: Image) -> Iterator[Image]:
    from PIL import ImageSequence

    for frame in ImageSequence.Iterator(picture):
        yield _upright(frame)
        if picture.format == "MPO":  # A photograph with a second view or a thumbnail in it, not an animation.
            return


class _FromInputFolder(StockNode):
    """A file's content counts, not its name alone."""

    @classmethod
    def fingerprint_inputs(cls, image: str, **_: Any) -> str:
        return hashlib.sha256(_located(image).read_bytes()).hexdigest()

    @classmethod
    def validate_inputs(cls, image: str) -> bool | str:
        try:
            return bool(_located(image))
        except FileNotFoundError as error:
            return str(error)


class LoadImage(_FromInputFolder):
    """A picture, or the frames of an animation."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadImage",
            display_name="Load Image",
            category="image",
            description="Reads a picture from the input folder. The mask is 1 where the picture is transparent.",
            inputs=[
                io.Combo.Input(
                    "image",
                    options=_uploads(only_images=True),
                    upload=io.UploadType.image,
                    tooltip="A picture in the input folder.",
                )
            ],
            outputs=[io.Image.Output(), io.Mask.Output(tooltip="1 where transparent; 64x64 zeros without alpha.")],
        )

    @classmethod
    def execute(cls, image: str) -> io.NodeOutput:
        frames = list(_frames(_opened(image)))
        alike = [frame for frame in frames if frame.size == frames[0].size]
        images = torch.stack([_levels(frame.convert("RGB")) for frame in alike])
        return io.NodeOutput(images, torch.stack([_transparency(frame) for frame in alike]))


class LoadImageMask(_FromInputFolder):
    """One channel of a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadImageMask",
            display_name="Load Image (as Mask)",
            category="mask",
            description="Reads one channel of a picture as a mask. Alpha is turned round: 1 where transparent.",
            inputs=[
                io.Combo.Input(
                    "image",
                    options=_uploads(only_images=False),
                    upload=io.UploadType.image,
                    tooltip="A picture in the input folder.",
                ),
                io.Combo.Input("channel", options=["alpha", "red", "green", "blue"], tooltip="Which channel."),
            ],
            outputs=[io.Mask.Output()],
        )

    @classmethod
    def execute(cls, image: str, channel: str) -> io.NodeOutput:
        levels = _levels(_upright(_opened(image)).convert("RGBA").getchannel(channel[0].upper()))
        return io.NodeOutput((1 - levels if channel == "alpha" else levels)[None])


class ImageScale(StockNode):
    """Another size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImageScale",
            display_name="Upscale Image",
            category="image/upscaling",
            description="Resizes pictures. A side of 0 follows from the other; both 0 change nothing.",
            inputs=[
                io.Image.Input("image", tooltip="The pictures."),
                io.Combo.Input("upscale_method", options=IMAGE_METHODS, tooltip="How to interpolate."),
                *size_inputs(minimum=0, step=1),
                io.Combo.Input("crop", options=CROPS, tooltip="“center” keeps the proportions and cuts what is over."),
            ],
            outputs=[io.Image.Output()],
            search_aliases=["resize", "downscale"],
        )

    @classmethod
    def execute(cls, image: Tensor, upscale_method: str, width: int, height: int, crop: str) -> io.NodeOutput:
        if width == height == 0:
            return io.NodeOutput(image)
        h, w = image.shape[1:3]
        width = width or max(1, round(w * height / h))
        height = height or max(1, round(h * width / w))
        return io.NodeOutput(resize(image.movedim(-1, 1), width, height, upscale_method, crop).movedim(1, -1))


class SaveImage(StockNode):
    """PNG files that carry their workflow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveImage",
            display_name="Save Image",
            category="image",
            description="Saves pictures as numbered PNG files in the output folder, with their workflow inside.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures."),
                io.String.Input(
                    "filename_prefix",
                    default="ComfyUI",
                    tooltip="The files are named PREFIX_00001_.png and on. May hold folders, and %width%, %height%, "
                    "%year%, %month%, %day%, %hour%, %minute%, %second%.",
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
            search_aliases=["export", "png"],
        )

    @classmethod
    def execute(cls, images: Tensor, filename_prefix: str = "ComfyUI") -> io.NodeOutput:
        return io.NodeOutput(ui=ui.SavedImages(save_images(images, filename_prefix, hidden=cls.hidden)))


class PreviewImage(StockNode):
    """Pictures shown and not kept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PreviewImage",
            display_name="Preview Image",
            category="image",
            description="Shows pictures; they are written to the temporary folder only.",
            inputs=[io.Image.Input("images", tooltip="The pictures.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, images: Tensor) -> io.NodeOutput:
        return io.NodeOutput(ui=ui.SavedImages(save_images(images, "ComfyUI_temp", io.FolderType.temp, cls.hidden)))


class SaveAnimatedWEBP(StockNode):
    """A film of the batch."""

    METHODS: ClassVar = {"default": 4, "fastest": 0, "slowest": 6}

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SaveAnimatedWEBP",
            display_name="SaveAnimatedWEBP",
            category="image/animation",
            description="Saves the pictures as one animation in the output folder, with its workflow inside.",
            inputs=[
                io.Image.Input("images", tooltip="The frames."),
                io.String.Input("filename_prefix", default="ComfyUI", tooltip="The file is PREFIX_00001_.webp and on."),
                io.Float.Input("fps", default=6.0, min=0.01, max=1000.0, step=0.01, tooltip="Frames each second."),
                io.Boolean.Input("lossless", default=True, tooltip="Exact pixels, in larger files."),
                io.Int.Input("quality", default=80, min=0, max=100, tooltip="Lossless: how hard to compress."),
                io.Combo.Input("method", options=list(cls.METHODS), tooltip="Slower methods make smaller files."),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, images: Tensor, filename_prefix: str, fps: float, lossless: bool, quality: int, method: str
    ) -> io.NodeOutput:
        how = {"lossless": lossless, "quality": quality, "method": cls.METHODS[method]}
        saved = save_webp(images, filename_prefix, fps=fps, **how, hidden=cls.hidden)
        return io.NodeOutput(ui=ui.SavedImages(saved, is_animated=True))


NODES = [LoadImage, LoadImageMask, ImageScale, SaveImage, PreviewImage, SaveAnimatedWEBP]
