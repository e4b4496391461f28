"""Asking after jobs, and stopping them: `/queue` and `/history` for older clients, `/jobs` for newer ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiohttp import web

from .bodies import BadBody, answer, read_object, whole_number
from .jobs import Job, detail, queued, remembered, summary
from .state import SERVER, Server

_SMALL = 2**20


async def get_prompt(request: web.Request) -> web.Response:
    """How much waits."""
    return answer(request.app[SERVER].queue.status().data["status"])


async def get_queue(request: web.Request) -> web.Response:
    """What runs, and what waits."""
    queue = request.app[SERVER].queue
    running = [queued(queue.running)] if queue.running else []
    return answer({"queue_running": running, "queue_pending": [queued(job) for job in queue.pending]})


async def post_queue(request: web.Request) -> web.Response:
    """`clear` all that waits, or `delete` some of it."""
    queue, asked = request.app[SERVER].queue, await read_object(request, _SMALL)
    if asked.get("clear"):
        queue.drop()
    if "delete" in asked:
        queue.drop(_ids(asked, "delete"))
    return web.Response()


async def get_history(request: web.Request) -> web.Response:
    """Finished jobs by id, oldest first."""
    finished = request.app[SERVER].queue.finished
    most = whole_number(request.query.get("max_items"), len(finished), 0, len(finished))
    start = whole_number(request.query.get("offset"), -1, -1, len(finished))
    start = len(finished) - most if start < 0 else start
    return answer({job.id: remembered(job) for job in list(finished.values())[start : start + most]})


async def get_history_entry(request: web.Request) -> web.Response:
    """One finished job, by its id; nothing if there is none."""
    job = request.app[SERVER].queue.finished.get(request.match_info["id"])
    return answer({job.id: remembered(job)} if job else {})


async def post_history(request: web.Request) -> web.Response:
    """`clear` the history, or `delete` some of it."""
    queue, asked = request.app[SERVER].queue, await read_object(request, _SMALL)
    if asked.get("clear"):
        await queue.forget()
    if "delete" in asked:
        await queue.forget(_ids(asked, "delete"))
    return web.Response()


async def get_jobs(request: web.Request) -> web.Response:
    """Jobs of some statuses, the newest first, a page at a time."""
    server, asked = request.app[SERVER], request.query
    wanted = set(filter(None, asked.get("status", "").split(",")))
    jobs = [job for job in _all(server) if not wanted or job.status in wanted]
    jobs.sort(key=lambda job: job.created, reverse=asked.get("sort_order", "desc") != "asc")
    limit = whole_number(asked.get("limit"), 200, 1, 1000)
    offset = whole_number(asked.get("offset"), 0, 0, len(jobs))
    shown = [summary(job) for job in jobs[offset : offset + limit]]
    page = {"offset": offset, "limit": limit, "total": len(jobs), "has_more": offset + len(shown) < len(jobs)}
    return answer({"jobs": shown, "pagination": page})


async def get_job(request: web.Request) -> web.Response:
    """One job with its graph and outputs."""
    job = request.app[SERVER].queue.find(request.match_info["id"])
    return answer(detail(job)) if job else answer({"error": "Job not found"}, 404)


async def cancel_job(request: web.Request) -> web.Response:
    """Stop one job, whether it waits or runs."""
    return answer({"cancelled": bool(_cancel(request.app[SERVER], [request.match_info["id"]]))})


async def cancel_jobs(request: web.Request) -> web.Response:
    """Stop some jobs; the answer names those that were stopped."""
    asked = await read_object(request, _SMALL)
    return answer({"cancelled": _cancel(request.app[SERVER], _ids(asked, "job_ids"))})


async def interrupt(request: web.Request) -> web.Response:
    """Stop what runs, or this job if it is the one that runs."""
    asked = await read_object(request, _SMALL, optional=True)
    id_ = asked.get("prompt_id")
    request.app[SERVER].queue.interrupt(str(id_) if id_ else None)
    return web.Response()


async def free(request: web.Request) -> web.Response:
    """Let go of models and results."""
    asked = await read_object(request, _SMALL, optional=True)
    if asked.get("unload_models") or asked.get("free_memory"):
        await request.app[SERVER].queue.free()
    return web.Response()


async def websocket(request: web.Request) -> web.StreamResponse:
    """The line on which the server tells what happens."""
    server = request.app[SERVER]
    greeting, running = [server.queue.status()], server.queue.running
    if running is not None and running.node is not None and running.client == request.query.get("clientId"):
        # A page that was reloaded goes on where it was.
        from .messages import Event

        greeting.append(
            Event("executing", {"node": running.node, "display_node": running.node, "prompt_id": running.id})
        )
    return await server.hub.serve(request, greeting)


def _all(server: Server) -> Iterable[Job]:
    queue = server.queue
    return [*queue.finished.values(), *([queue.running] if queue.running else []), *queue.pending]


def _ids(asked: dict[str, Any], name: str) -> list[str]:
    ids = asked.get(name)
    if not isinstance(ids, list) or not all(isinstance(each, str) for each in ids):
        raise BadBody(f"{name}: expected a list of job ids")
    return ids


def _cancel(server: Server, ids: list[str]) -> list[str]:
    return [*server.queue.drop(ids), *(id_ for id_ in ids if server.queue.interrupt(id_))]


ROUTES = [
    web.get("/ws", websocket),
    web.get("/prompt", get_prompt),
    web.get("/queue", get_queue),
    web.post("/queue", post_queue),
    web.get("/history", get_history),
    web.get("/history/{id}", get_history_entry),
    web.post("/history", post_history),
    web.get("/jobs", get_jobs),
    web.post("/jobs/cancel", cancel_jobs),
    web.get("/jobs/{id}", get_job),
    web.post("/jobs/{id}/cancel", cancel_job),
    web.post("/interrupt", interrupt),
    web.post("/free", free),
]
