"""More than one process: whether two train as one does, and what a sweep loses and gains with several workers."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..core.protocols import Progress, no_progress
from ..hosts.folders import Folders, using
from ..runtime import registry
from ..runtime.sweep import file
from ..runtime.sweep import run as sweeps
from ..runtime.sweep.plan import Plan, Task
from ..runtime.sweep.queue import Queue
from ..runtime.sweep.render import Result
from ..runtime.sweep.workers import drive
from . import _trainers
from ._served import Served, served

WORKFLOW = Path(__file__).resolve().parent.parent / "example_workflows" / "lcm_four_steps.json"
TASKS, ROUNDS = 16, 6


def run(progress: Progress = no_progress, *, quick: bool = False) -> dict[str, Any]:
    """The figures of `velatura bench scale`. `quick` looks at fewer trainers, tasks and rounds.

    A figure of Ray is None where Ray is not installed.
    """
    parts: list[Callable[[], dict[str, Any]]] = [
        lambda: training(["supervised", "smooth"] if quick else list(_trainers.TRAINERS)),
        lambda: {"sweep_lost_local": lost_local(TASKS // 2 if quick else TASKS)},
        lambda: {"sweep_lost_ray": lost_ray(TASKS // 2 if quick else TASKS)},
        lambda: {"sweep_lost_server": lost_server(TASKS // 2 if quick else TASKS)},
        lambda: efficiency(2 if quick else ROUNDS, 4 if quick else TASKS),
    ]
    figures: dict[str, Any] = {}
    for number, part in enumerate(parts):
        progress(number, len(parts), None)
        figures |= part()
    progress(len(parts), len(parts), None)
    lost = [value for name, value in figures.items() if name.startswith("sweep_lost") and value is not None]
    return {**figures, "sweep_lost": sum(lost)}


def training(names: Sequence[str]) -> dict[str, Any]:
    """The largest difference between a batch of four in one process and in two, over every loss of these trainers."""
    with tempfile.TemporaryDirectory() as folder:
        one = _trainers.processes(1, Path(folder, "one"), 4, names)[1]
        two = _trainers.processes(2, Path(folder, "two"), 2, names)[1]
    worst = {name: _trainers.loss_difference(one[name][0][1], two[name][0][1]) for name in names}
    return {"two_process_loss_difference": max(worst.values()), "two_process_loss_differences": worst}


def write_sweep(folder: Path, where: str, tasks: int) -> Path:
    """A sweep file of so many one-step pictures of 128x128, measured; `where` is its table of workers."""
    path = folder / "sweep.toml"
    lines = [
        f'workflow = "{WORKFLOW.as_posix()}"',
        'out = "out"',
        "[set]",
        '"VelaturaLcmSample.steps" = 1',
        '"EmptyLatentImage.batch_size" = 1',
        "[grid]",
        '"What to draw.text" = ["a red glass ball, warm sunset from the left", "a blue feather in a cold night"]',
        f'"VelaturaLcmSample.seed" = {{ from = 1, to = {tasks // 2} }}',
        "[measure.accuracy]",
        'prompt = "What to draw.text"',
        where,
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a sweep's table."""
    import pyarrow.parquet as parquet

    return parquet.read_table(path.parent / "out" / "results.parquet").to_pylist()


def lost(path: Path, tasks: int, kill: Callable[[Task, Result], None]) -> int:
    """Run a sweep while `kill` sees each result. How many of its tasks are not in the table, or are there twice."""
    sweeps.run(path, watch=kill)
    keys = [row["key"] for row in rows(path)]
    return abs(tasks - len(set(keys))) + len(keys) - len(set(keys))


def killing() -> Callable[[Task, Result], None]:
    """Kills the first worker that has done something, in the middle of its next task."""
    killed: list[str] = []

    def kill(task: Task, result: Result) -> None:
        if not killed:
            killed.append(result.worker)
            process = int(result.worker.rpartition(":")[2])
            threading.Timer(0.05, os.kill, (process, signal.SIGKILL)).start()

    return kill


def lost_local(tasks: int) -> int:
    """Two processes here, one of them killed."""
    with tempfile.TemporaryDirectory() as folder:
        return lost(write_sweep(Path(folder), "[workers]\ncount = 2\nthreads = 1", tasks), tasks, killing())


def lost_ray(tasks: int) -> int | None:
    """Two actors of a Ray cluster on this machine, one of them killed."""
    if importlib.util.find_spec("ray") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return lost(write_sweep(Path(folder), '[cluster]\nray = "local"\nworkers = 2', tasks), tasks, killing())


def lost_server(tasks: int) -> int:
    """Two servers, of which one vanishes in the middle of a task."""
    with served() as first, served() as second, tempfile.TemporaryDirectory() as folder:
        path = write_sweep(Path(folder), servers(first, second), tasks)

        killed = []

        def kill(task: Task, result: Result) -> None:
            if not killed:
                killed.append(second if result.worker == first.address.rstrip("/") else first)
                killed[0].process.kill()

        return lost(path, tasks, kill)


def servers(*running: Served, patience: float = 5) -> str:
    """The table of servers of a sweep file."""
    return f"[servers]\nurls = {[each.address for each in running]}\npatience = {patience}"


def efficiency(rounds: int, tasks: int) -> dict[str, Any]:
    """Tasks a second of two workers over twice those of one, of one thread each, with their models loaded; in turns,
    so that whatever else the machine does falls on both."""
    with tempfile.TemporaryDirectory() as folder:
        sweep = file.read(write_sweep(Path(folder), "[workers]\ncount = 2\nthreads = 1", tasks))
        with using(Folders(input=sweep.input)):
            nodes = registry.all_nodes()
            plan = Plan(sweep, registry.object_info(nodes), nodes)
        times = asyncio.run(_timed(sweep, plan, rounds))
    ratios = [one / (2 * two) for one, two in times]
    return {
        "sweep_efficiency_two_workers": median(ratios),
        "sweep_efficiency_each_round": [round(each, 3) for each in ratios],
        "sweep_seconds_per_task": median(one for one, _ in times) / len(plan.tasks),
    }


async def _timed(sweep: file.Sweep, plan: Plan, rounds: int) -> list[tuple[float, float]]:
    """Seconds of one worker and of both for all tasks, in each round after one that warms up."""
    found = []
    async with sweeps.crew(sweep) as workers:
        for _ in range(rounds + 1):
            pair = []
            for count in (1, 2):
                queue = Queue(plan.tasks, 1)
                for each in workers[:count]:
                    await each.start()
                began = time.perf_counter()
                await drive(queue, workers[:count], plan.order, lambda task, result: None, lambda line: None)
                pair.append(time.perf_counter() - began)
                if queue.failed:
                    raise RuntimeError(f"a task failed: {next(iter(queue.failed.values()))[1]}")
            found.append((pair[0], pair[1]))
    return found[1:]
