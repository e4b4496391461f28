"""Running a graph: each needed node once, after what it depends on, and only if something upstream changed."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.protocols import Progress
from ..hosts import running
from ..hosts.folders import Folders, using
from ..hosts.running import Interrupted
from ..hosts.schema import ComfyNode, FolderType, Hidden, NodeOutput, Schema
from ..hosts.ui import PreviewImage
from . import graph
from .registry import Nodes
from .validate import overrides

Events = Callable[[str, dict[str, Any]], None]
"""`events(name, data)`, by ComfyUI's names: execution_start, execution_cached, executing, progress, executed,
execution_error, execution_interrupted, execution_success. `progress` carries `preview`, an image [3, H, W] or None.
Messages of nodes to their widgets are velatura.NAME."""


def no_events(name: str, data: dict[str, Any]) -> None:
    """Events that nobody hears."""


class NodeError(RuntimeError):
    """A node failed. `node` is its id, `title` what the user sees; the cause is the node's own exception."""

    def __init__(self, node: str, title: str, class_type: str, cause: BaseException):
        self.node, self.title, self.class_type = node, title, class_type
        text = str(cause) or type(cause).__name__
        super().__init__(f"“{title}” (node {node}): {text}")


@dataclass
class Done:
    """A node's results: one value for each output, and what it shows."""

    values: tuple[Any, ...]
    shown: dict[str, Any] | None = None


@dataclass
class Outcome:
    """What a run did: the nodes it ran and those it had already, in order, and what the nodes show, by id."""

    prompt_id: str
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)
    shown: dict[str, dict[str, Any]] = field(default_factory=dict)


class Executor:
    """Runs graphs one after the other and remembers the results of the last one. Not for two threads at once."""

    def __init__(self, nodes: Nodes, folders: Folders | None = None):
        self.nodes = nodes
        self.folders = folders or Folders()
        self._cache: dict[str, Done] = {}

    def run(
        self,
        prompt: Mapping[str, Any],
        *,
        events: Events = no_events,
        extra_pnginfo: Mapping[str, Any] | None = None,
        cancel: threading.Event | None = None,
        prompt_id: str | None = None,
        targets: list[str] | None = None,
    ) -> Outcome:
        """Run a graph that `validate.check` has passed, for the sake of `targets` (default: all its output nodes).

        Setting `cancel` stops it within a step of the running node. Raises Interrupted then, NodeError when a node
        fails; what had run by then is remembered for the next time.
        """
        with using(self.folders):
            run = _Run(self, prompt, events, extra_pnginfo, cancel or threading.Event(), prompt_id or uuid.uuid4().hex)
            return run.go(targets)

    def forget(self) -> None:
        """Drop all results."""
        self._cache.clear()


class _Run:
    def __init__(
        self,
        executor: Executor,
        prompt: Mapping[str, Any],
        events: Events,
        extra_pnginfo: Mapping[str, Any] | None,
        cancel: threading.Event,
        prompt_id: str,
    ):
        self.nodes, self.cache, self.prompt = executor.nodes, executor._cache, prompt
        self.extra_pnginfo, self.cancel = extra_pnginfo, cancel
        # Once for the run: a schema may list a folder of models.
        self.schemas = {type_: self.nodes[type_].GET_SCHEMA() for type_ in {n["class_type"] for n in prompt.values()}}
        self.outcome = Outcome(prompt_id)
        self.emit: Events = lambda name, data: events(name, {**data, "prompt_id": prompt_id})

    def go(self, targets: list[str] | None) -> Outcome:
        ends = targets or [id_ for id_ in self.prompt if self._schema(id_).is_output_node]
        order = graph.order(self.prompt, ends)
        keys = self._keys(order)
        self.emit("execution_start", {"timestamp": _now()})
        had = [id_ for id_ in order if keys[id_] in self.cache]
        self.emit("execution_cached", {"nodes": had, "timestamp": _now()})
        done: dict[str, Done] = {}
        node_id = ""
        try:
            for node_id in order:
                self._check_cancelled()
                done[node_id] = self._step(node_id, keys[node_id], done)
        except (Interrupted, KeyboardInterrupt):
            self.emit("execution_interrupted", self._place(node_id))
            raise
        except Exception as error:
            raise self._failed(node_id, error) from error
        finally:
            self._trim(set(keys.values()))
        self.emit("executing", {"node": None})
        self.emit("execution_success", {"timestamp": _now()})
        return self.outcome

    def _step(self, id_: str, key: str, done: Mapping[str, Done]) -> Done:
        if key not in self.cache:
            self.emit("executing", {"node": id_, "display_node": id_})
            self.cache[key] = self._execute(id_, done)
            self.outcome.executed.append(id_)
        else:
            self.outcome.cached.append(id_)
        result = self.cache[key]
        if result.shown is not None:
            self.outcome.shown[id_] = result.shown
            self.emit("executed", {"node": id_, "display_node": id_, "output": result.shown})
        return result

    def _execute(self, id_: str, done: Mapping[str, Done]) -> Done:
        import torch

        node = self.prompt[id_]
        hidden = self._hidden(id_)
        cls = self.nodes[node["class_type"]].PREPARE_CLASS_CLONE(hidden)
        given = {name: self._value(value, done) for name, value in node["inputs"].items()}
        told = lambda event, data: self.emit(f"velatura.{event}", {**data, "node": id_})  # noqa: E731
        with running.reporting(lambda total: self._progress(id_, total), told), torch.no_grad():
            output = cls.execute(**given)
        return _done(output, cls, len(self._schema(id_).outputs))

    def _schema(self, id_: str) -> Schema:
        return self.schemas[self.prompt[id_]["class_type"]]

    def _value(self, value: Any, done: Mapping[str, Done]) -> Any:
        return done[str(value[0])].values[value[1]] if graph.is_link(value) else graph.constant(value)

    def _hidden(self, id_: str) -> dict[str, Any]:
        return {Hidden.unique_id: id_, Hidden.prompt: self.prompt, Hidden.extra_pnginfo: self.extra_pnginfo}

    def _progress(self, id_: str, total: int) -> Progress:
        def report(step: int, total: int = total, preview: Any = None) -> None:
            self._check_cancelled()
            self.emit("progress", {"value": step, "max": total, "node": id_, "preview": preview})

        return report

    def _check_cancelled(self) -> None:
        if self.cancel.is_set():
            raise Interrupted("cancelled")

    def _keys(self, order: list[str]) -> dict[str, str]:
        """For each node a digest of everything that its results depend on: equal digests, equal results."""
        keys: dict[str, str] = {}
        for id_ in order:
            node = self.prompt[id_]
            cls = self.nodes[node["class_type"]]
            inputs = {}
            for name, value in sorted(node["inputs"].items()):
                inputs[name] = ["", keys[str(value[0])], value[1]] if graph.is_link(value) else value
            parts = [node["class_type"], inputs, _fingerprint(cls, node["inputs"]), self._identity(id_)]
            keys[id_] = hashlib.sha256(json.dumps(parts, default=repr).encode()).hexdigest()
        return keys

    def _identity(self, id_: str) -> str | None:
        """The node's own id where its results may depend on it, so that two alike nodes do not share one run."""
        schema = self._schema(id_)
        return id_ if schema.not_idempotent or Hidden.unique_id in (schema.hidden or []) else None

    def _trim(self, used: set[str]) -> None:
        for key in [key for key in self.cache if key not in used]:
            del self.cache[key]

    def _place(self, id_: str) -> dict[str, Any]:
        class_type = self.prompt[id_]["class_type"] if id_ else None
        return {"node_id": id_, "node_type": class_type, "executed": self.outcome.executed, "timestamp": _now()}

    def _failed(self, id_: str, error: Exception) -> NodeError:
        node = self.prompt[id_]
        self.emit(
            "execution_error",
            {
                **self._place(id_),
                "exception_message": str(error),
                "exception_type": type(error).__name__,
                "traceback": traceback.format_tb(error.__traceback__),
                "current_inputs": {name: [_brief(value)] for name, value in node["inputs"].items()},
                "current_outputs": [],
            },
        )
        return NodeError(id_, graph.title(node), node["class_type"], error)


def _done(output: Any, cls: type[ComfyNode], count: int) -> Done:
    # In a process that ComfyUI is in as well, the pack's nodes are made of ComfyUI's classes: rely on shapes alone.
    if output is None or isinstance(output, tuple):
        output = NodeOutput(*(output or ()))
    if len(output.args) != count:
        raise TypeError(f"the node returned {len(output.args)} values for its {count} outputs")
    return Done(tuple(output.args), _shown(output.ui, cls))


def _shown(ui: Any, cls: type[ComfyNode]) -> dict[str, Any] | None:
    if not hasattr(ui, "as_dict"):
        return ui
    if isinstance(ui, PreviewImage):
        from .images import save_images

        ui.results = save_images(ui.image, f"preview_{uuid.uuid4().hex[:8]}", FolderType.temp, cls.hidden)
    return ui.as_dict()


def _fingerprint(cls: type[ComfyNode], inputs: Mapping[str, Any]) -> Any:
    if not overrides(cls, "fingerprint_inputs"):
        return None
    try:
        mark = cls.fingerprint_inputs(**graph.constants(inputs))
    except Exception:
        # It will fail again, and be reported, when the node runs.
        return uuid.uuid4().hex
    # NaN is how a node says: always.
    return uuid.uuid4().hex if mark != mark else mark


def _brief(value: Any) -> Any:
    text = json.dumps(value, default=repr)
    return value if len(text) <= 1000 else text[:1000]


def _now() -> int:
    return int(time.time() * 1000)
