"""Pictures that the browser brings: upload/image and upload/mask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from aiohttp import BodyPartReader, web

from ...hosts.files import whole_file
from . import pictures
from .bodies import BadBody, answer, loads
from .paths import contained, joined
from .state import SERVER, Server

_FIELD = 64 * 1024


async def upload_image(request: web.Request) -> web.Response:
    """Keep a picture in the input folder, or in one of the others; the answer says where."""
    server = request.app[SERVER]
    form = await _form(request, server)

    def make(form: Form) -> tuple[str, bytes]:
        return pictures.verified(form.data, server.config.limits), form.data

    return await _keep(server, form, make)


async def upload_mask(request: web.Request) -> web.Response:
    """Keep a picture that is there already with another alpha: `image` brings it, `original_ref` names the picture."""
    server = request.app[SERVER]
    form = await _form(request, server)
    reference = loads(form.fields.get("original_ref", "").encode("utf-8", "replace"))
    if not isinstance(reference, dict):
        raise BadBody("original_ref: expected an object")
    name, folder, kind = (str(reference.get(key) or "") for key in ("filename", "subfolder", "type"))
    original = located(server, name, folder, kind or "output")
    if not original.is_file():
        raise web.HTTPNotFound

    def make(form: Form) -> tuple[str, bytes]:
        return "PNG", pictures.with_alpha(original, form.data, server.config.limits)

    return await _keep(server, form, make)


class Form:
    """A posted form: its short texts, and one file."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.name, self.data = "", b""


async def _form(request: web.Request, server: Server) -> Form:
    form = Form()
    try:
        parts = await request.multipart()
        count = 0
        while (part := await parts.next()) is not None:
            count += 1
            if count > 16 or not isinstance(part, BodyPartReader):
                raise BadBody("expected a form with a picture")
            if part.name == "image":
                form.name = part.filename or ""
                form.data = await _read(part, server.config.limits.upload)
            elif part.name:
                form.fields[part.name] = (await _read(part, _FIELD)).decode("utf-8", "replace")
    except (ValueError, LookupError, AssertionError, RuntimeError) as error:
        raise BadBody(f"expected a multipart form ({type(error).__name__})") from None
    if not form.name or not form.data:
        raise BadBody("the form has no picture: expected a file called “image”")
    return form


async def _read(part: BodyPartReader, limit: int) -> bytes:
    found = bytearray()
    while chunk := await part.read_chunk(2**16):
        found += chunk
        if len(found) > limit:
            raise web.HTTPRequestEntityTooLarge(limit, len(found))
    return bytes(found)


async def _keep(server: Server, form: Form, make: Callable[[Form], tuple[str, bytes]]) -> web.Response:
    kind = form.fields.get("type") or "input"
    root = folder(server, kind)
    subfolder = form.fields.get("subfolder", "")
    overwrite = form.fields.get("overwrite") in ("true", "1")
    # Checked before any work is done, and again with the name that is really written.
    contained(root, joined(subfolder, form.name))

    def store() -> str:
        format, data = make(form)
        wanted = pictures.named(form.name, format)
        path = contained(root, joined(subfolder, wanted))
        if not overwrite:
            path = _free(path, data)
        if path.is_dir():
            raise BadBody(f"{wanted} is a folder")
        with whole_file(path) as stream:
            stream.write(data)
        return path.name

    async with server.desk:
        try:
            name = await asyncio.to_thread(store)
        except pictures.BadPicture as error:
            raise BadBody(str(error)) from None
        except OSError as error:
            raise BadBody(f"the picture could not be kept: {error.strerror}") from None
    return answer({"name": name, "subfolder": subfolder.removesuffix("/"), "type": kind})


def _free(path: Path, data: bytes) -> Path:
    """The path, or "name (2)" and on where another file is; the same picture again is the same file."""
    tried, count = path, 0
    while tried.exists() and not (tried.is_file() and tried.read_bytes() == data):
        count += 1
        tried = path.with_name(f"{path.stem} ({count}){path.suffix}")
    return tried


def folder(server: Server, kind: str) -> Path:
    """One of the three folders. BadBody if there is no such."""
    if kind not in ("input", "output", "temp"):
        raise BadBody(f"type: expected input, output or temp, got {kind[:40]!a}")
    return server.config.folders.of(kind)


def located(server: Server, name: str, subfolder: str, kind: str) -> Path:
    """A file by the three words that nodes and the browser call it by; "NAME [input]" names its folder itself."""
    for each in ("input", "output", "temp"):
        if name.endswith(f" [{each}]"):
            name, kind = name.removesuffix(f" [{each}]"), each
    return contained(folder(server, kind), joined(subfolder, name))


ROUTES = [web.post("/upload/image", upload_image), web.post("/upload/mask", upload_mask)]
