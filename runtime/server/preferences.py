"""The browser's settings."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Any

from aiohttp import web

from ...hosts.files import whole_file
from .bodies import BadBody, answer, read_json, read_object
from .config import Config
from .state import SERVER

LOG = logging.getLogger(__name__)

DEFAULTS = {
    # It asks a host on the internet.
    "Comfy.Notification.ShowVersionUpdates": False,
}
UNSAVED = frozenset({"Comfy.TutorialCompleted"})
"""While this is unset, the frontend opens on the templates; once it is set, on a graph of models that are not here."""

_LONGEST_ID = 200


def load(config: Config) -> dict[str, Any]:
    """What was saved over the defaults. A file that someone damaged is put aside and named."""
    return DEFAULTS | {key: value for key, value in _saved(config.settings).items() if key not in UNSAVED}


def _saved(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict):
            return found
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        pass
    aside = path.with_suffix(".damaged.json")
    os.replace(path, aside)
    LOG.warning("%s is damaged; it is now %s, and the settings are the defaults", path, aside)
    return {}


def save(config: Config, changed: dict[str, Any]) -> None:
    """Keep these settings beside those that are there."""
    merged = _saved(config.settings) | changed
    text = json.dumps(merged, indent=1).encode()
    if any(len(key) > _LONGEST_ID for key in changed) or len(text) > config.limits.body:
        raise BadBody("the settings are too many, or the name of one is too long")
    with whole_file(config.settings) as stream:
        stream.write(text)


async def get_settings(request: web.Request) -> web.Response:
    """All settings."""
    server = request.app[SERVER]
    async with server.writing:
        return answer(await asyncio.to_thread(load, server.config))


async def get_setting(request: web.Request) -> web.Response:
    """One setting, null if it is not set."""
    server = request.app[SERVER]
    async with server.writing:
        return answer((await asyncio.to_thread(load, server.config)).get(request.match_info["id"]))


async def post_settings(request: web.Request) -> web.Response:
    """Change some settings."""
    server = request.app[SERVER]
    changed = await read_object(request, server.config.limits.body)
    async with server.writing:
        await asyncio.to_thread(save, server.config, changed)
    return web.Response()


async def post_setting(request: web.Request) -> web.Response:
    """Change one setting."""
    server = request.app[SERVER]
    value = await read_json(request, server.config.limits.body)
    async with server.writing:
        await asyncio.to_thread(save, server.config, {request.match_info["id"]: value})
    return web.Response()


ROUTES = [
    web.get("/settings", get_settings),
    web.post("/settings", post_settings),
    web.get("/settings/{id}", get_setting),
    web.post("/settings/{id}", post_setting),
]
