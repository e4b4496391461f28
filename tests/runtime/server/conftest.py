"""A server on small nodes, in the test's own event loop. Tests here may be coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

aiohttp = pytest.importorskip("aiohttp", reason="the server's packages are not here: pip install -e '.[serve]'")

from aiohttp.test_utils import TestClient, TestServer  # noqa: E402

from velatura.hosts.folders import Folders  # noqa: E402
from velatura.runtime.server.app import create  # noqa: E402
from velatura.runtime.server.config import Config, Limits  # noqa: E402
from velatura.runtime.server.state import SERVER  # noqa: E402


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(pyfuncitem.obj).parameters}
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**arguments), 120))
    return True


def node(class_: str, **inputs: Any) -> dict[str, Any]:
    """A node of an API graph."""
    return {"class_type": class_, "inputs": inputs, "_meta": {"title": class_}}


def slow(steps: int = 5) -> dict[str, Any]:
    """A graph that takes `steps` steps."""
    return {"1": node("Slow", steps=steps), "2": node("Show", value=["1", 0])}


class Browser:
    """A client as the frontend is one."""

    def __init__(self, client: TestClient, server: Any):
        self.client, self.server = client, server

    async def get(self, path: str, status: int = 200, **options: Any) -> Any:
        """A GET's JSON."""
        async with self.client.get(path, **options) as answer:
            assert answer.status == status, await answer.text()
            return await answer.json(content_type=None)

    async def post(self, path: str, body: Any = None, status: int = 200, **options: Any) -> Any:
        """A POST's JSON, None if it answers nothing."""
        data = body if isinstance(body, (bytes, aiohttp.FormData)) else json.dumps(body)
        async with self.client.post(path, data=data, **options) as answer:
            assert answer.status == status, await answer.text()
            text = await answer.text()
            return json.loads(text) if text else None

    async def queue(self, graph: dict[str, Any], status: int = 200, **more: Any) -> Any:
        """Queue a graph; the answer."""
        return await self.post("/api/prompt", {"client_id": "me", "prompt": graph, **more}, status)

    async def listen(self, id_: str = "me", *, flags: dict[str, Any] | None = None) -> Any:
        """A websocket that has said its flags."""
        socket = await self.client.ws_connect(f"/ws?clientId={id_}")
        assert (await socket.receive_json())["type"] == "status"
        await socket.send_json({"type": "feature_flags", "data": flags or {"supports_preview_metadata": True}})
        return socket

    async def hear(self, socket: Any, until: str = "executing-none") -> list[Any]:
        """Messages up to one of this type: (type, data), or bytes. `executing-none` is how a job ends."""
        heard = []
        while True:
            message = await socket.receive(timeout=60)
            assert message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY), message
            if message.type is aiohttp.WSMsgType.BINARY:
                heard.append(message.data)
                continue
            told = json.loads(message.data)
            heard.append((told["type"], told["data"]))
            ended = told["type"] == "executing" and told["data"]["node"] is None
            if told["type"] == until or (ended and until == "executing-none"):
                return heard

    async def run(self, graph: dict[str, Any], **more: Any) -> str:
        """Run a graph to its end; its id."""
        socket = await self.listen("runner")
        id_ = (await self.queue(graph, client_id="runner", **more))["prompt_id"]
        await self.hear(socket)
        await socket.close()
        return id_


Serving = Callable[..., contextlib.AbstractAsyncContextManager[Browser]]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A server's folders, below the test's own."""
    folders = Folders(input=tmp_path / "input", output=tmp_path / "output", temp=tmp_path / "temp")
    return Config(user=tmp_path / "user", folders=folders)


@pytest.fixture
def serving(small: SimpleNamespace, config: Config) -> Serving:
    """`async with serving(limit=...) as browser`: a server on the small nodes, with other limits if there are any."""

    @contextlib.asynccontextmanager
    async def open_server(classes: Any = None, **limits: int) -> AsyncIterator[Browser]:
        chosen = Config(user=config.user, folders=config.folders, limits=Limits(**limits))
        app = create(chosen, classes or small.nodes)
        async with TestClient(TestServer(app)) as client:
            yield Browser(client, app[SERVER])

    return open_server
