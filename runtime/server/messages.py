"""What the executor tells, in the words of the websocket protocol."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .bodies import dumps
from .jobs import Job, now

if TYPE_CHECKING:
    from torch import Tensor

ENDS = frozenset({"execution_success", "execution_error", "execution_interrupted"})
_SMALL, _LARGE = 256, 512
_PAUSE = 0.05
"""Seconds between two previews: nobody sees more, and a slow line would be full of them."""


@dataclass(frozen=True)
class Event:
    """A message of text."""

    name: str
    data: dict[str, Any]

    def text(self) -> str:
        """As it is sent."""
        return dumps({"type": self.name, "data": self.data})


@dataclass(frozen=True)
class Preview:
    """A picture of a node at work; `image` is a JPEG."""

    job: str
    node: str
    image: bytes

    def binary(self, with_metadata: bool) -> bytes:
        """As it is sent: to newer clients with the job and node it is of."""
        if not with_metadata:
            return struct.pack(">II", 1, 1) + self.image
        meta = {**place(self.node), "prompt_id": self.job, "image_type": "image/jpeg"}
        head = dumps(meta).encode()
        return struct.pack(">II", 4, len(head)) + head + self.image


def place(node: str) -> dict[str, Any]:
    """A node's names: what the browser shows it as, what it is part of."""
    return {"node_id": node, "display_node_id": node, "parent_node_id": None, "real_node_id": node}


class Story:
    """One job's events as messages; on the way it notes in the job what happened. Runs on the worker's thread."""

    def __init__(self, job: Job):
        self.job = job
        self.states: dict[str, dict[str, Any]] = {}
        self.last_preview = 0.0

    def tell(self, name: str, data: dict[str, Any]) -> Iterator[Event | Preview]:
        """The messages for one event of the executor's. How it ended is only noted: the client asks for the history
        when it hears that, so it is told once the history has it."""
        job = self.job
        if name == "executing":
            job.node = data["node"]
            if data["node"] is not None:
                yield self._state(data["node"], 0, 1)
                yield Event(name, data)
        elif name == "progress":
            yield from self._progress(data["node"], data["value"], data["max"], data["preview"])
        elif name in ENDS or name in ("execution_start", "execution_cached"):
            job.messages.append((name, data))
            if name not in ENDS:
                yield Event(name, data)
            if name == "execution_error":
                job.error = {"timestamp": now(), **data}
        elif name == "executed":
            job.outputs[data["node"]] = data["output"]
            yield Event(name, data)
        else:
            yield Event(name, data)

    def _progress(self, node: str, value: int, total: int, preview: Tensor | None) -> Iterator[Event | Preview]:
        yield self._state(node, value, total)
        yield Event("progress", {"value": value, "max": total, "prompt_id": self.job.id, "node": node})
        if preview is not None and self.job.previews and time.monotonic() - self.last_preview > _PAUSE:
            self.last_preview = time.monotonic()
            yield Preview(self.job.id, node, jpeg(preview))

    def _state(self, node: str, value: int, total: int) -> Event:
        for other, state in self.states.items():
            if other != node:
                state.update(state="finished", value=state["max"])
        self.states[node] = {"value": value, "max": total, "state": "running", "prompt_id": self.job.id, **place(node)}
        # The states change while the message waits to be sent.
        nodes = {id_: dict(state) for id_, state in self.states.items()}
        return Event("progress_state", {"prompt_id": self.job.id, "nodes": nodes})

    def ending(self) -> list[Event]:
        """The last messages, for when the job is in the history."""
        last = [Event(name, data) for name, data in self.job.messages if name in ENDS]
        return [*last, Event("executing", {"node": None, "display_node": None, "prompt_id": self.job.id})]


def jpeg(image: Tensor) -> bytes:
    """A preview [3, H, W] in 0 .. 1, brought to a size that fits a node."""
    from PIL import Image

    from ..images import to_bytes

    picture = Image.fromarray(to_bytes(image.movedim(0, -1)))
    longest = max(picture.size)
    if longest < _SMALL:
        # Latents are small; left to the browser they would be shown as squares.
        times = -(-_SMALL // longest)
        picture = picture.resize((picture.width * times, picture.height * times), Image.Resampling.BICUBIC)
    picture.thumbnail((_LARGE, _LARGE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=85)
    return stream.getvalue()
