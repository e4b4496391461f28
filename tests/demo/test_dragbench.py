"""DragBench's files: what is read, and what is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from velatura.benchmarks import dragbench
from velatura.demo import release
from velatura.runtime.commands import bench
from velatura.runtime.problems import WorkflowError

META = {"prompt": "a fish", "points": [[4, 5], [9, 5], (2, 2), np.array([3, 3])], "mask": np.zeros((16, 24), np.uint8)}


def sample(folder: Path, meta: object = META, protocol: int | None = None) -> Path:
    folder.mkdir(parents=True)
    Image.fromarray(np.full((16, 24, 3), 90, np.uint8)).save(folder / "original_image.png")
    (folder / "meta_data.pkl").write_bytes(pickle.dumps(meta, protocol))
    return folder


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_sample_is_read(tmp_path, protocol):
    mask = np.zeros((16, 24), np.uint8)
    mask[3:8, 2:12] = 255
    if protocol == 5:
        mask = np.asfortranarray(mask)
    found = dragbench.read_sample(sample(tmp_path / "a", META | {"mask": mask}, protocol))
    assert found.image.shape == (1, 3, 16, 24) and found.prompt == "a fish"
    assert found.handles.tolist() == [[4, 5], [2, 2]] and found.targets.tolist() == [[9, 5], [3, 3]]
    assert int(found.mask.sum()) == 50
    assert dragbench.samples(tmp_path) == [tmp_path / "a"]


class Hostile:
    """What a pickle may do on loading."""

    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize(
    "call", [(os.system, "touch pwned"), (eval, "1"), (getattr, 1, "real"), (__import__, "os"), (np.load, "x")]
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path, call, protocol, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = sample(tmp_path / "a", META | {"prompt": Hostile(*call)}, protocol)
    with pytest.raises(dragbench.DragBenchError, match="was not loaded"):
        dragbench.read_sample(folder)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    ("meta", "says"),
    [
        ({"points": []}, "dict with prompt, points and mask"),
        (META | {"points": [[1, 2]]}, "points: expected handle, target"),
        (META | {"points": [[1, "x"], [2, 3]]}, "not numbers"),
        (META | {"mask": np.zeros((4, 4))}, r"mask: expected the image's \(16, 24\), got \(4, 4\)"),
        (META | {"mask": np.array([[None] * 24] * 16)}, "mask"),
    ],
)
def test_a_wrong_sample_is_named(tmp_path, meta, says):
    with pytest.raises(dragbench.DragBenchError, match=says) as error:
        dragbench.read_sample(sample(tmp_path / "a", meta))
    assert "meta_data.pkl" in str(error.value)


def test_what_is_no_dataset_is_said(tmp_path):
    with pytest.raises(dragbench.DragBenchError, match="no meta_data"):
        dragbench.samples(tmp_path)
    (sample(tmp_path / "a") / "meta_data.pkl").write_bytes(b"\x80\x04garbage")
    with pytest.raises(dragbench.DragBenchError, match="no readable pickle"):
        dragbench.read_sample(tmp_path / "a")
    with pytest.raises(WorkflowError, match="--dragbench"):
        bench("overhead", False, dragbench=str(tmp_path))


def test_a_feature_is_found_where_it_is():
    """On the same picture a handle is matched with itself."""
    from velatura.demo import drag
    from velatura.hosts import load

    model, text, codec = load("diffusers").load_folder(release.MODEL)
    case = drag.cases(1)[0]
    condition = text.encode([case.caption])
    found = dragbench.matched(model, codec, condition, case.picture, case.picture, case.handles.round())
    assert torch.equal(found, case.handles.round())
