"""Fixtures shared by all lanes."""

import importlib
import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# No test asserts a time. CI looks at the same examples each time; everybody else's machine at new ones.
settings.register_profile("velatura", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("velatura")

SHIPPED = Path(__file__).resolve().parent.parent / "demo" / "models" / "sprites"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take more than a minute as well")
    parser.addoption("--beside-table", action="store_true", help="write the table of web/docs/Beside.md from this run")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "beside(outcome): a cell of the table of web/docs/Beside.md")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow lane: run with --slow"))


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model's architecture with seeded random weights, as a diffusers folder."""
    from velatura.demo.architecture import write_random

    folder = tmp_path_factory.mktemp("models") / "random"
    write_random(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def sprites_folder(random_folder: Path) -> Path:
    """The trained demo model where it is shipped, else the random one."""
    return SHIPPED if (SHIPPED / "model_index.json").exists() else random_folder


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """ComfyUI in this process, on the CPU; its folder. It is left on the import path: it imports lazily too.

    Run pytest with the Python of ComfyUI's own environment, after `pip install --no-deps -e .` and
    `pip install diffusers pytest pytest-timeout hypothesis` there:

        COMFYUI_PATH=path/to/ComfyUI path/to/its/python -m pytest tests/comfyui tests/hosts
    """
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip(
            "COMFYUI_PATH is not set to a ComfyUI folder (the fixture in tests/conftest.py says how to run this)"
        )
    if path not in sys.path:
        sys.path.insert(0, path)
    # ComfyUI reads the command line when it is imported, and pytest's is not for it.
    options = importlib.import_module("comfy.options")
    options.enable_args_parsing(False)
    importlib.import_module("comfy.cli_args").args.cpu = True
    try:
        importlib.import_module("comfy.sd")
    except ImportError as error:
        pytest.skip(f"this Python lacks what ComfyUI requires ({error}); use that of ComfyUI's own environment")
    return Path(path)
