"""The command line. Only what parses it is imported here; each command brings its own when it runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. 0: done; 1: a fault of ours; 2: something to mend in the input; 130: cancelled."""
    arguments = parser().parse_args(argv)
    try:
        result = arguments.command(arguments)
        if arguments.json:
            say(json.dumps(result))
        return 0
    except KeyboardInterrupt:
        say("Cancelled.", sys.stderr)
        return 130
    except Exception as error:
        return _report(error, arguments.json)


def say(text: str, stream: Any = None) -> None:
    """One line for the user."""
    (stream or sys.stdout).write(text + "\n")
    (stream or sys.stdout).flush()


def _report(error: Exception, as_json: bool) -> int:
    from .problems import WorkflowError

    # A node's own ValueError or OSError says what is wrong with its inputs or files; anything else is a bug in it.
    cause = error.__cause__ if type(error).__name__ == "NodeError" else error
    mendable = isinstance(cause, (ValueError, OSError))
    if not mendable or os.environ.get("VELATURA_TRACEBACK"):
        traceback.print_exception(error)
    if as_json:
        problems = [vars(each) for each in error.problems] if isinstance(error, WorkflowError) else []
        say(json.dumps({"error": str(error), "problems": problems}))
    if isinstance(error, WorkflowError) and len(error.problems) > 1:
        lines = "\n".join(f"  - {each}" for each in error.problems)
        say(f"velatura: the workflow has {len(error.problems)} problems:\n{lines}", sys.stderr)
    else:
        say(f"velatura: {error}", sys.stderr)
    return 2 if mendable else 1


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    about, debug = (
        "Run, measure and train Velatura without ComfyUI.",
        "VELATURA_TRACEBACK=1 shows where an error arose.",
    )
    top = argparse.ArgumentParser(prog="velatura", description=about, epilog=debug)
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser("run", help="run a workflow", description="Run a workflow and print the files it saved.")
    run.add_argument(
        "file", metavar="FILE", help="a workflow: .json in either of ComfyUI's formats, or a .png that has one"
    )
    change = "change an input first; NODE is an id, a title or a class (may be repeated)"
    run.add_argument("--set", dest="settings", metavar="NODE.INPUT=VALUE", action="append", default=[], help=change)
    run.add_argument("--out", metavar="DIR", default="output", help="where saved files go (default: output)")
    run.add_argument("--input", metavar="DIR", default="input", help="where Load Image looks (default: input)")
    run.set_defaults(command=_run)

    _add_serve(commands)

    nodes = commands.add_parser("nodes", help="list the nodes, or describe one")
    nodes.add_argument("node", metavar="NODE", nargs="?", help="a node's id")
    nodes.set_defaults(command=_nodes)

    bench = commands.add_parser("bench", help="measure something and print the figures")
    bench.add_argument("name", metavar="NAME", help="a module of benchmarks/")
    bench.add_argument("--dragbench", metavar="DIR", help="drag: run the unpacked DragBench dataset instead")
    bench.add_argument("--model", metavar="FILE", help="drag: the checkpoint for it, a .safetensors file or a folder")
    bench.set_defaults(command=_bench)

    train = commands.add_parser("train", help="make one of the shipped models again")
    train.add_argument("recipe", metavar="RECIPE", help="a recipe's name, or a recipe file")
    train.add_argument("--out", metavar="DIR", help="where the run lives, and goes on (default: runs/RECIPE)")
    train.set_defaults(command=_train)

    sweep = _add_sweep(commands)

    for each in (run, nodes, bench, train, sweep):
        each.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    return top


def _add_sweep(commands: Any) -> argparse.ArgumentParser:
    sweep = commands.add_parser(
        "sweep",
        help="render and measure many settings of a workflow",
        description="Do what is left of a sweep file: many prompts, seeds and settings of one workflow, by processes "
        "here, on a Ray cluster or by ComfyUI servers, into one table. Stopped, the same command goes on.",
    )
    sweep.add_argument("file", metavar="SWEEP.toml", help="what varies, what is measured, and where it runs")
    sweep.add_argument("--out", metavar="DIR", help="where the table and the pictures go (default: what the file says)")
    sweep.add_argument("--plan", action="store_true", help="say what there is to do, and do nothing")
    sweep.set_defaults(command=_sweep)
    return sweep


def _sweep(arguments: argparse.Namespace) -> dict[str, Any]:
    from .commands import sweep

    return sweep(arguments.file, arguments.out, arguments.plan, show=not arguments.json)


def _add_serve(commands: Any) -> None:
    serve = commands.add_parser(
        "serve",
        help="open the graph in the browser",
        description="Serve ComfyUI's frontend and API on this runtime, until Ctrl+C.",
    )
    serve.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine alone)")
    serve.add_argument("--port", type=int, default=8188, help="the port; 0 takes a free one (default: 8188)")
    serve.add_argument("--user-dir", metavar="DIR", help="where workflows and settings live (default: the data folder)")
    serve.add_argument("--out", metavar="DIR", default="output", help="where saved files go (default: output)")
    serve.add_argument("--input", metavar="DIR", default="input", help="where uploads go (default: input)")
    name = "a further name under which browsers may reach it, behind a proxy for one (may be repeated)"
    serve.add_argument("--allow-host", metavar="NAME", action="append", default=[], help=name)
    serve.add_argument("--open", action="store_true", help="open a browser")
    serve.set_defaults(command=_serve, json=False)


def _serve(arguments: argparse.Namespace) -> dict[str, Any]:
    from .commands import serve

    folders = {"out": arguments.out, "input_": arguments.input, "user": arguments.user_dir}
    names = tuple(arguments.allow_host)
    return serve(arguments.host, arguments.port, **folders, names=names, show_page=arguments.open)


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    from .commands import run

    return run(arguments.file, arguments.settings, arguments.out, arguments.input, show=not arguments.json)


def _nodes(arguments: argparse.Namespace) -> dict[str, Any]:
    from .commands import nodes

    return nodes(arguments.node, show=not arguments.json)


def _bench(arguments: argparse.Namespace) -> dict[str, Any]:
    from .commands import bench

    named = {"dragbench": arguments.dragbench, "model": arguments.model}
    options = {name: value for name, value in named.items() if value is not None}
    return bench(arguments.name, show=not arguments.json, **options)


def _train(arguments: argparse.Namespace) -> dict[str, Any]:
    from .commands import train

    return train(arguments.recipe, arguments.out, show=not arguments.json)
