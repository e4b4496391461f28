"""One queue, one worker. Everything here is on the event loop, save what `_run` does on the worker's thread."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import gc
import logging
import traceback
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from ...hosts.running import Interrupted
from ..executor import Executor, NodeError
from . import history
from .config import Config
from .jobs import CANCELLED, COMPLETED, FAILED, RUNNING, Job, now
from .messages import Event, Preview, Story
from .sockets import Hub

LOG = logging.getLogger(__name__)


class QueueFull(RuntimeError):
    """More waits already than the server is told to hold."""


class Queue:
    """`pending` in the order in which it will run, `running`, and `finished`, oldest first."""

    def __init__(self, config: Config, executor: Executor, hub: Hub):
        self.config, self.executor, self.hub = config, executor, hub
        self.pending: list[Job] = []
        self.running: Job | None = None
        self.finished: dict[str, Job] = {}
        self._count = 0
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="velatura-worker")
        self._worker: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Recall what was finished, and begin to work."""
        jobs = await asyncio.to_thread(history.load, self.config.history, self.config.limits.history)
        self.finished = {job.id: job for job in jobs}
        self._worker = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Stop within a step of the running node."""
        if self._worker is not None:
            self._worker.cancel()
        if self.running is not None:
            self.running.cancel.set()
        await asyncio.to_thread(self._thread.shutdown)

    def next_number(self) -> int:
        """A place behind all that came before."""
        self._count += 1
        return self._count - 1

    def status(self) -> Event:
        """How much there is still to do."""
        remaining = len(self.pending) + (self.running is not None)
        return Event("status", {"status": {"exec_info": {"queue_remaining": remaining}}})

    def find(self, id_: str) -> Job | None:
        """A job by its id, wherever it stands."""
        if self.running is not None and self.running.id == id_:
            return self.running
        return self.finished.get(id_) or next((job for job in self.pending if job.id == id_), None)

    def add(self, job: Job) -> None:
        """Put a job in its place. QueueFull if there are too many."""
        limits = self.config.limits
        size = sum(each.size for each in self.pending) + job.size
        if len(self.pending) >= limits.queued or size > limits.queued_bytes:
            raise QueueFull(f"the queue is full: {len(self.pending)} graphs wait")
        bisect.insort(self.pending, job, key=lambda each: each.number)
        self._wake.set()
        self.hub.broadcast(self.status())

    def drop(self, ids: Collection[str] | None = None) -> list[str]:
        """Take these, or all, out of those that wait; the ids that were."""
        gone = [job.id for job in self.pending if ids is None or job.id in ids]
        self.pending = [job for job in self.pending if ids is not None and job.id not in ids]
        self.hub.broadcast(self.status())
        return gone

    def interrupt(self, id_: str | None = None) -> bool:
        """Cancel the running job, if it is this one."""
        if self.running is None or id_ not in (None, self.running.id):
            return False
        self.running.cancel.set()
        return True

    async def forget(self, ids: Collection[str] | None = None) -> None:
        """Drop these finished jobs, or all."""
        gone = [id_ for id_ in self.finished if ids is None or id_ in ids]
        for id_ in gone:
            del self.finished[id_]
        await asyncio.to_thread(self._remove, gone)
        self.hub.broadcast(self.status())

    def _remove(self, ids: list[str]) -> None:
        for id_ in ids:
            history.remove(self.config.history, id_)

    async def free(self) -> None:
        """Drop the executor's results, models among them, after the running job."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._free)

    def _free(self) -> None:
        import torch

        self.executor.forget()
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            if not self.pending:
                self._wake.clear()
                continue
            job = self.running = self.pending.pop(0)
            story = Story(job)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self._run, job, story, loop)
            self.running = None
            await self._remember(job)
            for event in story.ending():
                self.hub.send(job.client, event)
            self.hub.broadcast(self.status())

    async def _remember(self, job: Job) -> None:
        self.finished[job.id] = job
        old = list(self.finished)[: -self.config.limits.history]
        for id_ in old:
            del self.finished[id_]
        await asyncio.to_thread(self._remove, old)

    def _run(self, job: Job, story: Story, loop: asyncio.AbstractEventLoop) -> None:
        def tell(name: str, data: dict) -> None:
            # All at once: each post lets the loop run, and a picture would wait for that.
            _post(loop, self.hub, job.client, list(story.tell(name, data)))

        job.status, job.started = RUNNING, now()
        try:
            extra = {"extra_pnginfo": job.extra, "targets": job.targets or None}
            self.executor.run(job.prompt, events=tell, cancel=job.cancel, prompt_id=job.id, **extra)
            job.status = COMPLETED
        except Interrupted:
            job.status = CANCELLED
        except NodeError as error:
            job.status = FAILED
            LOG.warning("%s", error, exc_info=not isinstance(error.__cause__, (ValueError, OSError)))
        except Exception as error:
            job.status = FAILED
            LOG.exception("the graph could not be run")
            tell("execution_error", _unplaced(job, error))
        job.node, job.ended = None, now()
        try:
            history.save(self.config.history, job)
        except OSError as error:
            LOG.warning("the job could not be written to the history: %s", error)


def _post(loop: asyncio.AbstractEventLoop, hub: Hub, client: str | None, messages: list[Event | Preview]) -> None:
    def send() -> None:
        for message in messages:
            hub.send(client, message)

    # The loop is closed where the server did not wait for a node that hears no cancel.
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(send)


def _unplaced(job: Job, error: Exception) -> dict:
    """An error outside of any node, in the form of one inside."""
    node = next(iter(job.prompt), "")
    told = {"node_id": node, "node_type": job.prompt[node]["class_type"] if node else "", "executed": []}
    told |= {"exception_message": str(error), "exception_type": type(error).__name__, "prompt_id": job.id}
    told |= {"traceback": traceback.format_tb(error.__traceback__), "current_inputs": {}, "current_outputs": []}
    return told | {"timestamp": now()}
