"""Pictures on disk: what ComfyUI finds in them, and that none is ever there in half."""

import json
import os

import pytest
import torch
from PIL import Image

from velatura.hosts import files
from velatura.hosts.folders import Folders, folders, using
from velatura.hosts.schema import FolderType, HiddenHolder
from velatura.runtime import images, workflow
from velatura.runtime.problems import WorkflowError

SAVED = {"nodes": [{"id": 1, "type": "Show", "inputs": []}], "links": [], "version": 0.4}
PROMPT = {"1": {"class_type": "Number", "inputs": {"value": 5}}, "2": {"class_type": "Show", "inputs": {}}}
HIDDEN = HiddenHolder(prompt=PROMPT, extra_pnginfo={"workflow": SAVED, "wörter": "ünïcode ✓"})


@pytest.fixture
def out(tmp_path):
    with using(Folders(output=tmp_path / "out", temp=tmp_path / "temp")) as chosen:
        yield chosen.output


def test_a_picture_carries_its_graph_as_comfyuis_do(out, small):
    """Two text chunks of JSON, “prompt” and “workflow”: what ComfyUI's browser reads from a dropped picture."""
    (result,) = images.save_images(torch.rand(1, 8, 6, 3), "sub/pic", hidden=HIDDEN)
    assert result == {"filename": "pic_00001_.png", "subfolder": "sub", "type": "output"}
    path = out / "sub" / "pic_00001_.png"
    with Image.open(path) as picture:
        assert picture.size == (6, 8) and picture.mode == "RGB"
        assert json.loads(picture.info["prompt"]) == PROMPT
        assert json.loads(picture.info["workflow"]) == SAVED
        assert json.loads(picture.info["wörter"]) == "ünïcode ✓"
    read = workflow.load(path, small.schemas)
    assert read.prompt["1"]["inputs"] == {"value": 5} and read.document == SAVED


def test_values_are_cut_to_bytes_as_comfyui_cuts_them(out):
    """The same latent must give the same bytes in both hosts."""
    values = torch.tensor([-0.5, 0.0, 0.5, 0.999, 1.0, 2.0]).view(1, 1, 6, 1).expand(1, 1, 6, 3)
    images.save_images(values, "pic")
    with Image.open(out / "pic_00001_.png") as picture:
        assert [picture.getpixel((x, 0))[0] for x in range(6)] == [0, 0, 127, 254, 255, 255]


def test_transparency_is_kept(out):
    images.save_images(torch.rand(1, 4, 4, 4), "pic")
    with Image.open(out / "pic_00001_.png") as picture:
        assert picture.mode == "RGBA"


def test_numbers_count_on_from_what_is_there(out):
    first = images.save_images(torch.rand(2, 4, 4, 3), "pic")
    images.save_images(torch.rand(1, 4, 4, 3), "picture")
    second = images.save_images(torch.rand(1, 4, 4, 3), "pic")
    assert [each["filename"] for each in first + second] == ["pic_00001_.png", "pic_00002_.png", "pic_00003_.png"]


def test_placeholders_are_filled(out):
    (result,) = images.save_images(torch.rand(1, 8, 6, 3), "%width%x%height%")
    assert result["filename"] == "6x8_00001_.png"


@pytest.mark.parametrize("prefix", ["../pic", "a/../../pic", "/tmp/pic", ""])
def test_nothing_is_written_outside_the_folder(out, prefix):
    """A shared workflow must not choose where on the disk it writes."""
    with pytest.raises(ValueError, match="inside the output folder"):
        images.save_images(torch.rand(1, 4, 4, 3), prefix)
    assert not out.exists()


def test_previews_go_to_the_temporary_folder(out):
    images.save_images(torch.rand(1, 4, 4, 3), "pic", FolderType.temp)
    assert (folders().temp / "pic_00001_.png").is_file() and not out.exists()


def test_a_failed_write_leaves_nothing(tmp_path):
    path = tmp_path / "deep" / "file.bin"
    with pytest.raises(RuntimeError), files.whole_file(path) as stream:
        stream.write(b"half")
        raise RuntimeError("the disk is full")
    assert os.listdir(path.parent) == []


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), files.whole_file(path) as stream:
        stream.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file.bin"]


def test_pictures_without_a_workflow_are_refused(tmp_path, small):
    bare, false = tmp_path / "bare.png", tmp_path / "false.png"
    images.write_png(bare, torch.rand(4, 4, 3))
    false.write_bytes(b"no picture at all")
    with pytest.raises(WorkflowError, match="carries no workflow"):
        workflow.load(bare, small.schemas)
    with pytest.raises(WorkflowError, match="not a PNG"):
        workflow.load(false, small.schemas)
