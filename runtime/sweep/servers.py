"""Workers at a distance: running ComfyUI servers, or our own, by their API. Nothing is asked of any other address."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from ..widgets import Schema
from .file import Servers, Sweep, SweepError
from .plan import Order
from .render import Picture, Result, measured, wanted
from .workers import Gone, Refused

LARGEST = 2**28
"""Bytes of a picture, and of a list of nodes, at most."""
ENDS = ("execution_success", "execution_error", "execution_interrupted")


def _aiohttp() -> Any:
    try:
        import aiohttp
    except ModuleNotFoundError as error:
        raise SweepError('[servers] needs aiohttp: pip install -e ".[serve]" in the pack') from error
    return aiohttp


class Server:
    """A server that does one task at a time."""

    def __init__(self, session: Any, url: str, sweep: Sweep, patience: float) -> None:
        self.session, self.name, self.sweep, self.patience = session, url, sweep, patience
        self.client = uuid.uuid4().hex
        self.socket: Any = None
        self.posted: str | None = None

    async def start(self) -> None:
        """Open the line on which it tells what happens."""
        if self.socket is not None and not self.socket.closed:
            return
        client = _aiohttp()
        try:
            self.socket = await self.session.ws_connect(
                f"{self.name}/ws", params={"clientId": self.client}, heartbeat=60, max_msg_size=LARGEST
            )
        except client.WSServerHandshakeError as error:
            if error.status in (401, 403, 404):
                raise Refused(f"it answers {error.status} on /ws: is it a ComfyUI server?") from error
            raise Gone(f"it answers {error.status}") from error
        except (client.ClientError, TimeoutError, OSError) as error:
            raise Gone(reason(error)) from error

    async def do(self, order: Order) -> Result:
        """Post a task, wait for its end, and fetch its pictures."""
        client = _aiohttp()
        began = time.perf_counter()
        try:
            self.posted = await self._post(order)
            error = await self._ended(self.posted)
            pictures = [] if error else await self._pictures(self.posted, order)
        except (client.ClientError, TimeoutError, OSError) as gone:
            await self._drop()
            raise Gone(reason(gone)) from gone
        except Gone:
            await self._drop()
            raise
        except ValueError as failed:
            error, pictures = str(failed), []
        self.posted = None
        return Result(order.task.key, pictures, error, time.perf_counter() - began, time.time(), self.name)

    async def _post(self, order: Order) -> str:
        extra: dict[str, Any] = {"preview_method": "none"}
        if order.document is not None:
            extra["extra_pnginfo"] = {"workflow": order.document}
        body: dict[str, Any] = {"prompt": order.prompt, "client_id": self.client, "extra_data": extra}
        body["partial_execution_targets"] = order.ends
        async with self.session.post(f"{self.name}/prompt", json=body) as response:
            text = await response.text()
            if 400 <= response.status < 500 and response.status not in (408, 429):
                raise Refused(_why(response.status, text))
            if response.status != 200:
                raise Gone(f"it answers {response.status}")
            try:
                return str(json.loads(text)["prompt_id"])
            except (ValueError, KeyError, TypeError) as error:
                raise Refused("its answer to /prompt is no ComfyUI server's") from error

    async def _ended(self, id_: str) -> str | None:
        """Wait for the end of a graph: what went wrong in it, or None."""
        client = _aiohttp()
        async for message in self.socket:
            if message.type is not client.WSMsgType.TEXT:
                continue  # previews
            told = _object(message.data)
            data = told.get("data")
            if not isinstance(data, dict) or data.get("prompt_id") != id_:
                continue
            if told.get("type") == "execution_error":
                said = " ".join(str(data.get("exception_message")).split())
                return f"“{data.get('node_type')}” (node {data.get('node_id')}): {said}"
            if told.get("type") == "execution_interrupted":
                raise Gone("somebody stopped the task there")
            if told.get("type") == "execution_success" or (told.get("type") == "executing" and not data.get("node")):
                return None
        raise Gone("the connection ended")

    async def _pictures(self, id_: str, order: Order) -> list[Picture]:
        shown = await self._outputs(id_)
        files = []
        for item in wanted([shown[end] for end in order.ends if end in shown]):
            asked = {name: str(item[name]) for name in ("filename", "subfolder", "type")}
            async with self.session.get(f"{self.name}/view", params=asked) as response:
                if response.status != 200:
                    raise Gone(f"it answers {response.status} on /view")
                data = await response.content.read(LARGEST)
                while not response.content.at_eof() and len(data) < LARGEST:
                    data += await response.content.read(LARGEST - len(data))
            files.append((data, PurePosixPath(asked["filename"]).suffix))
        return await asyncio.to_thread(measured, files, order, self.sweep.measures, self.sweep.home)

    async def _outputs(self, id_: str) -> Mapping[str, Any]:
        # A graph's end is told before it is in the history.
        for pause in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0):
            async with self.session.get(f"{self.name}/history/{id_}") as response:
                entry = _object(await response.text()).get(id_)
            if isinstance(entry, dict) and isinstance(entry.get("outputs"), dict):
                return entry["outputs"]
            await asyncio.sleep(pause)
        raise Gone("its history does not have the task")

    async def _drop(self) -> None:
        if self.socket is not None:
            await self.socket.close()
        self.socket = None

    async def close(self) -> None:
        """Hang up. What still waits there is taken back; what runs may belong to others by now, and runs on."""
        client = _aiohttp()
        if self.posted is not None:
            try:
                async with self.session.post(f"{self.name}/queue", json={"delete": [self.posted]}):
                    pass
            except (client.ClientError, TimeoutError, OSError):
                pass  # it is gone, and the task with it
        await self._drop()


def servers(sweep: Sweep, where: Servers) -> tuple[list[Server], Any]:
    """The workers, and their session, which is to be closed."""
    session = new_session()
    return [Server(session, url, sweep, where.patience) for url in where.urls], session


def new_session() -> Any:
    """A session that follows nobody to another address."""
    client = _aiohttp()
    limits = client.ClientTimeout(total=None, sock_connect=10, sock_read=120)
    watched = client.TraceConfig()
    watched.on_request_redirect.append(_stay)
    return client.ClientSession(timeout=limits, trace_configs=[watched])


async def _stay(session: Any, context: Any, asked: Any) -> None:
    raise _aiohttp().ClientError("it points to another address; name that one in its place")


async def schemas(where: Servers) -> dict[str, Schema]:
    """The nodes of the first server that answers. SweepError if none does."""
    client = _aiohttp()
    reasons = []
    async with new_session() as session:
        for url in where.urls:
            try:
                async with session.get(f"{url}/object_info") as response:
                    found = _object(await response.text())
                    if response.status == 200 and found and all(_is_schema(each) for each in found.values()):
                        return found
                    reasons.append(f"{url} is no ComfyUI server: it answers {response.status} on /object_info")
            except (client.ClientError, TimeoutError, OSError) as error:
                reasons.append(f"{url}: {reason(error)}")
    raise SweepError("[servers] urls: no server answers; start one, or mend its address: " + "; ".join(reasons))


def reason(error: BaseException) -> str:
    """What a failed request says, in a line."""
    cause = getattr(error, "os_error", None)
    return str(getattr(cause, "strerror", None) or error or type(error).__name__).splitlines()[0]


def _is_schema(info: Any) -> bool:
    return isinstance(info, dict) and isinstance(info.get("input"), dict) and "output" in info


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _why(status: int, text: str) -> str:
    """A refusal in words: the error, and that of each node."""
    answer = _object(text)
    error, nodes = answer.get("error"), answer.get("node_errors")
    said = [str(error["message"])] if isinstance(error, dict) and error.get("message") else []
    for id_, node in (nodes if isinstance(nodes, dict) else {}).items():
        for each in node.get("errors", []) if isinstance(node, dict) else []:
            details = f" ({each['details']})" if each.get("details") else ""
            said.append(f"{node.get('class_type')} (node {id_}): {each.get('message')}{details}")
    return "; ".join(said) or f"it answers {status}"
