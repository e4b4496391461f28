"""The drag nodes on the demo model, in the embedded host."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from velatura.core.points import Points
from velatura.core.protocols import no_progress
from velatura.demo import drag as cases
from velatura.demo import release
from velatura.hosts import load as load_host
from velatura.hosts import running
from velatura.nodes.drag import VelaturaDrag, VelaturaDragIdentity
from velatura.nodes.inversion import VelaturaInvert

HOST = load_host("diffusers")
SETTINGS: dict[str, Any] = {
    "mode": "quality", "steps": 4, "strength": 0.75, "iterations": 2, "rate": 0.02, "cut_out": True, "snap": True,
    "fill_steps": 1, "fill_strength": 0.4, "seed": 0, "low_memory": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def wires() -> dict[str, Any]:
    model, clip, vae = HOST.load_folder(release.MODEL)
    case = cases.cases(1)[0]
    return {
        "model": model,
        "vae": vae,
        "positive": HOST.conditioning(HOST.text(clip).encode([case.caption])),
        "points": Points(case.handles, case.targets, 128, 128),
        "mask": case.mask[0],
        "image": case.picture.movedim(1, -1),
    }


def run(wires: dict[str, Any], **changes: Any) -> Any:
    return VelaturaDrag.execute(**{**wires, **SETTINGS, **changes})


def test_a_drag_gives_picture_latent_and_track(wires):
    made = run(wires)
    image, latent, plot, track = made.args
    assert image.shape == (1, 128, 128, 3) and latent["samples"].shape == (1, 4, 16, 16) and plot.shape[-1] == 3
    assert not torch.equal(image, wires["image"])
    ways = torch.tensor(json.loads(track))
    assert ways.shape[0] == 1 and ways.shape[2:] == (1, 2), "pictures, steps, handles, (x, y)"
    kept = made.ui["velatura_drag"][0]
    assert kept["image"].startswith("data:image/jpeg;base64,") and len(kept["tracks"]) == 1
    assert kept["size"] == [128, 128] and len(kept["distance"]) == 1


def test_the_page_hears_each_step(wires):
    told: list[tuple[str, dict[str, Any]]] = []
    with running.reporting(lambda total: no_progress, lambda event, data: told.append((event, data))):
        run(wires)
    assert any(event == "drag" and len(data["handles"]) == 1 for event, data in told)


def test_fast_moves_the_thing_itself(wires):
    case = cases.cases(1)[0]
    shown: list[torch.Tensor] = []
    with running.reporting(lambda total: lambda step, whole, preview=None: shown.append(preview)):
        image = run(wires, mode="fast").args[0]
    assert [each.shape for each in shown] == [(3, 128, 128)], "a picture for the bar, not a latent"
    found = cases.find_handles(case, image.movedim(-1, 1))
    assert float(cases.distance(found.handles, case.targets).max()) < 1.5
    again = run(wires, mode="fast").args[0]
    assert torch.equal(image, again), "the seed decides"


def test_every_picture_of_a_batch_is_dragged(wires):
    both = torch.cat([wires["image"], wires["image"].flip(2)])
    image, latent, _, track = run(wires, image=both, iterations=0).args
    assert len(image) == 2 and len(latent["samples"]) == 2 and len(json.loads(track)) == 2
    assert torch.allclose(image[0], run(wires, iterations=0).args[0][0], atol=1e-4), "as alone"


def test_an_inversion_stands_in_for_the_picture(wires):
    found = VelaturaInvert.execute(
        wires["model"], wires["positive"], "DDIM", 4, 1.0, 0, 0, 0.005, 3, True, image=wires["image"], vae=wires["vae"]
    ).args[0]
    image = run(wires, image=None, inversion=found).args[0]
    assert image.shape == wires["image"].shape
    with pytest.raises(ValueError, match="inversion: “fast” makes none"):
        run(wires, image=None, inversion=found, mode="fast")
    with pytest.raises(ValueError, match="connect either image or inversion"):
        run(wires, inversion=found)


def test_without_a_mask_it_starts_from_the_picture(wires):
    image = run(wires, mask=None).args[0]
    assert image.shape == wires["image"].shape
    with pytest.raises(ValueError, match="mask: everything may move"):
        run(wires, mask=None, mode="fast")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mask": torch.ones(1, 64, 64)}, "mask: expected the image's size 128x128, got 64x64"),
        ({"mask": torch.zeros(1, 128, 128)}, "mask: it is empty"),
        ({"mask": torch.ones(3, 128, 128)}, "mask: expected 1, as many as pictures"),
        ({"image": torch.rand(1, 96, 128, 3)}, "points: they are for a picture of 128x128, the image is 128x96"),
    ],
)
def test_bad_input_is_named(wires, changes, says):
    with pytest.raises(ValueError, match=says):
        run(wires, **changes)


def test_an_identity_lora_learns_its_picture(wires):
    """The noise of the picture is predicted better, and the model that came in is unchanged."""
    engine = HOST.model(wires["model"])
    codec = HOST.codec(wires["vae"])
    known = VelaturaDragIdentity.execute(
        wires["model"], wires["positive"], wires["vae"], wires["image"], 6, 4, 2e-3, 2, 0, False
    ).args[0]
    with torch.no_grad():
        x_0 = codec.encode(wires["image"].movedim(-1, 1) * 2 - 1).expand(8, -1, -1, -1)
        eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(5))
        t = torch.arange(100, 900, 100)
        x_t = engine.schedule.add_noise(x_0, eps, t)
        condition = HOST.condition(wires["positive"])
        before, after, still = (
            float((model.predict_noise(x_t, t, condition) - eps).square().mean())
            for model in (engine, HOST.model(known), HOST.model(wires["model"]))
        )
    assert after < before == still


def test_a_cancelled_drag_keeps_its_best_and_goes_on(wires):
    """What was optimised is not lost: the same drag begins where the handles were nearest; another one does not."""
    settings = {"iterations": 6, "cut_out": False, "rate": 0.05, "steps": 4}
    steps = 0

    def cancel(total: int) -> Any:
        def bar(step: int, whole: int, preview: Any = None) -> None:
            nonlocal steps
            steps = step
            if step >= 3 + 5:
                raise running.Interrupted

        return bar

    with running.reporting(cancel), pytest.raises(running.Interrupted):
        run(wires, **settings)
    again = json.loads(run(wires, **settings | {"iterations": 0}).args[3])
    case = cases.cases(1)[0]
    begun = torch.tensor(again[0][0])
    assert float((begun - case.targets).norm()) < float((case.handles - case.targets).norm())
    fresh = torch.tensor(json.loads(run(wires, **settings | {"iterations": 0}).args[3])[0][0])
    assert torch.allclose(fresh, case.handles.float(), atol=0.01), "once it is done it is forgotten"
