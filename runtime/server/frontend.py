"""Files that the browser loads: ComfyUI's frontend from its package, our part of it, and the examples."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import mimetypes
from pathlib import Path
from urllib.parse import quote

from aiohttp import web

from .bodies import answer
from .config import NAME, PACK
from .paths import BadPath, contained

PACKAGE = "comfyui-frontend-package"
FIRST = "text_to_image"
"""The example that is listed first."""

# The system's own table, where it has one, is often wrong about these.
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".css": "text/css", ".json": "application/json"}
_TYPES |= {".html": "text/html", ".svg": "image/svg+xml", ".webp": "image/webp", ".wasm": "application/wasm"}
_TYPES |= {".woff2": "font/woff2", ".md": "text/markdown", ".map": "application/json"}


def static_folder() -> Path | None:
    """Where the frontend's files are; None if its package is not installed."""
    found = importlib.util.find_spec("comfyui_frontend_package")
    folders = found.submodule_search_locations if found else None
    static = Path(folders[0]) / "static" if folders else None
    return static if static and (static / "index.html").is_file() else None


def version() -> str:
    """The frontend's version, "0.0.0" if it is not installed."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return "0.0.0"


def _file(root: Path, name: str, lasting: bool = False) -> web.StreamResponse:
    try:
        path = contained(root, name)
    except BadPath:
        raise web.HTTPNotFound from None
    if not path.is_file():
        raise web.HTTPNotFound
    suffix = path.suffix.lower()
    kind = _TYPES.get(suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    cache = "public, max-age=31536000, immutable" if lasting else "no-cache"
    text = "; charset=utf-8" if kind.startswith("text/") else ""
    return web.FileResponse(path, headers={"Content-Type": kind + text, "Cache-Control": cache})


async def page(request: web.Request) -> web.StreamResponse:
    """The frontend. Names under assets/ hold a digest of their content."""
    static, name = static_folder(), request.match_info.get("name", "")
    if static is None:
        return web.Response(status=404, text=f"The page needs {PACKAGE}; the API works without it.\n")
    return _file(static, name or "index.html", lasting=name.startswith("assets/"))


async def extensions(request: web.Request) -> web.Response:
    """The addresses of the pack's scripts: every .js below web/, as in ComfyUI."""
    web_folder = PACK / "web"
    scripts = sorted(each.relative_to(web_folder).as_posix() for each in web_folder.rglob("*.js"))
    return answer([f"/extensions/{NAME}/{quote(each)}" for each in scripts])


async def extension(request: web.Request) -> web.StreamResponse:
    """A file of web/: a script, or a node's help page."""
    return _file(PACK / "web", request.match_info["name"])


async def templates(request: web.Request) -> web.Response:
    """The names of the examples."""
    names = sorted(each.stem for each in (PACK / "example_workflows").glob("*.json"))
    return answer({NAME: sorted(names, key=lambda name: name != FIRST)})


async def template(request: web.Request) -> web.StreamResponse:
    """An example, or its thumbnail."""
    return _file(PACK / "example_workflows", request.match_info["name"])


async def no_templates(request: web.Request) -> web.Response:
    """ComfyUI's own templates, of models that are not here: none."""
    return answer([])


async def no_logos(request: web.Request) -> web.Response:
    """Logos for ComfyUI's own templates."""
    return answer({})


async def style(request: web.Request) -> web.Response:
    """The user's own style where the user has none."""
    return web.Response(content_type="text/css")


ROUTES = [web.get("/extensions", extensions), web.get("/workflow_templates", templates)]
ROUTES += [web.get(f"/workflow_templates/{NAME}/{{name:.+}}", template)]
PAGES = [
    web.get("/templates/index_logo.json", no_logos),
    web.get("/templates/index{locale:[A-Za-z.-]*}.json", no_templates),
    web.get(f"/extensions/{NAME}/{{name:.+}}", extension),
    web.get("/user.css", style),
    web.get("/", page),
    web.get("/{name:.+}", page),
]
