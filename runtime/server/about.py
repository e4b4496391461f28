"""What the server tells of itself: nodes, models, versions, and the lists of ComfyUI's that are empty here."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from aiohttp import web

from ...hosts.folders import models, using
from .. import registry
from .bodies import answer
from .config import PACK
from .frontend import version
from .state import SERVER, Server
from .uploads import folder

_FOLDERS = ("checkpoints", "loras")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


def constant(value: Any):
    """A handler that always answers the same."""

    async def handler(request: web.Request) -> web.Response:
        return answer(value)

    return handler


async def object_info(request: web.Request) -> web.Response:
    """Every node, or one, as the browser draws it. Combos list the files that are there now."""
    server, name = request.app[SERVER], request.match_info.get("node")
    nodes = server.nodes if name is None else {id_: each for id_, each in server.nodes.items() if id_ == name}

    def schemas() -> dict[str, Any]:
        with using(server.config.folders):
            return registry.object_info(nodes)

    return answer(await asyncio.to_thread(schemas))


async def features(request: web.Request) -> web.Response:
    """What newer frontends ask before they use it."""
    return answer(request.app[SERVER].hub.features())


async def system_stats(request: web.Request) -> web.Response:
    """Versions, and memory in bytes."""
    memory = _memory()
    system = {
        "os": os.name,
        "ram_total": memory[0],
        "ram_free": memory[1],
        "comfyui_version": f"velatura-{_installed('velatura')}",
        # Another one than is served, and the browser warns.
        "required_frontend_version": version(),
        "python_version": platform.python_version(),
        "pytorch_version": _installed("torch"),
        "embedded_python": False,
        "argv": [],
    }
    return answer({"system": system, "devices": [await asyncio.to_thread(_device, memory)]})


def _device(memory: tuple[int, int]) -> dict[str, Any]:
    """What the models run on."""
    import torch

    if not torch.cuda.is_available():
        about, (total, free) = {"name": "cpu", "type": "cpu", "index": None}, memory
    else:
        about = {"name": torch.cuda.get_device_name(), "type": "cuda", "index": torch.cuda.current_device()}
        free, total = torch.cuda.mem_get_info()
    return about | {"vram_total": total, "vram_free": free, "torch_vram_total": total, "torch_vram_free": free}


def _memory() -> tuple[int, int]:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        page = os.sysconf("SC_PAGE_SIZE")
        return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    return 0, 0


def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


async def i18n(request: web.Request) -> web.Response:
    """The pack's translations by language."""
    return answer(await asyncio.to_thread(_translations))


def _translations() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted((PACK / "locales").glob("*/*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        language = found.setdefault(path.parent.name, {})
        language.update(content if path.stem == "main" else {path.stem: content})
    return found


async def model_folders(request: web.Request) -> web.Response:
    """The kinds of models, and where each is."""
    root = request.app[SERVER].config.folders.models
    return answer([{"name": kind, "folders": [str(root / kind)]} for kind in _FOLDERS])


async def model_kinds(request: web.Request) -> web.Response:
    """The kinds of models."""
    return answer(list(_FOLDERS))


def _models(server: Server, kind: str) -> list[str]:
    if not _NAME.fullmatch(kind):
        return []
    with using(server.config.folders):
        return models(kind)


async def model_list(request: web.Request) -> web.Response:
    """The models of a kind."""
    return answer(await asyncio.to_thread(_models, request.app[SERVER], request.match_info["kind"]))


async def model_files(request: web.Request) -> web.Response:
    """The models of a kind, as the browser's library lists them."""
    names = await asyncio.to_thread(_models, request.app[SERVER], request.match_info["kind"])
    return answer([{"name": name, "pathIndex": 0} for name in names])


async def files(request: web.Request) -> web.Response:
    """The files of the input, output or temporary folder, the newest first."""
    kind = request.match_info["kind"]
    root: Path = folder(request.app[SERVER], kind)

    def listed() -> list[str]:
        found = [each for each in root.iterdir() if each.is_file()] if root.is_dir() else []
        names = [each.name for each in sorted(found, key=lambda each: -each.stat().st_mtime)]
        return [name if kind == "input" else f"{name} [{kind}]" for name in names if not name.startswith(".")]

    return answer(await asyncio.to_thread(listed))


_USERS = {"storage": "server", "migrated": True}
ROUTES = [
    web.get("/users", constant(_USERS)),
    web.get("/object_info", object_info),
    web.get("/object_info/{node}", object_info),
    web.get("/system_stats", system_stats),
    web.get("/features", features),
    web.get("/i18n", i18n),
    web.get("/embeddings", constant([])),
    web.get("/global_subgraphs", constant({})),
    web.get("/node_replacements", constant({})),
    web.get("/models", model_kinds),
    web.get("/models/{kind}", model_list),
    web.get("/experiment/models", model_folders),
    web.get("/experiment/models/{kind}", model_files),
    web.get("/internal/files/{kind}", files),
    web.get("/internal/logs", constant("")),
    web.get("/internal/logs/raw", constant({"entries": [], "size": {"cols": 80, "rows": 24}})),
    web.patch("/internal/logs/subscribe", constant({})),
]
