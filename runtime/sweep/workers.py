"""What does tasks, and what becomes of them when it is gone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from .plan import Order, Task
from .queue import Queue
from .render import Result

LONGEST = 30.0
"""Seconds between two attempts to reach a worker that is gone, at most."""


class Gone(Exception):
    """A worker that is not there, or not any more. What it was doing is done again."""


class Refused(Exception):
    """A worker that will not do this sweep's tasks, for a reason that trying again does not mend."""


class Worker(Protocol):
    """`start` makes it ready, and again after it was gone; `do` does a task; both may raise Gone or Refused. It is
    given up when it could not be started for `patience` seconds."""

    name: str
    patience: float

    async def start(self) -> None: ...

    async def do(self, order: Order) -> Result: ...

    async def close(self) -> None: ...


Told = Callable[[str], None]
Stored = Callable[[Task, Result], None]


async def drive(
    queue: Queue, workers: Sequence[Worker], order: Callable[[Task], Order], stored: Stored, told: Told
) -> list[str]:
    """Have all tasks done. `stored` is called with each result, `told` with what people should know. What is left in
    the queue afterwards nobody could do, for the reasons that are returned."""
    crews = [asyncio.ensure_future(_work(each, queue, order, stored, told)) for each in workers]
    empty = asyncio.ensure_future(queue.empty())
    waiting, reasons = set(crews), []
    try:
        # A worker that is still being started when all is done is not waited for.
        while waiting and not empty.done():
            ended, _ = await asyncio.wait({*waiting, empty}, return_when=asyncio.FIRST_COMPLETED)
            reasons += [each.result() for each in waiting & ended]
            waiting -= ended
        return [reason for reason in reasons if reason is not None]
    finally:
        for each in (*crews, empty):
            each.cancel()
        await asyncio.gather(*crews, empty, return_exceptions=True)


async def _work(worker: Worker, queue: Queue, order: Callable[[Task], Order], stored: Stored, told: Told) -> str | None:
    """Do tasks as long as there are any. Why the worker stopped before that, None if it did not."""
    while queue.left:
        refused = await _started(worker.start, worker.name, worker.patience, told)
        if refused is not None:
            return refused
        task = await queue.take(worker.name)
        if task is None:
            break
        try:
            result = await worker.do(order(task))
        except Gone as error:
            told(f"{worker.name} is gone ({error}); its task is done again")
            await queue.lose(task, str(error))
        except Refused as error:
            await queue.lose(task, str(error), charged=False)
            told(f"{worker.name} refuses the workflow and is left out: {error}")
            return f"{worker.name} refuses the workflow: {error}"
        else:
            if result.error is None:
                stored(task, result)
            await queue.finish(task, result.error)
    return None


async def _started(start: Callable[[], Awaitable[None]], name: str, patience: float, told: Told) -> str | None:
    """Make a worker ready, trying again with growing pauses. Why that was given up, None if it is ready."""
    began, pause = time.monotonic(), 0.5
    while True:
        try:
            await start()
        except Gone as error:
            if time.monotonic() - began + pause > patience:
                told(f"{name} is not there ({error}) and is left out")
                return f"{name} is not there: {error}"
            if pause == 0.5:
                told(f"{name} is not there ({error}); it is tried again")
        except Refused as error:
            told(f"{name} is left out: {error}")
            return f"{name}: {error}"
        else:
            return None
        await asyncio.sleep(pause)
        pause = min(LONGEST, 2 * pause)
