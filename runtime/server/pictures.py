"""Pictures as bytes: is it really one, smaller for a thumbnail, one channel of it, an alpha from another."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Limits

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
}
"""What may be uploaded: formats that a browser shows and that hold nothing but a picture."""


class BadPicture(ValueError):
    """Bytes that are no picture, not a whole one, or one that would fill the memory."""


def verified(data: bytes, limits: Limits) -> str:
    """The format, after every frame was decoded. BadPicture says what is wrong.

    The size is read from the header first: a few kilobytes can claim to be many gigabytes.
    """
    picture = _opened(data, limits)
    count = getattr(picture, "n_frames", 1)
    if count * picture.width * picture.height > 4 * limits.pixels:
        raise BadPicture(f"the animation has too many pixels ({count} frames of {picture.width}x{picture.height})")
    try:
        for frame in range(count):
            picture.seek(frame)
            picture.load()
    except _BROKEN as error:
        raise BadPicture(f"the picture is damaged ({error})") from None
    return str(picture.format)


_BROKEN = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, MemoryError)
"""What Pillow raises on a file that is no picture."""


def _opened(source: bytes | Path, limits: Limits, formats: tuple[str, ...] = tuple(SUFFIXES)) -> Image:
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    except (*_BROKEN, Image.DecompressionBombError) as error:
        known = ", ".join(formats)
        raise BadPicture(f"expected a picture ({known}); this is none ({type(error).__name__})") from None
    if picture.width * picture.height > limits.pixels:
        raise BadPicture(f"the picture is too large: {picture.width}x{picture.height}, at most {limits.pixels} pixels")
    return picture


def named(name: str, format: str) -> str:
    """The name with a suffix that tells the format, so that the file is served as what it is."""
    path = Path(name)
    suffixes = SUFFIXES[format]
    return name if path.suffix.lower() in suffixes else f"{path.stem}{suffixes[0]}"


def thumbnail(path: Path, format: str, quality: int, opaque: bool, limits: Limits) -> bytes:
    """The picture coded anew as "webp" or "jpeg", for previews."""
    with _opened(path, limits) as picture:
        kept = picture.convert("RGB") if opaque or format == "jpeg" else picture
        return _coded(kept, format, quality=quality)


def channel(path: Path, which: str, limits: Limits) -> bytes:
    """A PNG of the colours alone ("rgb"), or of the alpha alone ("a", black where there is none)."""
    from PIL import Image

    with _opened(path, limits) as picture:
        if which == "rgb":
            return _coded(picture.convert("RGB"), "PNG", compress_level=1)
        alpha = Image.new("RGBA", picture.size)
        alpha.putalpha(picture.convert("RGBA").getchannel("A"))
        return _coded(alpha, "PNG", compress_level=1)


def with_alpha(path: Path, mask: bytes, limits: Limits) -> bytes:
    """A PNG of the picture with the mask's alpha and its own text. BadPicture if their sizes differ."""
    from PIL.PngImagePlugin import PngInfo

    with _opened(path, limits) as picture, _opened(mask, limits) as drawn:
        if picture.size != drawn.size:
            raise BadPicture(
                f"the mask is {drawn.size[0]}x{drawn.size[1]}, its picture {picture.width}x{picture.height}"
            )
        info = PngInfo()
        for name, text in getattr(picture, "text", {}).items():
            info.add_text(name, str(text))
        result = picture.convert("RGBA")
        result.putalpha(drawn.convert("RGBA").getchannel("A"))
        return _coded(result, "PNG", pnginfo=info, compress_level=4)


def _coded(picture: Image, format: str, **how: object) -> bytes:
    stream = io.BytesIO()
    try:
        picture.save(stream, format=format, **how)
    except _BROKEN as error:
        raise BadPicture(f"the picture cannot be shown ({error})") from None
    return stream.getvalue()
