"""The node that is running, as far as an adapter may know it: where its progress and its messages go.

The executor opens `reporting` around each node; an adapter whose program has no progress bar of its own calls
`progress`. A context variable, not a global: two executors in one process do not meet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from ..core.protocols import Progress, no_progress


class Interrupted(Exception):
    """The user cancelled. Nothing is wrong; nobody but the executor should catch it."""


Tell = Callable[[str, dict[str, Any]], None]
"""`tell(event, data)`: a message from the running node to its widget in the browser."""


def _unheard(event: str, data: dict[str, Any]) -> None:
    pass


_sink: ContextVar[Callable[[int], Progress] | None] = ContextVar("velatura_progress", default=None)
_tell: ContextVar[Tell] = ContextVar("velatura_tell", default=_unheard)


def progress(total: int) -> Progress:
    """The running node's progress bar for `total` steps; outside of a node one that shows nothing.

    Calling it raises `Interrupted` once the user has cancelled.
    """
    sink = _sink.get()
    return no_progress if sink is None else sink(total)


def tell(event: str, data: dict[str, Any]) -> None:
    """Send a message to the running node's widget; outside of a node nobody hears it."""
    _tell.get()(event, data)


@contextlib.contextmanager
def reporting(sink: Callable[[int], Progress], told: Tell = _unheard) -> Iterator[None]:
    """While open, `progress(total)` is `sink(total)`, and `told` hears what `tell` says."""
    token, other = _sink.set(sink), _tell.set(told)
    try:
        yield
    finally:
        _sink.reset(token)
        _tell.reset(other)
