"""Progress on the terminal: one bar for each node that runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from .graph import title

if TYPE_CHECKING:
    from ..core.protocols import Progress


class Bars:
    """Shows the executor's events on stderr. Use as its `events`; `close` when the run is over, however it ended."""

    def __init__(self, prompt: Mapping[str, Any]):
        self.prompt = prompt
        self.bar: tqdm[Any] | None = None

    def __call__(self, name: str, data: dict[str, Any]) -> None:
        """Take one event."""
        if name == "executing":
            self._finish()
            if data["node"] is not None:
                self.bar = _new_bar(title(self.prompt[data["node"]]), 1)
        elif name == "progress" and self.bar is not None:
            _advance(self.bar, data["value"], data["max"])

    def _finish(self) -> None:
        if self.bar is not None:
            _advance(self.bar, self.bar.total, self.bar.total)
        self.close()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self.bar is not None:
            self.bar.close()
        self.bar = None


@contextlib.contextmanager
def reporting(name: str) -> Iterator[Progress]:
    """One bar for one long task, from its first step on."""
    shown: list[tqdm[Any]] = []

    def report(step: int, total: int, preview: Any = None) -> None:
        if not shown:
            shown.append(_new_bar(name, total))
        _advance(shown[0], step, total)

    try:
        yield report
    finally:
        for bar in shown:
            bar.close()


def note(line: str) -> None:
    """A line for people, above the bar."""
    tqdm.write(line, file=sys.stderr)


def _new_bar(name: str, total: int) -> tqdm[Any]:
    # Where stderr is no terminal, a line now and then.
    return tqdm(total=total, desc=name, file=sys.stderr, mininterval=0.1 if sys.stderr.isatty() else 10.0)


def _advance(bar: tqdm[Any], step: int, total: int) -> None:
    bar.total = total
    bar.update(step - bar.n)
