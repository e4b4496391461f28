"""Where the embedded runtime reads and writes: input, output, temporary files, models.

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


# Pickles are listed too: choosing one tells how to convert it.
_SUFFIXES = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".pkl"}


def models(kind: str) -> list[str]:
    """The models of a kind ("checkpoints", "loras"): files, and diffusers folders among the checkpoints, by their path
    below the kind's folder. Links are followed."""
    root = folders().models / kind
    found: list[Path] = []
    for folder, inside, files in os.walk(root, followlinks=True):
        if kind == "checkpoints" and "model_index.json" in files:
            found.append(Path(folder))
            inside.clear()
        else:
            found += [Path(folder, name) for name in files if Path(name).suffix.lower() in _SUFFIXES]
    return sorted(each.relative_to(root).as_posix() for each in found)


def model_file(kind: str, name: str) -> Path:
    """The path of a listed model. FileNotFoundError says where it was looked for."""
    root = (folders().models / kind).absolute()
    path = Path(os.path.normpath(root / name))
    if not name or not path.is_relative_to(root) or not path.exists():
        raise FileNotFoundError(f"{kind}: there is no {name!r} in {root}; put the file there or choose another")
    return path
