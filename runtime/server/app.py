"""The application: routes, guards, and what begins and ends with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable

from aiohttp import web

from ..executor import Executor
from ..registry import Nodes, all_nodes
from . import about, control, frontend, guard, history, preferences, prompts, uploads, userdata, view
from .config import Config
from .queue import Queue
from .sockets import Hub
from .state import SERVER, Server

API = [
    *about.ROUTES,
    *control.ROUTES,
    *prompts.ROUTES,
    *uploads.ROUTES,
    *view.ROUTES,
    *userdata.ROUTES,
    *preferences.ROUTES,
    *frontend.ROUTES,
]


def create(config: Config, nodes: Nodes | None = None) -> web.Application:
    """The application for one server. To be called on the event loop that it will run on."""
    nodes = all_nodes() if nodes is None else nodes
    hub = Hub(config.limits)
    server = Server(config, nodes, hub, Queue(config, Executor(nodes, config.folders), hub))
    app = web.Application(middlewares=[guard.middleware(config)], client_max_size=config.limits.body)
    app[SERVER] = server
    app.add_routes(_under_api(API))
    # ComfyUI answers without the prefix too, and programs rely on it.
    app.add_routes([*API, *frontend.PAGES])
    app.on_response_prepare.append(guard.add_headers)
    app.on_shutdown.append(_hang_up)
    app.cleanup_ctx.append(_work)
    return app


def _under_api(routes: Iterable[web.RouteDef]) -> list[web.RouteDef]:
    return [web.RouteDef(each.method, f"/api{each.path}", each.handler, each.kwargs) for each in routes]


async def _hang_up(app: web.Application) -> None:
    await app[SERVER].hub.close()


async def _work(app: web.Application) -> AsyncIterator[None]:
    server = app[SERVER]
    await asyncio.to_thread(_tidy, server.config)
    await server.queue.start()
    yield
    await server.queue.close()


def _tidy(config: Config) -> None:
    # What someone draws is nobody else's business.
    config.user.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in userdata.FOLDERS:
        (config.documents / name).mkdir(parents=True, exist_ok=True)
    for folder in (config.user, config.folders.output, config.folders.input):
        history.sweep(folder)
