"""Running a sweep: what is left of it, by whoever can do it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.protocols import Progress, no_progress
from ...hosts.folders import Folders, using
from ..registry import Nodes
from ..widgets import Schema
from .file import Cluster, Servers, Sweep, SweepError, Workers, read
from .plan import Plan, Task
from .queue import Queue
from .render import Result
from .table import failures, opened
from .workers import Told, Worker, drive

Watch = Callable[[Task, Result], None]


def run(
    path: str | Path,
    *,
    out: str | Path | None = None,
    progress: Progress = no_progress,
    told: Told = lambda line: None,
    watch: Watch = lambda task, result: None,
    plan_only: bool = False,
) -> dict[str, Any]:
    """Do what is left of a sweep file. `progress` counts tasks, `told` hears what people should know, `watch` each
    result. Figures as `velatura sweep --json` prints them.

    SweepError or WorkflowError before anything runs if the file is wrong; SweepError at the end if tasks failed or
    nobody could do them: what is done is kept, and the same command goes on.
    """
    sweep = read(path) if out is None else replace(read(path), out=Path(out))
    began = time.perf_counter()
    schemas, nodes = _nodes(sweep)
    with using(Folders(input=sweep.input)):
        plan = Plan(sweep, schemas, nodes)
    if plan_only and not sweep.out.exists():
        return {"tasks": len(plan.tasks), "had": 0, "done": 0, "failed": 0, "left": len(plan.tasks)}
    with opened(sweep.out) as table:
        left = [task for task in plan.tasks if task.key not in table.done]
        had = len(plan.tasks) - len(left)
        figures: dict[str, Any] = {"tasks": len(plan.tasks), "had": had, "done": 0, "failed": 0, "left": len(left)}
        figures |= {"table": str(table.path), "pictures": str(sweep.out / "pictures")}
        if plan_only or not left:
            return figures
        progress(had, len(plan.tasks), None)
        queue = Queue(left, sweep.attempts)

        def stored(task: Task, result: Result) -> None:
            table.add(task, result, save_pictures=sweep.save_pictures)
            progress(had + queue.done + 1, len(plan.tasks), None)
            watch(task, result)

        reasons = asyncio.run(_all(sweep, plan, queue, stored, told))
    figures |= {"done": queue.done, "failed": len(queue.failed), "left": queue.left}
    figures["seconds"] = round(time.perf_counter() - began, 3)
    _check(sweep, queue, reasons)
    return figures


async def _all(sweep: Sweep, plan: Plan, queue: Queue, stored: Callable[[Task, Result], None], told: Told) -> list[str]:
    # Ray tells of killed workers on stdout, which is for `--json`.
    quiet = contextlib.redirect_stdout(sys.stderr) if isinstance(sweep.where, Cluster) else contextlib.nullcontext()
    with quiet:
        async with crew(sweep) as workers:
            return await drive(queue, workers, plan.order, stored, told)


@contextlib.asynccontextmanager
async def crew(sweep: Sweep) -> AsyncIterator[list[Worker]]:
    """The sweep's workers, which are gone afterwards."""
    workers: list[Any]
    if isinstance(sweep.where, Workers):
        from .local import processes

        workers, pool = processes(sweep, sweep.where)
        end = lambda: pool.shutdown(wait=True)  # noqa: E731
    elif isinstance(sweep.where, Cluster):
        from .cluster import actors

        workers, ray = actors(sweep, sweep.where)
        end = ray.shutdown
    else:
        from .servers import servers

        workers, session = servers(sweep, sweep.where)
        end = session.close
    try:
        yield workers
    finally:
        for each in workers:
            await each.close()
        ended = end()
        if ended is not None:
            await ended


def _nodes(sweep: Sweep) -> tuple[Mapping[str, Schema], Nodes | None]:
    """The nodes that the workflow may use: those here, or those that a server says it has."""
    from .. import registry

    if isinstance(sweep.where, Servers):
        from .servers import schemas

        return asyncio.run(schemas(sweep.where)), None
    with using(Folders(input=sweep.input)):
        nodes = registry.all_nodes()
        return registry.object_info(nodes), nodes


def _check(sweep: Sweep, queue: Queue, reasons: list[str]) -> None:
    """SweepError unless all is done."""
    if queue.failed:
        path = failures(sweep.out, queue.failed)
        _, error = next(iter(queue.failed.values()))
        more = f", and {len(queue.failed) - 1} more in {path}" if len(queue.failed) > 1 else f" (in {path})"
        raise SweepError(
            f"{len(queue.failed)} of {len(queue.failed) + queue.done} tasks failed: {error}{more}. The same command "
            "tries these again"
        )
    if queue.left:
        raise SweepError(f"{queue.left} tasks are left and nobody does them: {'; '.join(dict.fromkeys(reasons))}")
