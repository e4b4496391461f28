"""The pack in a real ComfyUI server."""

# pyright: reportMissingImports=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from velatura.runtime import workflow

from .conftest import COMFYUI, NAME, ROOT, Server, velatura

EXAMPLES = ("text_to_image", "lcm_four_steps", "lcm_image_to_image", "drag_fast")


@pytest.fixture(scope="module", params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> Path:
    """A workflow file that the pack comes with."""
    return ROOT / "example_workflows" / f"{request.param}.json"


@pytest.fixture(scope="module")
def prompt(server: Server, example: Path) -> dict[str, Any]:
    """The example as the browser would post it."""
    loaded = workflow.load(example, server.get("object_info"))
    assert loaded.problems == []
    return loaded.prompt


@pytest.fixture(scope="module")
def pictures(server: Server, prompt: dict[str, Any]) -> list[Path]:
    """What ComfyUI makes of the example."""
    return server.pictures(prompt)


def test_the_pack_loads_without_a_word(server: Server) -> None:
    started, _, _ = server.log.read_text().partition("To see the GUI")
    about = [line for line in started.splitlines() if "velatura" in line.lower()]
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


def test_the_example_makes_the_same_pictures_in_both_hosts(
    server: Server, pack: Path, example: Path, pictures: list[Path]
) -> None:
    files = velatura(pack, "run", str(example), "--out", str(server.base / "runtime"))["files"]
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
