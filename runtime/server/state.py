"""What the handlers share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aiohttp import web

from ..registry import Nodes
from .config import Config
from .queue import Queue
from .sockets import Hub


@dataclass
class Server:
    """One server. `writing` is held by who changes the user's files, `desk` by who decodes a picture."""

    config: Config
    nodes: Nodes
    hub: Hub
    queue: Queue
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    desk: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))


SERVER = web.AppKey("server", Server)
