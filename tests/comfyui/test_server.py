"""The pack in a real ComfyUI server: a process of its own, with folders of its own.

COMFYUI_PATH=path/to/ComfyUI COMFYUI_PYTHON=path/to/its/python python -m pytest tests/comfyui/test_server.py
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from velatura.runtime import workflow

COMFYUI = os.environ.get("COMFYUI_PATH")
PYTHON = os.environ.get("COMFYUI_PYTHON", sys.executable)
ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "example_workflows" / "text_to_image.json"
NAME = "velatura-pack"
"""What the folder in custom_nodes is called: users' names have dashes, so nothing may import the pack by name."""

pytestmark = pytest.mark.skipif(
    not COMFYUI, reason="COMFYUI_PATH is not set to a ComfyUI folder (see the head of tests/comfyui/test_server.py)"
)

PROBE = '''
"""Finds code of the pack's where it does not belong: in any module that is not the pack's."""
import sys
import types
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}


def ours(value, root):
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    # Nothing else is asked for its attributes: some modules hold objects that answer by starting CUDA.
    return isinstance(value, types.FunctionType) and value.__code__.co_filename.startswith(root)


def intruders(root):
    for name, module in list(sys.modules.items()):
        if module is None or (getattr(module, "__file__", None) or "").startswith(root):
            continue
        for key, value in list(vars(module).items()):
            if ours(value, root):
                yield f"{name}.{key}"
            if isinstance(value, type) and value.__module__ == name:
                yield from (f"{name}.{key}.{part}" for part, each in list(vars(value).items()) if ours(each, root))


@PromptServer.instance.routes.get("/probe")
async def probe(request):
    return web.json_response({"intruders": sorted(intruders(request.query["root"])), "modules": sorted(sys.modules)})
'''


class Server(NamedTuple):
    url: str
    base: Path
    pack: Path
    log: Path

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=60) as reply:
            return json.load(reply)

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """The history of a prompt that has run to its end."""
        body = json.dumps({"prompt": prompt}).encode()
        request = urllib.request.Request(f"{self.url}/prompt", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                id_ = json.load(reply)["prompt_id"]
        except urllib.error.HTTPError as error:
            pytest.fail(f"ComfyUI refused the prompt: {error.read().decode()}")
        return wait_for(lambda: self.get(f"history/{id_}").get(id_), self.log, "the prompt did not finish")


def wait_for(ask: Any, log: Path, complaint: str) -> Any:
    for _ in range(1200):
        if answer := ask():
            return answer
        time.sleep(0.25)
    pytest.fail(f"{complaint}:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory, sprites_folder: Path) -> Path:
    """The pack as a user has it, with a model to load, in the custom_nodes of a new ComfyUI base folder."""
    target = tmp_path_factory.mktemp("base") / "custom_nodes" / NAME
    unwanted = ("*.egg-info", "__pycache__", "node_modules", "tests", "output", "runs", "models", "build")
    hidden = shutil.ignore_patterns(".*", *unwanted)
    shutil.copytree(ROOT, target, ignore=hidden)
    models = target / "demo" / "models"
    models.mkdir()
    (models / "sprites").symlink_to(sprites_folder)
    return target


@pytest.fixture(scope="module")
def server(pack: Path) -> Iterator[Server]:
    base = pack.parent.parent
    (pack.parent / "probe").mkdir()
    (pack.parent / "probe" / "__init__.py").write_text(PROBE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = base / "log.txt"
    command = [PYTHON, "main.py", "--cpu", "--port", str(port), "--base-directory", str(base), "--disable-auto-launch"]
    database = f"sqlite:///{base / 'comfyui.db'}"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, "--database-url", database], cwd=COMFYUI, stdout=stream, stderr=subprocess.STDOUT
        )
    running = Server(f"http://127.0.0.1:{port}", base, pack, log)

    def answers() -> bool:
        if process.poll() is not None:
            pytest.fail(f"ComfyUI ended while it started:\n{log.read_text()[-4000:]}")
        try:
            return bool(running.get("system_stats"))
        except OSError:
            return False

    try:
        wait_for(answers, log, "ComfyUI did not start")
        yield running
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture(scope="module")
def prompt(server: Server) -> dict[str, Any]:
    """The example as the browser would post it."""
    loaded = workflow.load(EXAMPLE, server.get("object_info"))
    assert loaded.problems == []
    return loaded.prompt


@pytest.fixture(scope="module")
def pictures(server: Server, prompt: dict[str, Any]) -> list[Path]:
    """What ComfyUI makes of the example."""
    history = server.run(prompt)
    assert history["status"]["status_str"] == "success", history["status"]
    images = [image for output in history["outputs"].values() for image in output.get("images", [])]
    return [server.base / image["type"] / image["subfolder"] / image["filename"] for image in images]


def velatura(pack: Path, *arguments: str) -> Any:
    """The pack's own runtime, in a process where ComfyUI is not, on the same copy of the pack."""
    library = pack.parent.parent / "library"
    library.mkdir(exist_ok=True)
    if not (library / "velatura").exists():
        (library / "velatura").symlink_to(pack)
    done = subprocess.run(
        [sys.executable, "-m", "velatura.runtime", *arguments, "--json"],
        cwd=library.parent,
        env={**os.environ, "PYTHONPATH": str(library)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_the_pack_loads_without_a_word(server: Server) -> None:
    about = [line for line in server.log.read_text().splitlines() if "velatura" in line.lower()]
    # Its line in the table of import times, which says so if the import failed.
    (line,) = about
    assert line.endswith(f"custom_nodes/{NAME}")
    assert "FAILED" not in line


def test_both_hosts_describe_the_same_nodes(server: Server, pack: Path) -> None:
    theirs = {id_: info for id_, info in server.get("object_info").items() if id_.startswith("Velatura")}
    ours = {id_: info for id_, info in velatura(pack, "nodes").items() if id_.startswith("Velatura")}
    assert list(theirs) == list(ours)
    for id_, info in theirs.items():
        assert info.pop("python_module") == f"custom_nodes.{NAME}"
        ours[id_].pop("python_module")
        assert info == ours[id_]


def test_the_example_makes_the_same_pictures_in_both_hosts(server: Server, pack: Path, pictures: list[Path]) -> None:
    files = velatura(pack, "run", str(EXAMPLE), "--out", str(server.base / "runtime"))["files"]
    for file, picture in zip(files, pictures, strict=True):
        ours, theirs = (np.asarray(Image.open(path).convert("RGB"), dtype=np.float64) for path in (file, picture))
        assert ours.shape == theirs.shape
        assert theirs.std() > 1  # of 255
        error = np.square(ours - theirs).mean()
        assert error == 0 or 10 * np.log10(255**2 / error) >= 40


def test_a_picture_carries_the_graph(server: Server, pictures: list[Path], prompt: dict[str, Any]) -> None:
    assert workflow.load(pictures[0], server.get("object_info")).prompt == prompt


@pytest.mark.usefixtures("pictures")
def test_nothing_of_the_host_is_replaced_after_a_run(server: Server) -> None:
    found = server.get(f"probe?root={server.pack}")
    assert found["intruders"] == []
    # The probe does see functions away from home: ComfyUI's attention is imported in many places.
    assert server.get(f"probe?root={COMFYUI}/comfy/ldm/modules/attention.py")["intruders"]
    loaded = set(found["modules"])
    assert "velatura" not in loaded  # by its folder, not by name
    assert not loaded & {"diffusers", "matplotlib", "accelerate"}
