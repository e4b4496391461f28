"""A sweep's tasks: every combination of its settings, in the order in which a worker computes least anew."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .. import graph, settings, validate, workflow
from ..problems import WorkflowError
from ..registry import Nodes
from ..widgets import Schema
from .file import MOST, Sweep, SweepError
from .measures import settings_named

VERSION = 1
"""Part of every key: raised when the same settings come to mean something else."""


@dataclass(frozen=True)
class Task:
    """One run of the workflow. `key` is the same for the same graph and measures, whatever the file is called; tasks of
    one `group` share what is most upstream. `settings` are by NODE.INPUT, as the file has them."""

    number: int
    key: str
    group: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class Order:
    """What a worker is given: the graph, the saved form for its pictures, and whose pictures are wanted."""

    task: Task
    prompt: dict[str, Any]
    document: dict[str, Any] | None
    ends: list[str]


class Plan:
    """A sweep on its workflow. `nodes` None: they are not here, and `schemas` are what a server says of them.

    WorkflowError or SweepError if anything in it names what is not there, or a value cannot be.
    """

    def __init__(self, sweep: Sweep, schemas: Mapping[str, Schema], nodes: Nodes | None) -> None:
        self.sweep, self.schemas, self.nodes = sweep, schemas, nodes
        self.base = workflow.load(sweep.workflow, schemas)
        self.places: dict[str, settings.Place] = {}
        for name in [*sweep.fixed, *(name for names, _ in sweep.axes for name in names), *_read_by(sweep)]:
            self.places[name] = self._place(name)
        self._no_input_twice()
        self.ends = self._ends()
        self.axes = sorted(sweep.axes, key=lambda axis: max(map(self._reach, axis[0])), reverse=True)
        total = math.prod(len(values) for _, values in self.axes)
        if total > MOST:
            raise SweepError(f"{sweep.path}: {total} tasks are too many; {MOST} are the most")
        self.tasks = list(self._tasks())

    def order(self, task: Task) -> Order:
        """What to do for a task."""
        changed = workflow.Workflow(_copied(self.base.prompt), copy.deepcopy(self.base.document))
        for name, value in self._typed(task.settings).items():
            settings.put(changed, self.schemas, self.places[name], value)
        return Order(task, self._checked(changed.prompt), changed.document, self.ends)

    def _place(self, name: str) -> settings.Place:
        place = self._said(settings.find, self.base.prompt, self.schemas, name)
        if graph.is_link(self.base.prompt[place.node]["inputs"].get(place.input)):
            raise SweepError(f"{self.sweep.path}: “{name}” is wired to another node; set the input that it comes from")
        return place

    def _said(self, what: Any, *given: Any) -> Any:
        try:
            return what(*given)
        except WorkflowError as error:
            raise SweepError(f"{self.sweep.path}: {error}") from error

    def _no_input_twice(self) -> None:
        read = _read_by(self.sweep)
        names = {place: name for name, place in self.places.items() if name not in read}
        for name, place in self.places.items():
            if name not in read and names[place] != name:
                raise SweepError(f"{self.sweep.path}: “{name}” and “{names[place]}” are the same input")

    def _ends(self) -> list[str]:
        name = self.sweep.pictures
        if not name:
            return graph.outputs(self.base.prompt, self.schemas)
        node = self._said(settings.node, self.base.prompt, name)
        if node not in graph.outputs(self.base.prompt, self.schemas):
            raise SweepError(f"{self.sweep.path}: pictures: “{name}” is no output node, such as Save Image")
        return [node]

    def _reach(self, name: str) -> tuple[int, bool]:
        """How many nodes run again when this input changes, and whether a model is among them."""
        changed = self.places[name].node
        again = [id_ for id_ in self.base.prompt if changed in graph.needed(self.base.prompt, [id_])]
        return len(again), any("MODEL" in self.schemas[self.base.prompt[id_]["class_type"]]["output"] for id_ in again)

    def _tasks(self) -> Iterator[Task]:
        names = [name for axis, _ in self.axes for name in axis]
        seen: set[str] = set()
        for number, places in enumerate(itertools.product(*(range(len(values)) for _, values in self.axes))):
            chosen = [value for (_, values), at in zip(self.axes, places, strict=True) for value in values[at]]
            given = {**self.sweep.fixed, **dict(zip(names, chosen, strict=True))}
            task = Task(number, "", places[0] if places else 0, self._typed(given))
            task = replace(task, key=self._key(task))
            if task.key not in seen:
                seen.add(task.key)
                yield task

    def _typed(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Each value in its input's type, and what the measures read beside."""
        read = {name: self._standing(name) for name in _read_by(self.sweep) if name not in given}
        typed = {}
        for name, value in {**read, **given}.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            typed[name] = self._said(settings.value, self.base.prompt, self.schemas, self.places[name], text)
        return typed

    def _standing(self, name: str) -> Any:
        place = self.places[name]
        return graph.constant(self.base.prompt[place.node]["inputs"].get(place.input))

    def _key(self, task: Task) -> str:
        """A digest of the graph that runs, and of what is measured."""
        prompt = _copied(self.base.prompt)
        for name, value in task.settings.items():
            place = self.places[name]
            prompt[place.node]["inputs"][place.input] = value
        checked = self._checked(prompt)
        runs = {id_: [checked[id_]["class_type"], checked[id_]["inputs"]] for id_ in graph.needed(checked, self.ends)}
        text = json.dumps([VERSION, runs, self.sweep.measures], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def _checked(self, prompt: dict[str, Any]) -> dict[str, Any]:
        try:
            return validate.check(prompt, self.nodes, self.schemas, self.base.problems, ends=self.ends)
        except WorkflowError as error:
            places = set(self.places.values())
            ours = [p for p in error.problems if p.kind == "missing_node_type" or (p.node, p.input) in places]
            # A server knows its nodes better than their schemas say; what the sweep sets is checked all the same.
            problems = error.problems if self.nodes is not None else ours
            if problems:
                raise WorkflowError(problems) from error
            return prompt


def _read_by(sweep: Sweep) -> set[str]:
    """What the measures read and the sweep does not set."""
    return settings_named(sweep.measures) - {*sweep.fixed, *(name for names, _ in sweep.axes for name in names)}


def _copied(prompt: Mapping[str, Any]) -> dict[str, Any]:
    return {id_: {**node, "inputs": dict(node["inputs"])} for id_, node in prompt.items()}
