"""Workers on this machine: processes, each with its models."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from .file import Sweep, Workers
from .plan import Order
from .render import Renderer, Result
from .workers import Gone


class Process:
    """A process that does tasks, started when it is needed and anew when it was killed."""

    patience = 60.0

    def __init__(self, name: str, sweep: Sweep, threads: int, pool: ThreadPoolExecutor) -> None:
        self.name, self.pool = name, pool
        self.given = (str(sweep.input), sweep.measures, sweep.home, threads)
        self.process: Any = None
        self.line: Connection | None = None

    async def start(self) -> None:
        """Start the process, and wait until it has what it needs."""
        if self.process is not None:
            return
        spawn = multiprocessing.get_context("spawn")
        self.line, theirs = spawn.Pipe()
        process = spawn.Process(target=_main, args=(theirs, *self.given), daemon=True, name=self.name)
        process.start()
        self.process = process
        theirs.close()  # so that this end hears when the process is gone
        await self._heard()

    async def do(self, order: Order) -> Result:
        """Have a task done."""
        assert self.line is not None
        try:
            self.line.send(order)
        except OSError as error:
            await self.close()
            raise Gone("it was killed") from error
        return await self._heard()

    async def _heard(self) -> Any:
        assert self.line is not None
        try:
            said = await asyncio.get_running_loop().run_in_executor(self.pool, self.line.recv)
        except (EOFError, OSError) as error:
            self.process.join(5)
            status = self.process.exitcode
            await self.close()
            how = f"signal {-status}" if status is not None and status < 0 else f"exit status {status}"
            raise Gone(f"it ended with {how}") from error
        if isinstance(said, Exception):
            raise said  # a fault of ours, which the next task would find as well
        return said

    async def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
        if self.line is not None:
            self.line.close()
        self.process = self.line = None


def processes(sweep: Sweep, where: Workers) -> tuple[list[Process], ThreadPoolExecutor]:
    """The workers, and the threads that listen to them."""
    pool = ThreadPoolExecutor(where.count, thread_name_prefix="velatura-sweep")
    threads = where.threads or max(1, (os.cpu_count() or 1) // where.count)
    return [Process(f"worker {n + 1}", sweep, threads, pool) for n in range(where.count)], pool


def _main(line: Connection, input_: str, measures: dict[str, dict[str, Any]], home: str, threads: int) -> None:
    # Ctrl+C is for the one who hands out the tasks; it ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        renderer = Renderer(input_, measures, home, threads)
        line.send(renderer.ready())
        while True:
            line.send(renderer.do(line.recv()))
    except (EOFError, BrokenPipeError):
        pass  # whoever handed out the tasks is gone
    except Exception as error:
        line.send(RuntimeError(f"{type(error).__name__}: {error}"))
