"""The house rules that can be read off the source. A failure means a room reaches into one it must not know."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_USE = {
    "core": set(),
    "training": {"core"},
    "hosts": {"core"},
    "nodes": {"hosts", "training", "core"},
    "demo": {"training", "hosts", "core"},
    "runtime": {"core", "training", "hosts", "nodes", "demo", "benchmarks"},
    "benchmarks": {"core", "training", "hosts", "nodes", "demo", "runtime"},
}
# Who may import a library that not every user has, or that is slow to import.
# The benchmark's half that runs inside ComfyUI is a script of its own, not a module of the pack; the one that measures
# diffusers' samplers beside ours has to run them.
GUARDED = {
    "comfy": ("hosts/comfyui", "benchmarks/_comfyui.py"),
    "comfy_extras": ("hosts/comfyui",),
    "diffusers": ("hosts/diffusers", "benchmarks/_diffusers.py"),
    "transformers": ("hosts/diffusers",),
}
SOURCES = [path for room in MAY_USE for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> list[tuple[int, str]]:
    """(level, dotted name) of every import in a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, name) for name in names]
        elif isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_arrows(path: Path) -> None:
    inside = path.relative_to(ROOT).with_suffix("").parts
    room = inside[0]
    for level, name in imports(path):
        top = name.split(".")[0]
        if level:
            target = (*inside[: len(inside) - level], *name.split("."))[0]
            assert target == room or target in MAY_USE[room], f"{room} must not import {target}"
        else:
            assert top not in ("velatura", *MAY_USE), f"inside the pack imports are relative: {name}"
            allowed = GUARDED.get(top)
            assert allowed is None or path.relative_to(ROOT).as_posix().startswith(allowed), (
                f"only {allowed} imports {top}"
            )


def test_importing_the_pack_brings_in_nothing_heavy() -> None:
    # What ComfyUI does at its start: import the package and ask for its nodes.
    code = (
        "import asyncio, sys, velatura\n"
        "nodes = asyncio.run(asyncio.run(velatura.comfy_entrypoint()).get_node_list())\n"
        "assert nodes\n"
        "print(*[m for m in ('diffusers', 'transformers', 'matplotlib', 'scipy', 'accelerate') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == []
