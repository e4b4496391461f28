"""Pictures that the browser shows."""

from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from . import pictures
from .bodies import BadBody
from .state import SERVER
from .uploads import located

TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
    ".bmp": "image/bmp",
    ".avif": "image/avif",
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".txt": "text/plain",
    ".json": "application/json",
}
"""What a browser may show. Anything else in the folders is only downloaded: a page or an SVG could run scripts."""


async def view(request: web.Request) -> web.StreamResponse:
    """A file of the output folder, or of another (`type`), whole, as a smaller picture (`preview`), or a `channel`."""
    server, asked = request.app[SERVER], request.query
    name = asked.get("filename", "")
    path = located(server, name, asked.get("subfolder", ""), asked.get("type") or "output")
    if not path.is_file():
        raise web.HTTPNotFound
    which, limits = asked.get("channel", "rgba"), server.config.limits
    try:
        if "preview" in asked:
            format, quality = _preview(asked["preview"])
            format = "webp" if "a" in which and which != "rgba" else format
            async with server.desk:
                data = await asyncio.to_thread(pictures.thumbnail, path, format, quality, which == "rgb", limits)
            return _picture(data, f"image/{format}")
        if which in ("rgb", "a"):
            async with server.desk:
                return _picture(await asyncio.to_thread(pictures.channel, path, which, limits), "image/png")
    except pictures.BadPicture as error:
        raise BadBody(str(error)) from None
    return _file(path)


def _preview(asked: str) -> tuple[str, int]:
    """ "webp;90" as format and quality, ComfyUI's defaults where it says nothing useful."""
    format, _, quality = asked.partition(";")
    known = format if format in ("webp", "jpeg") else "webp"
    return known, min(100, max(1, int(quality))) if quality.isdecimal() and len(quality) < 4 else 90


def _picture(data: bytes, type_: str) -> web.Response:
    return web.Response(body=data, content_type=type_, headers={"Cache-Control": "no-cache"})


def _file(path: Path) -> web.FileResponse:
    known = TYPES.get(path.suffix.lower())
    headers = {"Content-Type": known or "application/octet-stream", "Cache-Control": "no-cache"}
    headers["Content-Security-Policy"] = "sandbox; default-src 'none'"
    if known is None:
        headers["Content-Disposition"] = "attachment"
    return web.FileResponse(path, headers=headers)


ROUTES = [web.get("/view", view)]
