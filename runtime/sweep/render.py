"""A task done on this machine: the graph run, its pictures read and measured."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .measures import measure
from .plan import Order

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Picture:
    """A picture's file, and its figures."""

    data: bytes
    suffix: str
    figures: dict[str, float]


@dataclass(frozen=True)
class Result:
    """What came of a task: its pictures, or why there are none. `seconds` it took, `ended` when, and where it ran."""

    key: str
    pictures: list[Picture]
    error: str | None
    seconds: float
    ended: float
    worker: str


class Renderer:
    """Runs graphs one after the other; models stay loaded from one to the next."""

    def __init__(self, input_: str, measures: Mapping[str, Mapping[str, Any]], home: str, threads: int = 0) -> None:
        import torch

        from ...hosts.folders import Folders
        from .. import registry
        from ..executor import Executor

        if threads:
            torch.set_num_threads(threads)
        self.measures, self.home = measures, home
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._scratch = tempfile.TemporaryDirectory(prefix="velatura-sweep-", ignore_cleanup_errors=True)
        scratch = Path(self._scratch.name)
        self.folders = Folders(input=Path(input_), output=scratch / "output", temp=scratch / "temp")
        self.executor = Executor(registry.all_nodes(), self.folders)

    def ready(self) -> str:
        """This worker's name, once it can work."""
        return self.name

    def do(self, order: Order) -> Result:
        """Run a task. A graph that fails is a result too."""
        from ..executor import NodeError

        began = time.perf_counter()
        pictures: list[Picture] = []
        error = None
        try:
            extra = {"workflow": order.document} if order.document is not None else {}
            outcome = self.executor.run(order.prompt, extra_pnginfo=extra, targets=order.ends)
            paths = [self._path(item) for item in wanted(outcome.shown.values())]
            pictures = measured([(path.read_bytes(), path.suffix) for path in paths], order, self.measures, self.home)
            self._forget(paths)
        except NodeError as failed:
            error = str(failed)
        except ValueError as failed:
            error = str(failed)
        return Result(order.task.key, pictures, error, time.perf_counter() - began, time.time(), self.name)

    def _path(self, item: Mapping[str, Any]) -> Path:
        return self.folders.of(item["type"]) / item["subfolder"] / item["filename"]

    def _forget(self, kept: Iterable[Path]) -> None:
        # Those of the last task stay: a node that need not run again shows them again.
        for folder in (self.folders.output, self.folders.temp):
            for path in [each for each in folder.rglob("*") if each.is_file() and each not in set(kept)]:
                path.unlink()


def wanted(shown: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The pictures among what nodes show: those saved, or where nothing is saved the previews. ValueError if there are
    none."""
    items = [item for output in shown for kind in output.values() if isinstance(kind, list) for item in kind]
    named = [each for each in items if isinstance(each, dict) and {"filename", "subfolder", "type"} <= set(each)]
    pictures = [each for each in named if str(each["filename"]).lower().endswith(PICTURES)]
    saved = [each for each in pictures if each["type"] == "output"]
    if not pictures:
        raise ValueError("the workflow saved no picture; a sweep needs a node such as Save Image")
    return saved or pictures


def measured(
    files: list[tuple[bytes, str]], order: Order, measures: Mapping[str, Mapping[str, Any]], home: str
) -> list[Picture]:
    """Pictures with their figures."""
    figures = measure([data for data, _ in files], order.task.settings, measures, home)
    return [Picture(data, suffix.lower(), each) for (data, suffix), each in zip(files, figures, strict=True)]
