"""Everything in this folder needs ComfyUI; the `comfyui` fixture in tests/conftest.py says how to run it."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def in_comfyui(comfyui: Path) -> Path:
    """ComfyUI's folder; the tests are skipped where there is none."""
    return comfyui
