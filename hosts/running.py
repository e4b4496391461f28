"""The node that is running, as far as an adapter may know it: where its progress goes.

The executor opens `reporting` around each node; an adapter whose program has no progress bar of its own calls
`progress`. A context variable, not a global: two executors in one process do not meet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from ..core.protocols import Progress, no_progress


class Interrupted(Exception):
    """The user cancelled. Nothing is wrong; nobody but the executor should catch it."""


_sink: ContextVar[Callable[[int], Progress] | None] = ContextVar("velatura_progress", default=None)


def progress(total: int) -> Progress:
    """The running node's progress bar for `total` steps; outside of a node one that shows nothing.

    Calling it raises `Interrupted` once the user has cancelled.
    """
    sink = _sink.get()
    return no_progress if sink is None else sink(total)


@contextlib.contextmanager
def reporting(sink: Callable[[int], Progress]) -> Iterator[None]:
    """While open, `progress(total)` is `sink(total)`."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)
