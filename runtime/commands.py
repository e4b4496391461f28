"""What the commands do. Each returns what `--json` prints, and with `show` prints it for people itself."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import pkgutil
import tempfile
import threading
import time
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..hosts.folders import Folders, using
from . import bars, widgets
from .cli import say
from .problems import WorkflowError, did_you_mean

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
RESULTS = BENCHMARKS / "results"


def run(file: str, settings: list[str], out: str, input_: str, show: bool) -> dict[str, Any]:
    """Run a workflow file. The files that it saved are named in `files`."""
    from . import registry, validate, workflow  # fmt: skip
    from . import settings as set_
    from .executor import Executor

    folders = Folders(input=Path(input_), output=Path(out))
    with using(folders):
        nodes = registry.all_nodes()
        schemas = registry.object_info(nodes)
        loaded = workflow.load(file, schemas)
        set_.apply(loaded, schemas, settings)
        prompt = validate.check(loaded.prompt, nodes, schemas, loaded.problems)
    _writable(folders.output)
    shown = bars.Bars(prompt) if show else None
    started = time.perf_counter()
    extra = {"workflow": loaded.document} if loaded.document is not None else {}
    try:
        outcome = Executor(nodes, folders).run(prompt, events=shown or _silent, extra_pnginfo=extra)
    finally:
        if shown is not None:
            shown.close()
    files = _saved(outcome.shown, folders)
    if show:
        for each in files:
            say(each)
    return {
        "seconds": round(time.perf_counter() - started, 3),
        "executed": outcome.executed,
        "outputs": outcome.shown,
        "files": files,
    }


def serve(
    host: str, port: int, *, out: str, input_: str, user: str | None, names: tuple[str, ...], show_page: bool
) -> dict[str, Any]:
    """Serve the frontend and its API until the user stops it. The temporary folder lives as long."""
    try:
        from .server.config import Config, data_folder
        from .server.serve import serve as run_server
    except ModuleNotFoundError as error:
        if error.name != "aiohttp":
            raise
        raise OSError('serving needs two packages more: pip install -e ".[serve]" in the pack') from error

    def ready(address: str) -> None:
        say(f"Velatura is at {address} (Ctrl+C stops it)")
        if show_page:
            # Some browsers, those of a terminal, only return when they are closed.
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    if not 0 <= port < 2**16:
        raise ValueError(f"--port: expected a number from 0 to 65535, got {port}")
    with tempfile.TemporaryDirectory(prefix="velatura-", ignore_cleanup_errors=True) as temp:
        folders = Folders(input=Path(input_), output=Path(out), temp=Path(temp))
        _writable(folders.output)
        run_server(Config(host, port, Path(user) if user else data_folder(), folders, names), ready)
    return {}


def _silent(name: str, data: dict[str, Any]) -> None:
    pass


def _writable(folder: Path) -> None:
    # Found out now rather than after the sampling; nothing is made before there is something to put in it.
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "may not be written to" if there.is_dir() else "is a file"
        raise OSError(f"the output folder {folder} cannot be used: {there} {reason}; choose another with --out")


def _saved(shown: Mapping[str, Mapping[str, Any]], folders: Folders) -> list[str]:
    items = [item for output in shown.values() for kind in output.values() for item in kind]
    files = [item for item in items if isinstance(item, dict) and item.get("type") == "output"]
    return [str(folders.output / item["subfolder"] / item["filename"]) for item in files]


def nodes(name: str | None, show: bool) -> dict[str, Any]:
    """All schemas, or one, as `/object_info` gives them."""
    from . import registry

    schemas = registry.object_info(registry.all_nodes())
    if name is None:
        if show:
            _list(schemas)
        return schemas
    if name not in schemas:
        raise WorkflowError(f"there is no node “{name}”.{did_you_mean(name, schemas)} `velatura nodes` lists them.")
    if show:
        _describe(schemas[name])
    return {name: schemas[name]}


def _list(schemas: Mapping[str, widgets.Schema]) -> None:
    width = max(map(len, schemas))
    for category in sorted({info["category"] for info in schemas.values()}):
        say(f"{category}")
        for id_, info in sorted(schemas.items()):
            if info["category"] == category:
                say(f"  {id_:<{width}}  {info['display_name'] or id_}")


def _describe(info: widgets.Schema) -> None:
    say(f"{info['display_name'] or info['name']} ({info['name']}), in {info['category']}")
    if info["description"]:
        say(info["description"])
    for name, type_, options, required in widgets.sockets(info):
        say(f"  input  {name}: {_terms(type_, options, required)}")
        if options.get("tooltip"):
            say(f"         {options['tooltip']}")
    for name, type_, tip in zip(info["output_name"], info["output"], info["output_tooltips"], strict=True):
        say(f"  output {name}: {type_}")
        if tip:
            say(f"         {tip}")


def _terms(type_: Any, options: Mapping[str, Any], required: bool) -> str:
    offered = widgets.choices(type_, options)
    terms = ["one of " + ", ".join(map(str, offered)) if offered is not None else str(type_)]
    if options.get("min") is not None and options.get("max") is not None:
        terms.append(f"{options['min']} to {options['max']}")
    if options.get("default") not in (None, ""):
        terms.append(f"default {options['default']}")
    return ", ".join(terms if required else [*terms, "optional"])


def bench(name: str, show: bool, **options: Any) -> dict[str, Any]:
    """Run benchmarks/NAME.py and keep its figures in benchmarks/results/NAME.json. What is given as `options` is told
    to it, if it takes that."""
    from ..hosts.files import whole_file

    known = [each.name for each in pkgutil.iter_modules([str(BENCHMARKS)]) if not each.name.startswith("_")]
    module = importlib.import_module(f"...benchmarks.{name}", __name__) if name in known else None
    if module is None or not hasattr(module, "run"):
        raise WorkflowError(f"there is no benchmark “{name}”.{did_you_mean(name, known)}")
    taken = inspect.signature(module.run).parameters
    for option in options:
        if option not in taken:
            raise WorkflowError(f"--{option}: the benchmark “{name}” takes no such thing")
    with bars.reporting(name) as progress:
        figures = module.run(progress, **options)
    with whole_file(RESULTS / f"{name}.json") as stream:
        stream.write(json.dumps(figures, indent=2).encode() + b"\n")
    if show:
        _table(figures)
    return figures


def train(recipe: str, out: str | None, show: bool) -> dict[str, Any]:
    """Run one of the demo world's recipes. Its run lives in `out`, runs/RECIPE by default, and goes on where it was."""
    from ..core.protocols import no_progress
    from ..demo import recipes

    first = os.environ.get("RANK", "0") == "0"  # of several processes, as their launcher numbers them
    with bars.reporting(recipe) if first else contextlib.nullcontext(no_progress) as progress:
        figures = recipes.run(recipe, progress=progress, folder=out)
    if show and first:
        _table(figures)
    return figures


def sweep(file: str, out: str | None, plan_only: bool, show: bool) -> dict[str, Any]:
    """Do what is left of a sweep file, or say what that is."""
    from .sweep.run import run as run_sweep

    with bars.reporting("sweep") as progress:
        figures = run_sweep(file, out=out, progress=progress, told=bars.note, plan_only=plan_only)
    if show:
        _table(figures)
    return figures


def _table(figures: Mapping[str, Any]) -> None:
    width = max(map(len, figures), default=0)
    for key, value in figures.items():
        say(f"{key:<{width}}  {f'{value:.4g}' if isinstance(value, float) else value}")
