"""A sweep driven through a real ComfyUI server, against the same sweep on the runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from velatura.benchmarks import scale
from velatura.core import metrics
from velatura.runtime.problems import WorkflowError
from velatura.runtime.sweep import run as sweeps
from velatura.runtime.sweep.file import SweepError
from velatura.runtime.sweep.measures import decode

from .conftest import Server

pytest.importorskip("pyarrow")


def swept(folder: Path, where: str, tasks: int = 4) -> dict[str, dict[str, Any]]:
    """The rows of a sweep by key; `picture` is the picture itself."""
    folder.mkdir()
    path = scale.write_sweep(folder, where, tasks)
    assert sweeps.run(path)["done"] == tasks
    out = folder / "out"
    return {row["key"]: {**row, "picture": decode((out / row["file"]).read_bytes())} for row in scale.rows(path)}


def test_comfyui_draws_what_the_runtime_does_and_its_pictures_are_judged(server: Server, tmp_path: Path) -> None:
    theirs = swept(tmp_path / "comfyui", f'[servers]\nurls = ["{server.url}"]')
    ours = swept(tmp_path / "here", "[workers]\ncount = 1")
    assert theirs.keys() == ours.keys() and {row["worker"] for row in theirs.values()} == {server.url}
    for key, row in theirs.items():
        assert float(metrics.psnr(row["picture"][None], ours[key]["picture"][None])) >= 40
        assert row["accuracy"] == ours[key]["accuracy"]


def test_what_comfyui_does_not_have_is_said(server: Server, tmp_path: Path) -> None:
    """A choice that the sweep makes, before anything is posted; what the workflow has, in its own words."""
    path = scale.write_sweep(tmp_path, f'[servers]\nurls = ["{server.url}"]', 2)
    text = path.read_text()
    path.write_text(text.replace("[measure.accuracy]", '"VelaturaLcmSample.method" = ["lcn"]\n[measure.accuracy]'))
    with pytest.raises(WorkflowError, match=r"“lcn” is not one of: .* Did you mean “lcm”"):
        sweeps.run(path)
    flow = json.loads(scale.WORKFLOW.read_text())
    next(node for node in flow["nodes"] if node["type"] == "EmptyLatentImage")["widgets_values"][0] = 10**6
    (tmp_path / "flow.json").write_text(json.dumps(flow))
    path.write_text(text.replace(scale.WORKFLOW.as_posix(), "flow.json"))
    with pytest.raises(SweepError, match=r"2 tasks are left .*EmptyLatentImage \(node 3\): Value 1000000 bigg"):
        sweeps.run(path)
