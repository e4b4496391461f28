"""The websockets: who listens, and what they are told."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from .bodies import BadBody, loads
from .config import Limits
from .messages import Event, Preview

_LARGEST = 2**20
_HEARTBEAT = 300
"""Seconds between two pings; who leaves one unanswered for half of it is gone. A tab reads no pings, either, while its
page is stalled by a large graph, a debugger or a busy machine: at 30 such a tab lost its run. One that vanished without
a word costs no more meanwhile than its limit of unread messages."""
_BUSY = 8
"""Messages that wait for a client beyond which it is sent no previews: newer ones will come."""


class Client:
    """One socket. `id` is the browser tab's own name for itself, which a copied tab shares."""

    def __init__(self, id_: str, socket: web.WebSocketResponse, limit: int):
        self.id, self.socket = id_, socket
        # None until it tells what it knows. Programs that do not take whatever is binary for a result.
        self.flags: dict[str, Any] | None = None
        self.unread: asyncio.Queue[Event | Preview | None] = asyncio.Queue(limit)

    def put(self, message: Event | Preview) -> None:
        """Leave a message for it. A client that reads nothing is given up."""
        if isinstance(message, Preview) and (self.flags is None or self.unread.qsize() > _BUSY):
            return
        if self.unread.full():
            self.give_up()
        else:
            self.unread.put_nowait(message)

    def give_up(self) -> None:
        """Let its sender end."""
        while not self.unread.empty():
            self.unread.get_nowait()
        self.unread.put_nowait(None)

    async def send(self) -> None:
        """Pass on what is left for it, until it is gone."""
        with contextlib.suppress(ConnectionError, RuntimeError):
            while (message := await self.unread.get()) is not None:
                if isinstance(message, Event):
                    await self.socket.send_str(message.text())
                else:
                    flags = self.flags or {}
                    new = flags.get("supports_preview_metadata") is True
                    await self.socket.send_bytes(message.binary(with_metadata=new))
        await self.socket.close(code=WSCloseCode.TRY_AGAIN_LATER)


class Hub:
    """All clients. Lives on the event loop."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.clients: set[Client] = set()

    def features(self) -> dict[str, Any]:
        """What the server tells of itself."""
        return {
            "supports_preview_metadata": True,
            "supports_progress_text_metadata": True,
            "max_upload_size": self.limits.upload,
        }

    def send(self, id_: str | None, message: Event | Preview) -> None:
        """To the client of this id, wherever it is open."""
        for client in self.clients:
            if client.id == id_:
                client.put(message)

    def broadcast(self, message: Event) -> None:
        """To everyone."""
        for client in self.clients:
            client.put(message)

    async def serve(self, request: web.Request, greeting: list[Event]) -> web.StreamResponse:
        """One client's connection, from its first message to its last."""
        if len(self.clients) >= self.limits.clients:
            raise web.HTTPServiceUnavailable(text="too many clients")
        id_ = request.query.get("clientId", "")[:128] or uuid.uuid4().hex
        socket = web.WebSocketResponse(heartbeat=_HEARTBEAT, max_msg_size=_LARGEST, compress=False)
        await socket.prepare(request)
        client = Client(id_, socket, self.limits.unread)
        for event in greeting:
            client.put(Event(event.name, event.data | ({"sid": id_} if event.name == "status" else {})))
        sender = asyncio.create_task(client.send())
        self.clients.add(client)
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    self._hear(client, message.data)
        finally:
            self.clients.discard(client)
            sender.cancel()
        return socket

    def _hear(self, client: Client, text: str) -> None:
        try:
            said = loads(text.encode("utf-8", "replace"))
        except BadBody:
            return
        if isinstance(said, dict) and said.get("type") == "feature_flags" and isinstance(said.get("data"), dict):
            # Only what is asked for later is kept: the rest may be of any size.
            client.flags = {"supports_preview_metadata": said["data"].get("supports_preview_metadata")}
            client.put(Event("feature_flags", self.features()))

    async def close(self) -> None:
        """Say goodbye: the server ends, and would wait for open sockets."""
        closing = [
            client.socket.close(code=WSCloseCode.GOING_AWAY, message=b"the server ends") for client in self.clients
        ]
        await asyncio.gather(*closing, return_exceptions=True)
