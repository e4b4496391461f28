"""ComfyUI in this process, on the CPU.

    COMFYUI_PATH=path/to/ComfyUI path/to/its/python -m pytest tests/comfyui

with `pip install --no-deps -e .` and `pip install diffusers pytest pytest-timeout` in ComfyUI's environment.
"""

import os
import sys
from pathlib import Path

import pytest

HOW = "set COMFYUI_PATH to a ComfyUI folder and run pytest with its Python (see tests/comfyui/conftest.py)"
HERE = Path(__file__).parent
COMFYUI = os.environ.get("COMFYUI_PATH")

if COMFYUI:
    sys.path.insert(0, COMFYUI)
    # Off, or pytest's own arguments would be read as ComfyUI's.
    from comfy import options

    options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not COMFYUI:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=HOW))
