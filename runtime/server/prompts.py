"""Graphs as clients post them, checked and queued."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from ...hosts.folders import using
from .. import graph, registry, validate, workflow
from ..problems import Problem, WorkflowError
from .bodies import BadBody, answer, loads, read
from .jobs import ID, Job
from .queue import QueueFull
from .state import SERVER, Server

_LONGEST = 200


async def post_prompt(request: web.Request) -> web.Response:
    """Check a graph and queue it. 400 with all that is wrong with it, by node; 503 if the queue is full."""
    server = request.app[SERVER]
    body = await read(request, server.config.limits.body)
    asked = loads(body)
    if not isinstance(asked, dict) or "prompt" not in asked:
        return _refused("no_prompt", "No prompt provided")
    number = _number(server, asked)
    try:
        job = await asyncio.to_thread(_job, server, asked, number)
    except WorkflowError as error:
        known = asked["prompt"] if isinstance(asked["prompt"], dict) else {}
        return await asyncio.to_thread(_problems, server, known, error.problems)
    job.size = len(body)
    if server.queue.find(job.id) is not None:
        raise BadBody("prompt_id: there is a job of this id already")
    try:
        server.queue.add(job)
    except QueueFull as error:
        return _refused("queue_full", str(error), status=503)
    return answer({"prompt_id": job.id, "number": number, "node_errors": {}})


def _number(server: Server, asked: dict[str, Any]) -> float:
    number = server.queue.next_number()
    if "number" in asked:
        given = asked["number"]
        if (
            isinstance(given, bool)
            or not isinstance(given, (int, float))
            or abs(given) > 2**53
            or not math.isfinite(given)
        ):
            raise BadBody("number: expected a number")
        return float(given)
    return -number if asked.get("front") else number


def _job(server: Server, asked: dict[str, Any], number: float) -> Job:
    """The job that is asked for. WorkflowError if its graph cannot run, BadBody if the rest makes no sense."""
    posted = asked["prompt"]
    if not isinstance(posted, dict) or len(posted) > server.config.limits.nodes:
        raise WorkflowError(f"expected a graph of at most {server.config.limits.nodes} nodes, by their ids")
    parsed = workflow.parse({"prompt": posted}, {})
    if any(len(node["class_type"]) > _LONGEST for node in parsed.prompt.values()):
        raise WorkflowError(f"the name of a node's class is longer than {_LONGEST} letters")
    targets = _targets(asked.get("partial_execution_targets"))
    with using(server.config.folders):
        schemas = registry.object_info(server.nodes)
        checked = validate.check(parsed.prompt, server.nodes, schemas, ends=targets)
    id_, client = asked.get("prompt_id") or uuid.uuid4().hex, asked.get("client_id")
    if not isinstance(id_, str) or not ID.fullmatch(id_):
        raise BadBody("prompt_id: expected at most 64 letters, digits, - and _")
    client = client[:128] if isinstance(client, str) else None
    targets = targets or graph.outputs(checked, schemas)
    data = asked.get("extra_data")
    data = data if isinstance(data, dict) else {}
    previews = data.get("preview_method") != "none"
    return Job(id_, number, checked, _extra(data.get("extra_pnginfo")), targets, client, previews)


def _targets(asked: Any) -> list[str] | None:
    """The nodes for whose sake to run; None for all outputs."""
    if not asked:
        return None
    if not isinstance(asked, list) or not all(isinstance(each, (str, int)) for each in asked):
        raise BadBody("partial_execution_targets: expected a list of node ids")
    return list(dict.fromkeys(map(str, asked)))


def _extra(info: Any) -> dict[str, Any]:
    """What pictures are to carry: names and values for their text. Keys to other services, beside it, are not kept."""
    if not isinstance(info, dict):
        return {}
    # A PNG's text has a name of 1 to 79 Latin letters; its graph is written by ourselves.
    return {
        name: value
        for name, value in info.items()
        if 0 < len(name) < 80 and name.isascii() and name.isprintable() and name != "prompt"
    }


def _refused(kind: str, reason: str, status: int = 400, node_errors: dict[str, Any] | None = None) -> web.Response:
    error = {"type": kind, "message": reason, "details": "", "extra_info": {}}
    return answer({"error": error, "node_errors": node_errors or {}}, status)


def _problems(server: Server, posted: dict[str, Any], problems: list[Problem]) -> web.Response:
    """All problems: those of nodes at their nodes, the rest in one text."""
    placed = [each for each in problems if each.node is not None and isinstance(posted.get(each.node), dict)]
    general = [each for each in problems if each not in placed]
    errors: dict[str, Any] = {}
    outputs = {id_: class_.GET_SCHEMA().is_output_node for id_, class_ in server.nodes.items()}
    ends = [id_ for id_, node in posted.items() if isinstance(node, dict) and outputs.get(str(node.get("class_type")))]
    waiting = _waiting(posted, ends, {str(each.node) for each in placed})
    for each in placed:
        class_type = posted[str(each.node)].get("class_type")
        entry = {"errors": [], "dependent_outputs": waiting[str(each.node)], "class_type": class_type}
        errors.setdefault(str(each.node), entry)["errors"].append(_said(each))
    if not general:
        return _refused("prompt_outputs_failed_validation", "Prompt outputs failed validation", node_errors=errors)
    text = "\n".join(each.message for each in general)
    return _refused(general[0].kind, text, node_errors=errors)


def _said(problem: Problem) -> dict[str, Any]:
    extra = {"input_name": problem.input} if problem.input else {}
    return {"type": problem.kind, "message": problem.message, "details": problem.input or "", "extra_info": extra}


def _waiting(posted: dict[str, Any], ends: Iterable[str], ids: set[str]) -> dict[str, list[str]]:
    """For each of the nodes, the outputs that need it."""
    found: dict[str, list[str]] = {id_: [] for id_ in ids}
    nodes = {str(id_): {**node, "inputs": node["inputs"]} for id_, node in posted.items() if _is_node(node)}
    for end in ends:
        for id_ in graph.needed(nodes, [end]) & ids:
            found[id_].append(end)
    return found


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict)


ROUTES = [web.post("/prompt", post_prompt)]
