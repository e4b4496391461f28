"""A job: one graph that was queued, and the shapes in which clients ask for it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

PENDING, RUNNING, COMPLETED, FAILED, CANCELLED = "pending", "in_progress", "completed", "failed", "cancelled"
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a job may be called: its id names a file."""

_KINDS = {"images": "images", "gifs": "images", "video": "video", "audio": "audio"}


@dataclass
class Job:
    """`number` orders the queue, `extra` is what pictures carry besides the graph, `size` the bytes it was posted in.
    Times are in milliseconds since 1970."""

    id: str
    number: float
    prompt: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)
    targets: list[str] = field(default_factory=list)
    client: str | None = None
    previews: bool = True
    size: int = 0
    created: int = field(default_factory=lambda: now())
    started: int | None = None
    ended: int | None = None
    status: str = PENDING
    outputs: dict[str, Any] = field(default_factory=dict)
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    error: dict[str, Any] | None = None
    node: str | None = None
    """The node that is running."""
    cancel: threading.Event = field(default_factory=threading.Event)


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def queued(job: Job) -> list[Any]:
    """An entry of `/queue`."""
    extra = {"extra_pnginfo": job.extra, "create_time": job.created}
    if job.client is not None:
        extra["client_id"] = job.client
    return [job.number, job.id, job.prompt, extra, job.targets]


def remembered(job: Job) -> dict[str, Any]:
    """An entry of `/history`."""
    good = job.status == COMPLETED
    status = {"status_str": "success" if good else "error", "completed": good, "messages": job.messages}
    meta = {id_: {"node_id": id_, "display_node": id_, "parent_node": None, "real_node_id": id_} for id_ in job.outputs}
    return {"prompt": queued(job), "outputs": job.outputs, "status": status, "meta": meta}


def summary(job: Job) -> dict[str, Any]:
    """An entry of `/jobs`."""
    shown = list(_files(job))
    kept = [each for each in shown if each["type"] == "output"]
    return {
        "id": job.id,
        "status": job.status,
        "create_time": job.created,
        "execution_start_time": job.started,
        "execution_end_time": job.ended,
        "preview_output": (kept or shown or [None])[-1],
        "outputs_count": len(shown),
        "execution_error": job.error,
        "workflow_id": _workflow_id(job),
        "priority": job.number,
    }


def detail(job: Job) -> dict[str, Any]:
    """What `/jobs/{id}` tells."""
    workflow = {"prompt": job.prompt, "extra_data": {"extra_pnginfo": job.extra}}
    entry = remembered(job)
    update = job.ended or job.started or job.created
    more = {"execution_status": entry["status"], "execution_meta": entry["meta"], "update_time": update}
    return {**summary(job), "outputs": job.outputs, "workflow": workflow, **more}


def _workflow_id(job: Job) -> str | None:
    workflow = job.extra.get("workflow")
    id_ = workflow.get("id") if isinstance(workflow, dict) else None
    return id_ if isinstance(id_, str) else None


def _files(job: Job) -> Iterator[dict[str, Any]]:
    for node, output in job.outputs.items():
        for kind, items in output.items():
            for item in items if kind in _KINDS and isinstance(items, (list, tuple)) else ():
                if isinstance(item, dict) and "filename" in item:
                    yield {"subfolder": "", "type": "output", **item, "nodeId": node, "mediaType": _KINDS[kind]}
