"""Which task is next, what is under way, and what was lost on the way."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable

from .plan import Task


class Queue:
    """Tasks for workers that may vanish. A task that was lost `attempts` times has failed: it may be what kills them.

    A worker keeps to one group of tasks as long as there are any, so that what it has loaded serves.
    """

    def __init__(self, tasks: Iterable[Task], attempts: int) -> None:
        self.attempts = attempts
        self.waiting: dict[int, deque[Task]] = {}
        for task in tasks:
            self.waiting.setdefault(task.group, deque()).append(task)
        self.running: set[str] = set()
        self.done = 0
        self.failed: dict[str, tuple[Task, str]] = {}
        self._lost: Counter[str] = Counter()
        self._groups: dict[str, int] = {}
        self._changed = asyncio.Condition()

    @property
    def left(self) -> int:
        """Tasks that are not finished."""
        return sum(map(len, self.waiting.values())) + len(self.running)

    async def take(self, worker: str) -> Task | None:
        """The next task for a worker. It waits while others may lose theirs; None when all is finished."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.waiting or not self.running)
            if not self.waiting:
                return None
            task = self._next(worker)
            self.running.add(task.key)
            return task

    def _next(self, worker: str) -> Task:
        group = self._groups.get(worker)
        if group not in self.waiting:
            others = set(self._groups.values())
            group = max(self.waiting, key=lambda each: (each not in others, len(self.waiting[each]), -each))
        assert group is not None
        self._groups[worker] = group
        task = self.waiting[group].popleft()
        if not self.waiting[group]:
            del self.waiting[group]
        return task

    async def finish(self, task: Task, error: str | None = None) -> None:
        """A task is done, or it cannot be done."""
        async with self._changed:
            self.running.discard(task.key)
            if error is None:
                self.done += 1
            else:
                self.failed[task.key] = (task, error)
            self._changed.notify_all()

    async def lose(self, task: Task, why: str, *, charged: bool = True) -> None:
        """A task's worker is gone: somebody does it again, unless that has happened too often."""
        self._lost[task.key] += charged
        if self._lost[task.key] >= self.attempts:
            await self.finish(task, f"its worker was gone {self._lost[task.key]} times, at last: {why}")
            return
        async with self._changed:
            self.running.discard(task.key)
            self.waiting.setdefault(task.group, deque()).appendleft(task)
            self._changed.notify_all()

    async def empty(self) -> None:
        """Wait until all tasks are finished."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.waiting and not self.running)
