"""What can be wrong with a workflow, said so that its author finds the place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing to mend. `kind` is ComfyUI's name for it, `node` the id, `title` what the user sees."""

    kind: str
    message: str
    node: str | None = None
    title: str | None = None
    input: str | None = None

    def __str__(self) -> str:
        if self.node is None:
            return self.message
        place = f"“{self.title or self.node}” (node {self.node})"
        return f"{place}, input “{self.input}”: {self.message}" if self.input else f"{place}: {self.message}"


class WorkflowError(ValueError):
    """A workflow that cannot run, with everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem] | str):
        self.problems = [Problem("invalid_prompt", problems)] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(str(each) for each in self.problems))


def nearest(name: object, known: Iterable[object]) -> str | None:
    """The known name that is most like this one, by their letters; None if none is."""
    by_text = {str(each).casefold(): str(each) for each in known}
    found = difflib.get_close_matches(str(name).casefold(), by_text, n=1, cutoff=0.5)
    return by_text[found[0]] if found else None


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """ " Did you mean “…”?" where there is something like it, else nothing."""
    close = nearest(name, known)
    return f" Did you mean “{close}”?" if close is not None else ""
