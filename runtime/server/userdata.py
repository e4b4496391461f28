"""What the browser keeps on the server: saved workflows, subgraphs, bookmarks."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from aiohttp import web

from ...hosts.files import whole_file
from .bodies import BadBody, answer, read
from .paths import below, contained
from .state import SERVER

FOLDERS = ("workflows", "subgraphs")
"""What the page always lists."""
_TYPES = {".json": "application/json", ".css": "text/css", ".txt": "text/plain"}


def _flag(request: web.Request, name: str, default: bool = False) -> bool:
    return request.query.get(name, str(default)).lower() in ("true", "1")


def _about(path: Path, root: Path) -> dict[str, Any]:
    stat = path.stat()
    made = getattr(stat, "st_birthtime", stat.st_ctime)
    name = path.relative_to(root).as_posix()
    return {"path": name, "size": stat.st_size, "modified": int(stat.st_mtime * 1000), "created": int(made * 1000)}


def _listed(folder: Path, recurse: bool) -> list[Path]:
    found: list[Path] = []
    for here, inside, names in os.walk(folder):
        inside[:] = sorted(each for each in inside if recurse and not each.startswith("."))
        found += [Path(here, each) for each in sorted(names) if not each.startswith(".")]
    return [each for each in found if each.is_file() and not each.is_symlink()]


async def list_files(request: web.Request) -> web.Response:
    """The files of a folder: names, parts of names (`split`) or all about them (`full_info`)."""
    root = request.app[SERVER].config.documents
    asked = request.query.get("dir", "")
    if not asked:
        raise BadBody("dir: expected the name of a folder")
    folder = below(root, asked)
    if not folder.is_dir():
        raise web.HTTPNotFound
    recurse, full, split = (_flag(request, each) for each in ("recurse", "full_info", "split"))

    def entries() -> list[Any]:
        files = _listed(folder, recurse)
        if full:
            return [_about(each, folder) for each in files]
        names = [each.relative_to(folder).as_posix() for each in files]
        return [[name, *name.split("/")] for name in names] if split else names

    return answer(await asyncio.to_thread(entries))


async def list_tree(request: web.Request) -> web.Response:
    """Files and folders below a folder, as the second version of the list gives them."""
    root = request.app[SERVER].config.documents.resolve()
    folder = below(root, request.query.get("path", ""))
    if not folder.is_dir():
        return answer([], status=200 if folder == root else 404)

    def entries() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for here, inside, names in os.walk(folder):
            for each in inside:
                found.append({"name": each, "path": Path(here, each).relative_to(root).as_posix(), "type": "directory"})
            for each in names:
                about = _about(Path(here, each), root)
                modified = about["modified"] / 1000
                found.append(
                    {"name": each, "path": about["path"], "type": "file", "size": about["size"], "modified": modified}
                )
        return sorted(found, key=lambda each: (each["type"] != "directory", each["name"].lower()))

    return answer(await asyncio.to_thread(entries))


def _place(request: web.Request, part: str = "file") -> Path:
    return contained(request.app[SERVER].config.documents, request.match_info[part])


async def get_file(request: web.Request) -> web.StreamResponse:
    """One file."""
    path = _place(request)
    if not path.is_file():
        if request.match_info["file"] == "user.css":
            # The page always asks for the user's own style.
            return web.Response(content_type="text/css")
        raise web.HTTPNotFound
    kind = _TYPES.get(path.suffix.lower(), "application/octet-stream")
    return web.FileResponse(path, headers={"Content-Type": kind, "Cache-Control": "no-cache"})


async def put_file(request: web.Request) -> web.Response:
    """Keep the body under this name, whole or not at all. 409 if there is a file and `overwrite` is false."""
    server, path = request.app[SERVER], _place(request)
    body = await read(request, server.config.limits.body)
    overwrite = _flag(request, "overwrite", True)

    def write() -> None:
        with whole_file(path) as stream:
            stream.write(body)

    # One after the other: two saves of one name must not both find it free.
    async with server.writing:
        _refuse_taken(path, overwrite)
        await _on_disk(write)
        return _told(request, path)


async def delete_file(request: web.Request) -> web.Response:
    """Drop one file."""
    path = _place(request)
    async with request.app[SERVER].writing:
        if not path.is_file():
            raise web.HTTPNotFound
        await _on_disk(path.unlink)
    return web.Response(status=204)


async def move_file(request: web.Request) -> web.Response:
    """Another name for one file."""
    source, goal = _place(request), _place(request, "goal")

    def move() -> None:
        goal.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, goal)

    async with request.app[SERVER].writing:
        if not source.is_file():
            raise web.HTTPNotFound
        _refuse_taken(goal, _flag(request, "overwrite", True))
        await _on_disk(move)
        return _told(request, goal)


def _refuse_taken(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise BadBody("there is a folder of this name")
    if path.exists() and not overwrite:
        raise web.HTTPConflict(text="File already exists")


async def _on_disk(work: Any) -> None:
    try:
        await asyncio.to_thread(work)
    except OSError as error:
        raise BadBody(f"the file could not be written: {error.strerror}") from None


def _told(request: web.Request, path: Path) -> web.Response:
    root = request.app[SERVER].config.documents.resolve()
    return answer(_about(path, root) if _flag(request, "full_info") else path.relative_to(root).as_posix())


ROUTES = [
    web.get("/userdata", list_files),
    web.get("/v2/userdata", list_tree),
    web.post("/userdata/{file}/move/{goal}", move_file),
    web.get("/userdata/{file}", get_file),
    web.post("/userdata/{file}", put_file),
    web.delete("/userdata/{file}", delete_file),
]
