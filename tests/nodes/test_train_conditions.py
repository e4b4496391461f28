"""The training of spatial conditions on the embedded runtime: its file is one that our nodes load and that knows what
it was told, a cancelled run goes on, and what cannot be taught is refused by the input's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from velatura.core.layer_patch import LayerPatch
from velatura.core.spatial_file import SpatialPatch
from velatura.hosts import folders, running
from velatura.hosts import load as load_host
from velatura.nodes.conditions import VelaturaSemanticMap, VelaturaSuperResolutionModel, patch_of
from velatura.nodes.paint_map import VelaturaPaintMap
from velatura.nodes.train_conditions import VelaturaTrainSpatial

HOST = load_host("diffusers")
CLASSES = "Sky = #66BBFF\n\nthe  ground=55aa33\n"
COLOURS = ((0x66, 0xBB, 0xFF), (0x55, 0xAA, 0x33))
HOW: dict[str, Any] = {
    "told": "classes", "classes": CLASSES, "steps": 2, "batch": 2, "learning_rate": 1e-2, "rank": 2,
    "prompt_dropout": 0.3, "low_memory": False, "seed": 1, "name": "mine",
}  # fmt: skip


def maps(count: int = 4, height: int = 32, width: int = 40) -> torch.Tensor:
    """Sky above the ground, whose height differs."""
    sky, ground = (torch.tensor(each) / 255 for each in COLOURS)
    rows = torch.arange(height).view(1, -1, 1, 1) < 8 * torch.arange(1, count + 1).view(-1, 1, 1, 1)
    return torch.where(rows, sky, ground).expand(count, height, width, 3).clone()


@pytest.fixture(scope="module")
def graph(random_folder: Path) -> dict[str, Any]:
    """What the wires carry."""
    model, clip, vae = HOST.load_folder(random_folder)
    text = HOST.text(clip)
    return {
        "model": model,
        "vae": vae,
        "images": torch.rand(4, 4, 5, 3, generator=torch.Generator().manual_seed(0))
        .repeat_interleave(8, 1)
        .repeat_interleave(8, 2),
        "positive": [HOST.conditioning(text.encode([p]))[0] for p in ("a red star", "a blue star")],
        "negative": HOST.conditioning(text.encode([""])),
    }


@pytest.fixture
def places(tmp_path: Path):
    chosen = folders.Folders(output=tmp_path / "output", models=tmp_path / "models")
    with folders.using(chosen):
        yield chosen


def taught(graph: dict[str, Any], **more: Any) -> Any:
    return VelaturaTrainSpatial.execute(**graph | HOW | more).args


def enlarging(graph: dict[str, Any], **more: Any) -> Any:
    return taught(graph, **{"told": "small picture", **more})


def learned(path: Path) -> bool:
    """Whether the LoRA and the columns of what is given are no longer those that training begins with."""
    tensors = load_file(path)
    columns = tensors.pop("lora_unet_conv_in.diff")
    assert not columns[:, :4].any()
    return bool(columns[:, 4:].any()) and any(bool(t.any()) for name, t in tensors.items() if "lora_up" in name)


def test_maps_leave_a_file_that_knows_its_classes_and_draws_by_them(graph, places):
    file, read, curve = taught(graph, given=maps())
    assert file == "mine.safetensors" and curve.shape[-1] == 3
    assert torch.equal((read * 255).round(), (maps() * 255).round())
    assert learned(places.models / "loras" / file)
    patch = patch_of("classes", f"loras/{file}")
    assert dict(patch.classes) == {"sky": "66bbff", "the ground": "55aa33"} and patch.size == 32
    painted = VelaturaPaintMap.execute("sky\nThe Ground: below 0.5", 40, 32, f"loras/{file}").args[0]
    x, t = torch.randn(1, 4, 4, 5, generator=torch.Generator().manual_seed(3)), torch.tensor([900])
    said = []
    for picture in (painted, painted.flip(1)):
        model = VelaturaSemanticMap.execute(graph["model"], picture, f"loras/{file}", 1.0, 0, 0, 1).args[0]
        said.append(HOST.model(model).predict_noise(x, t, HOST.condition(graph["negative"])))
    assert (said[0] - said[1]).abs().max() > 1e-5


@pytest.mark.parametrize("own", [False, True])
def test_small_pictures_are_made_or_given_and_leave_a_file_that_enlarges(graph, places, own):
    given = torch.rand(4, 8, 10, 3, generator=torch.Generator().manual_seed(5)) if own else None
    file, small, _ = enlarging(graph, given=given)
    assert learned(places.models / "loras" / file)
    assert small.shape == (4, 8, 10, 3) and (given is None or torch.equal(small, given))
    if not own:
        # Each is its picture, smaller and damaged.
        plain = torch.nn.functional.avg_pool2d(graph["images"].movedim(-1, 1), 4).movedim(1, -1)
        off = [[float((a - b).square().mean()) for b in plain] for a in small]
        assert [row.index(min(row)) for row in off] == [0, 1, 2, 3] and min(map(min, off)) > 1e-6
    made, latent = VelaturaSuperResolutionModel.execute(
        graph["model"], graph["vae"], small, f"loras/{file}", 1.0, 0, 0
    ).args
    x, t = torch.randn(4, 4, 4, 5, generator=torch.Generator().manual_seed(3)), torch.tensor([900] * 4)
    assert latent["samples"].shape == (4, 4, 4, 5)
    assert torch.isfinite(HOST.model(made).predict_noise(x, t, HOST.condition(graph["negative"]))).all()


def test_what_is_given_goes_with_its_picture(graph, places):
    """The rows of a step are drawn once for pictures, prompts and what is given."""
    from velatura.nodes import train_conditions as node

    numbered = torch.arange(4.0).view(-1, 1, 1, 1).expand(4, 3, 8, 10)
    lesson = node.Lesson(numbered, lambda rows: numbered[rows], SpatialPatch(LayerPatch(), "small picture"), "")
    latents = {"samples": torch.arange(4.0).view(-1, 1, 1, 1).expand(4, 4, 4, 5)}
    with node.inputs.prepared(graph["model"], latents, graph["positive"], None, 7, "rows") as run:
        z, _, given = node._examples(run, lesson, 7)(0, 9)
        scaled = run.model.scale(given[:, :1, :4, :5].expand(-1, 4, -1, -1))
    torch.testing.assert_close(z, scaled)
    assert len(given.unique()) == 4


class Cancelled(Exception):
    pass


def cancel_at(step: int, seen: list[Any]):
    """Cancels at a step of the training; encoding reports before it, of four pictures."""

    def sink(total: int):
        def progress(done: int, total: int, preview: Any = None) -> None:
            seen.append((done, total, preview))
            if (done, total) == (step, HOW["steps"]):
                raise Cancelled

        return progress

    return sink


@pytest.mark.parametrize("wires", [{"given": maps()}, {"told": "small picture"}])
def test_a_cancelled_run_stops_within_a_step_and_goes_on_to_the_same_file(graph, places, wires):
    (whole, *_), seen = taught(graph, **wires, name="whole"), []
    with pytest.raises(Cancelled), running.reporting(cancel_at(1, seen)):
        taught(graph, **wires, name="broken")
    assert seen[-1][:2] == (1, 2) and (4, 4, None) in seen
    assert not list((places.models / "loras").glob("*broken*"))
    seen.clear()
    with running.reporting(cancel_at(99, seen)):
        (resumed, *_) = taught(graph, **wires, name="broken")
    assert [each[:2] for each in seen if each[1] == 2] == [(2, 2)] and seen[-1][2] is not None
    one, other = (load_file(places.models / "loras" / each) for each in (whole, resumed))
    assert one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())
    with pytest.raises(ValueError, match=r"name: 'broken' has a run that cannot go on.*rank 2 then, 3 now"):
        taught(graph, **wires, name="broken", rank=3)


def strange() -> torch.Tensor:
    picture = maps()
    picture[2, :16] = torch.tensor([1.0, 0.0, 0.5])
    return picture


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"given": None}, "given: expected the painted maps"),
        ({"given": maps(3)}, "given: expected 4, one for each of the images, got 3"),
        ({"given": maps(4, 32, 32)}, "given: expected 40x32, the images' size, got 32x32"),
        ({"given": strange()}, r"given: picture 3: 1 of its colours is no class's: #ff0080 \(50.0% of it"),
        ({"told": "small picture"}, "given: expected 10x8, a quarter of the images' sides, got 40x32"),
        ({"images": torch.rand(4, 36, 40, 3)}, "images: expected sides in multiples of 8, got 40x36"),
        ({"images": torch.full((4, 32, 40, 3), float("nan"))}, "images: there are NaN"),
        ({"classes": "sky=66bbff\nground"}, "classes: line 2: expected NAME=RRGGBB"),
        ({"classes": "sky=66bbff\nground=66BBFF"}, "classes: line 2: “ground” or #66bbff is there already"),
        ({"classes": "sky=66bbff\nSky=000000"}, "classes: line 2: “sky” or #000000 is there already"),
        ({"classes": " \n"}, "classes: expected a line NAME=RRGGBB for each class"),
        ({"positive": "three"}, "positive: expected one prompt, or one for each of 4"),
        ({"name": "../mine"}, "name: expected letters"),
        ({"prompt_dropout": 1.0}, "prompt_dropout: expected at least 0 and less than 1"),
    ],
)
def test_what_cannot_be_taught_is_refused_by_the_inputs_name(graph, places, change, message):
    if change.get("positive") == "three":
        change = {"positive": [*graph["positive"], graph["positive"][0]]}
    with pytest.raises(ValueError, match=message):
        taught(graph, **{"given": maps(), **change})
    assert not places.models.exists()


def test_a_model_that_is_told_something_already_is_refused(graph, places):
    """Its file could not be put on beside the other."""
    taught(graph, given=maps(), name="first")
    told = VelaturaSemanticMap.execute(graph["model"], maps(1), "loras/first.safetensors", 1.0, 0, 0, 1).args[0]
    with pytest.raises(ValueError, match="model: another patch with a given latent is on it already"):
        taught(graph, given=maps(), model=told)
    assert [path.name for path in places.models.rglob("*.safetensors")] == ["first.safetensors"]
