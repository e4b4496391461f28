"""A real ComfyUI server with the pack in it: a process of its own, with folders of its own, one for the session.

COMFYUI_PATH=path/to/ComfyUI COMFYUI_PYTHON=path/to/its/python python -m pytest tests/comfyui
"""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file

from velatura import hosts

from . import beside, matrix

COMFYUI = os.environ.get("COMFYUI_PATH")
PYTHON = os.environ.get("COMFYUI_PYTHON", sys.executable)
ROOT = Path(__file__).resolve().parents[2]
NAME = "velatura-pack"
"""What the folder in custom_nodes is called: users' names have dashes, so nothing may import the pack by name."""

PROBE = '''
"""Finds code of the pack's where it does not belong: in any module that is not the pack's. And loads any folder by the
pack's own way, for models that are not shipped."""
import sys
import types
from aiohttp import web
from server import PromptServer


class ProbeFolder:
    CATEGORY, FUNCTION, RETURN_TYPES = "probe", "load", ("MODEL", "CLIP", "VAE")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"folder": ("STRING", {})}}

    def load(self, folder):
        import nodes
        pack = sys.modules[nodes.NODE_CLASS_MAPPINGS["VelaturaDemoModel"].__module__]
        return pack.host().load_folder(folder)


NODE_CLASS_MAPPINGS = {"ProbeFolder": ProbeFolder}


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

    def pictures(self, prompt: dict[str, Any]) -> list[Path]:
        """The files of a prompt that must run to its end, in the order of its nodes."""
        history = self.run(prompt)
        assert history["status"]["status_str"] == "success", history["status"]
        outputs = [history["outputs"].get(node, {}) for node in prompt]
        images = [image for output in outputs for image in output.get("images", [])]
        return [self.base / image["type"] / image["subfolder"] / image["filename"] for image in images]


def wait_for(ask: Any, log: Path, complaint: str) -> Any:
    for _ in range(1200):
        if answer := ask():
            return answer
        time.sleep(0.25)
    pytest.fail(f"{complaint}:\n{log.read_text()[-4000:]}")


@pytest.fixture(scope="session")
def pack(tmp_path_factory: pytest.TempPathFactory, sprites_folder: Path) -> Path:
    """The pack as a user has it, with a model to load, in the custom_nodes of a new ComfyUI base folder."""
    target = tmp_path_factory.mktemp("base") / "custom_nodes" / NAME
    unwanted = ("*.egg-info", "__pycache__", "node_modules", "tests", "output", "runs", "models", "build")
    hidden = shutil.ignore_patterns(".*", *unwanted)
    shutil.copytree(ROOT, target, ignore=hidden)
    models = target / "demo" / "models"
    models.mkdir()
    (models / "sprites").symlink_to(sprites_folder)
    for name, write in ((LCM_FILE, write_lcm), (SMOOTH_FILE, write_smooth)):
        shipped = ROOT / "demo" / "models" / name
        if shipped.exists():
            (models / name).symlink_to(shipped)
        else:
            write(models / name)
    for name in (SEMANTIC_FILE, SUPERRES_FILE):
        (models / name).symlink_to(ROOT / "demo" / "models" / name)
    return target


LCM_FILE = "sprites-lcm.safetensors"
SMOOTH_FILE = "sprites-smooth.safetensors"
SEMANTIC_FILE, SUPERRES_FILE = "sprites-semantic.safetensors", "sprites-superres.safetensors"
LAYER = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


def write_lcm(path: Path, size: float = 0.02) -> None:
    """A file of the same layout as the shipped few-step model's, with small seeded numbers in it."""
    generator = torch.Generator().manual_seed(4)
    tensors = {
        **lora_of(LAYER, size, generator),
        "time_embedding.cond_proj.weight": size * torch.randn(96, 256, generator=generator),
    }
    save_file(tensors, path, {"velatura_guidance": "omega"})


def write_smooth(path: Path, size: float = 0.02) -> None:
    """The same for the shipped Smooth-LoRA."""
    save_file(lora_of(LAYER, size, torch.Generator().manual_seed(5)), path)


def lora_of(layer: str, size: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        f"{layer}.lora_down.weight": torch.randn(4, 160, generator=generator),
        f"{layer}.lora_up.weight": size * torch.randn(160, 4, generator=generator),
        f"{layer}.alpha": torch.tensor(4.0),
    }


@pytest.fixture(scope="session")
def server(pack: Path) -> Iterator[Server]:
    with serving(pack, "log.txt") as running:
        yield running


@contextmanager
def serving(pack: Path, name: str, *options: str) -> Iterator[Server]:
    """A server on the pack's base folder, with more options of its command line; its log there under `name`."""
    if not COMFYUI:
        pytest.skip("COMFYUI_PATH is not set to a ComfyUI folder (see the head of tests/comfyui/conftest.py)")
    base = pack.parent.parent
    (pack.parent / "probe").mkdir(exist_ok=True)
    (pack.parent / "probe" / "__init__.py").write_text(PROBE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = base / name
    command = [PYTHON, "main.py", "--cpu", "--port", str(port), "--base-directory", str(base), "--disable-auto-launch"]
    command += options
    database = f"sqlite:///{log.with_suffix('.db')}"
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


RECORD = ROOT / "runs" / "beside.json"
"""The tests behind the table that have passed, over several runs: all of them together take a while."""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    cells = [each for mark in item.iter_markers("beside") for each in mark.args]
    if cells and report.when == "call" and item.config.getoption("--beside-table"):
        shown = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        shown.pop(item.nodeid, None)
        RECORD.parent.mkdir(exist_ok=True)
        RECORD.write_text(json.dumps(shown | ({item.nodeid: cells} if report.passed else {})))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not config.getoption("--beside-table"):
        return
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    shown = {tuple(each[:3]) for cells in record.values() for each in cells}  # but for the remark
    missing = sorted({tuple(each[:3]) for each in matrix.declared()} - shown)
    if missing:
        said = f"{len(missing)} cells are not shown yet, {missing[0]} first"
        terminalreporter.write_line(f"web/docs/Beside.md is not written: {said}")
    else:
        matrix.PAGE.write_text(matrix.page(matrix.PAGE.read_text(encoding="utf-8")), encoding="utf-8")


@pytest.fixture
def executor() -> Iterator[None]:
    """ComfyUI's executor runs nodes in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def host(comfyui: Path) -> Iterator[Any]:
    """ComfyUI, in this process, as the nodes' host."""
    before, hosts._chosen = hosts._chosen, hosts.load("comfyui")
    yield hosts._chosen
    hosts._chosen = before


@pytest.fixture(scope="module")
def plain(host: Any) -> Any:
    """A small MODEL of random weights."""
    with torch.inference_mode():
        return beside.network()


@pytest.fixture(scope="module")
def vae(host: Any, random_folder: Path) -> Any:
    with torch.inference_mode():
        return host.load_folder(random_folder)[2]


@pytest.fixture
def folders(comfyui: Path, tmp_path: Path) -> Iterator[None]:
    """New files go to a folder of the test's."""
    import folder_paths  # pyright: ignore[reportMissingImports]

    paths, _ = folder_paths.folder_names_and_paths["loras"]
    before, output = list(paths), folder_paths.get_output_directory()
    paths.insert(0, str(tmp_path))
    folder_paths.set_output_directory(str(tmp_path))
    yield
    paths[:] = before
    folder_paths.set_output_directory(output)
