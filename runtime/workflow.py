"""Workflow files in every form people share: as ComfyUI saves them, in the API form, or inside a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import ui_format
from .problems import Problem, WorkflowError
from .widgets import Schema


@dataclass(frozen=True)
class Workflow:
    """`prompt` is the API graph, `document` the saved form if there is one, `problems` what is broken in the file."""

    prompt: dict[str, Any]
    document: dict[str, Any] | None = None
    problems: list[Problem] = field(default_factory=list)


def load(path: str | os.PathLike[str], schemas: Mapping[str, Schema]) -> Workflow:
    """Read a .json file, or a .png that carries its workflow. WorkflowError if it cannot be understood at all."""
    path = Path(path)
    if not path.is_file():
        raise WorkflowError(f"there is no workflow file {path}")
    if path.suffix.lower() == ".png":
        return _from_picture(path, schemas)
    try:
        return parse(_decode(path.read_bytes().decode("utf-8-sig"), str(path)), schemas)
    except UnicodeDecodeError as error:
        raise WorkflowError(
            f"{path} is not a workflow: it is not text (a workflow is a .json file, or a .png)"
        ) from error


def parse(document: Any, schemas: Mapping[str, Schema]) -> Workflow:
    """A decoded workflow of either format."""
    if not isinstance(document, dict):
        raise WorkflowError(
            "a workflow is a JSON object, with “nodes” (as ComfyUI saves it) or with node ids (the API form)"
        )
    if "nodes" in document:
        try:
            prompt, problems = ui_format.to_prompt(document, schemas)
        except WorkflowError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # Any part may be missing, or of another shape, in a file that was edited by hand.
            raise WorkflowError(f"the workflow is damaged: its structure is not ComfyUI's ({error!r})") from error
        return Workflow(prompt, document, problems)
    # What is posted to a server holds the graph under “prompt”.
    inner = document.get("prompt")
    return Workflow(_api(inner if isinstance(inner, dict) and "class_type" not in inner else document))


def _from_picture(path: Path, schemas: Mapping[str, Schema]) -> Workflow:
    from .images import read_chunks

    try:
        chunks = read_chunks(path)
    except ValueError as error:
        raise WorkflowError(str(error)) from error
    saved = _decode(chunks["workflow"], f"the workflow in {path}") if "workflow" in chunks else None
    if "prompt" in chunks:
        # What ran, to the last digit: the saved form may have gone on to the next seed.
        return Workflow(_api(_decode(chunks["prompt"], f"the graph in {path}")), saved)
    if saved is None:
        raise WorkflowError(
            f"{path} carries no workflow: it was not saved by ComfyUI or Velatura, or something removed it"
        )
    return parse(saved, schemas)


def _decode(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        message = f"{name} is not valid JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        raise WorkflowError(message) from error
    except RecursionError as error:
        raise WorkflowError(f"{name} is nested too deeply to be a workflow") from error


def _api(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict) or not document:
        raise WorkflowError("the workflow is empty: it has no nodes")
    prompt = {}
    for id_, node in document.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise WorkflowError(f"entry “{id_}” of the workflow is not a node: it has no “class_type”")
        inputs = node.get("inputs", {})
        if not isinstance(inputs, dict):
            raise WorkflowError(f"node “{id_}” of the workflow is damaged: its inputs are not an object")
        meta = node.get("_meta")
        title = meta.get("title") if isinstance(meta, dict) else None
        meta = {"title": str(title or node["class_type"])}
        prompt[str(id_)] = {"class_type": node["class_type"], "inputs": dict(inputs), "_meta": meta}
    return prompt
