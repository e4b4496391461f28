"""Where the runtime reads and writes: input, output, temporary files, models.

A run sets its own with `using`; `folders()` is how a stock node finds them. They live in a context variable, so that
two runs in one process do not see each other's.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path


def _models() -> Path:
    return Path(os.environ.get("VELATURA_MODELS") or "models")


def _temp() -> Path:
    return Path(tempfile.gettempdir()) / "velatura"


@dataclass(frozen=True)
class Folders:
    """The four folders. None of them need exist: who writes makes it, who reads finds it empty."""

    input: Path = Path("input")
    output: Path = Path("output")
    temp: Path = field(default_factory=_temp)
    models: Path = field(default_factory=_models)

    def of(self, kind: str) -> Path:
        """A folder by ComfyUI's name for it: "input", "output" or "temp"."""
        return {"input": self.input, "output": self.output, "temp": self.temp}[kind]


_current: ContextVar[Folders | None] = ContextVar("velatura_folders", default=None)


def folders() -> Folders:
    """The folders of the run that is under way; the defaults outside of one."""
    return _current.get() or Folders()


@contextlib.contextmanager
def using(chosen: Folders) -> Iterator[Folders]:
    """Make these the folders of everything inside."""
    token = _current.set(chosen)
    try:
        yield chosen
    finally:
        _current.reset(token)
