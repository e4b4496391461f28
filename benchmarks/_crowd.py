"""Many clients and many graphs at once: is each told all that it should be, and does the memory stay as it is?"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

Graph = dict[str, Any]
PATIENCE = 300
"""Seconds without any message after which what is missing counts as lost."""


@dataclass
class Listener:
    """A client: what it was told, by the job it was told of, and of the queue."""

    id: str
    jobs: dict[str, list[str]] = field(default_factory=dict)
    remaining: list[int] = field(default_factory=list)
    strange: int = 0

    def hear(self, kind: str, data: dict[str, Any]) -> None:
        """Note a message."""
        if kind == "status":
            self.remaining.append(data["status"]["exec_info"]["queue_remaining"])
        elif "prompt_id" in data:
            ended = kind == "executing" and data["node"] is None
            self.jobs.setdefault(data["prompt_id"], []).append("end" if ended else kind)


@dataclass
class Crowd:
    """What came of it. `lost`: jobs that did not end well, and messages that did not arrive, or to another client."""

    finished: int = 0
    lost: int = 0
    memory: list[float] = field(default_factory=list)

    def growth(self) -> float:
        """Of the memory over the second half, in megabytes: from its first fifth to its last, by their medians."""
        half = self.memory[len(self.memory) // 2 :]
        part = max(1, len(half) // 5)
        return median(half[-part:]) - median(half[:part]) if half else 0.0


async def crowd(
    address: str, graphs: list[Graph], clients: int, steps: int, each_end: Callable[[int], float] | None = None
) -> Crowd:
    """Queue the graphs all at once, the clients taking turns; wait until all have ended.

    A run of each reports `steps` steps. `each_end` is called with how many have ended; its answers are the `memory`.
    """
    import aiohttp

    found = Crowd()
    listeners = [Listener(f"client-{i}") for i in range(clients)]
    every, ended = asyncio.Event(), 0

    def heard(kind: str, data: dict[str, Any]) -> None:
        nonlocal ended
        if kind == "executing" and data["node"] is None:
            ended += 1
            if each_end is not None:
                found.memory.append(each_end(ended))
            if ended >= len(graphs):
                every.set()

    limit = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(address, timeout=limit, connector=aiohttp.TCPConnector(limit=0)) as session:
        sockets = [await _connect(session, each) for each in listeners]
        hearing = [asyncio.create_task(_listen(*each, heard)) for each in zip(listeners, sockets, strict=True)]
        ids = await asyncio.gather(*(_post(session, g, listeners[i % clients].id) for i, g in enumerate(graphs)))
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(every.wait(), PATIENCE)
        # The last news of the queue follow the last end.
        for _ in range(100):
            if all(len(each.remaining) >= 2 * len(graphs) for each in listeners):
                break
            await asyncio.sleep(0.1)
        async with session.get("/api/jobs?limit=1000") as answer:
            good = {job["id"] for job in (await answer.json())["jobs"] if job["status"] == "completed"}
        for socket in sockets:
            await socket.close()
        await asyncio.gather(*hearing)
    found.finished = len(good & set(ids))
    found.lost = len(ids) - found.finished + _missing(listeners, list(ids), steps)
    return found


async def _connect(session: Any, listener: Listener) -> Any:
    socket = await session.ws_connect(f"/ws?clientId={listener.id}", heartbeat=60)
    await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
    # It is among those who are told once it is answered.
    while (await socket.receive_json())["type"] != "feature_flags":
        pass
    return socket


async def _listen(listener: Listener, socket: Any, heard: Callable[[str, dict[str, Any]], None]) -> None:
    async for message in socket:
        if isinstance(message.data, str):
            told = json.loads(message.data)
            listener.hear(told["type"], told["data"])
            heard(told["type"], told["data"])


async def _post(session: Any, graph: Graph, client: str) -> str:
    body = json.dumps({"client_id": client, "prompt": graph, "extra_data": {"extra_pnginfo": {"workflow": {}}}})
    async with session.post("/api/prompt", data=body) as answer:
        return (await answer.json())["prompt_id"] if answer.status == 200 else ""


def _missing(listeners: list[Listener], ids: list[str], steps: int) -> int:
    """Messages that are due and were not told. Each client is due the story of its own jobs from start to end, and two
    words on the queue for each job of anyone's: when it was added and when it ended."""
    lost = 0
    for place, listener in enumerate(listeners):
        own = set(ids[place :: len(listeners)])
        lost += sum(len(story) for id_, story in listener.jobs.items() if id_ not in own)
        lost += sum(_gaps(listener.jobs.get(id_, []), steps) for id_ in own)
        lost += max(0, 2 * len(ids) - len(listener.remaining))
        lost += listener.remaining[-1:] != [0]
    return lost


_MARKS = ["execution_start", "execution_cached", "execution_success", "end"]


def _gaps(story: list[str], steps: int) -> int:
    """What one job's story lacks of what every one has."""
    counts = Counter(story)
    lacking = sum(not counts[name] for name in (*_MARKS, "executing", "executed")) + max(0, steps - counts["progress"])
    return lacking or int([name for name in story if name in _MARKS] != _MARKS)
