"""The inversion nodes on the demo model, in the embedded host: what people connect, what comes out, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from velatura.core.inversion import METHODS as CORE_METHODS
from velatura.core.metrics import psnr
from velatura.hosts import folders, load, running
from velatura.hosts.diffusers.model import DiffusersModel
from velatura.nodes import inversion, reconstruct

HOST = load("diffusers")
SETTINGS = {
    "method": "null text", "steps": 6, "guidance": 4.0, "seed": 0, "noised_steps": 0, "tolerance": 0.02,
    "iterations": 1, "corrected": True,
}  # fmt: skip


class Sprites(NamedTuple):
    model: Any
    vae: Any
    red: Any
    blue: Any
    empty: Any
    image: Tensor


@pytest.fixture(scope="module")
def sprites(sprites_folder: Path) -> Sprites:
    model, clip, vae = HOST.load_folder(sprites_folder)
    texts = ["a red glass ball in a cold night", "a blue glass ball in a cold night", ""]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 4, 8, 8, generator=generator)
    image = (vae.decode(noise) + 1) / 2
    return Sprites(model, vae, *(HOST.conditioning(clip.encode([text])) for text in texts), image.movedim(1, -1))


def invert(sprites: Sprites, **given: Any) -> tuple[Any, ...]:
    inputs = {"image": sprites.image[:1], "vae": sprites.vae} if "latent" not in given else {}
    return inversion.VelaturaInvert.execute(sprites.model, sprites.red, **SETTINGS | inputs | given).args


def pair(sprites: Sprites, **given: Any) -> tuple[Any, ...]:
    images = {"image_a": sprites.image[:1], "image_b": sprites.image[1:], "vae": sprites.vae}
    inputs = SETTINGS | {"shared_null": False} | images | given
    return inversion.VelaturaInvertPair.execute(sprites.model, sprites.red, sprites.blue, **inputs).args


def image(sprites: Sprites, latent: dict[str, Tensor]) -> Tensor:
    return (sprites.vae.decode(sprites.vae.scale(latent["samples"])) + 1) / 2


@pytest.fixture(scope="module")
def found(sprites: Sprites) -> Any:
    return invert(sprites)[0]


def test_every_method_is_offered_under_a_name() -> None:
    assert tuple(inversion.METHODS.values()) == CORE_METHODS


@pytest.mark.parametrize("method", inversion.METHODS)
def test_what_the_node_says_it_reconstructs_is_what_reconstruct_makes(sprites: Sprites, method: str) -> None:
    made, latent, plot, report = invert(sprites, method=method, negative=sprites.empty)
    assert plot.shape == (1, 360, 640, 3) and plot.min() >= 0 and plot.max() <= 1
    assert f"method: {inversion.METHODS[method]}, 6 steps" in report
    again = reconstruct.VelaturaReconstruct.execute(sprites.model, made).args[0]
    torch.testing.assert_close(again["samples"], latent["samples"], rtol=1e-3, atol=1e-3)
    if method in ("direct", "exact (EDICT)"):
        start = sprites.vae.encode(sprites.image[:1].movedim(-1, 1) * 2 - 1)
        torch.testing.assert_close(sprites.vae.scale(again["samples"]), start, rtol=0, atol=1e-3)


def test_images_and_latents_are_the_same_start(sprites: Sprites) -> None:
    raw = sprites.vae.unscale(sprites.vae.encode(sprites.image[:1].movedim(-1, 1) * 2 - 1))
    by_latent = invert(sprites, latent={"samples": raw}, method="direct")[0]
    torch.testing.assert_close(by_latent.noise, invert(sprites, method="direct")[0].noise, rtol=1e-4, atol=1e-4)


def test_an_edit_follows_its_ratio(sprites: Sprites, found: Any) -> None:
    plain = reconstruct.VelaturaReconstruct.execute(sprites.model, found).args[0]["samples"]
    edits = [
        reconstruct.VelaturaPromptSwitchEdit.execute(sprites.model, found, sprites.blue, ratio).args[0]["samples"]
        for ratio in (0.0, 0.4, 1.0)
    ]
    assert torch.equal(edits[0], plain)
    assert 0 < float((edits[1] - plain).norm()) < float((edits[2] - plain).norm())


def test_a_morph_begins_and_ends_at_the_pictures_whatever_the_batch(sprites: Sprites) -> None:
    both = pair(sprites, method="direct")[0]
    frames, strip = reconstruct.VelaturaMorph.execute(sprites.model, both, sprites.vae, 4, "linear", 3, 2).args
    assert frames.shape == (4, 64, 64, 3) and strip.shape == (1, 64, 128, 3)
    assert torch.equal(strip[0, :, :64], frames[0]) and torch.equal(strip[0, :, 64:], frames[3])
    ends = (sprites.vae.decode(sprites.vae.encode(sprites.image.movedim(-1, 1) * 2 - 1)) + 1) / 2
    assert float(psnr(frames[[0, 3]].movedim(-1, 1), ends).min()) > 40
    alone = reconstruct.VelaturaMorph.execute(sprites.model, both, sprites.vae, 4, "linear", 1, 2).args[0]
    torch.testing.assert_close(frames, alone, rtol=0, atol=1e-3)


def test_a_shared_series_is_one_for_both(sprites: Sprites) -> None:
    assert pair(sprites, shared_null=True)[0].nulls.shape[1] == 1
    assert pair(sprites)[0].nulls.shape[1] == 2


def test_files_keep_inversions(sprites: Sprites, found: Any, tmp_path: Path) -> None:
    with folders.using(folders.Folders(output=tmp_path)):
        reconstruct.VelaturaSaveInversion.execute(found, "ball")
        options = reconstruct.VelaturaLoadInversion.define_schema().inputs[0].options["options"]
        assert options == ["ball.safetensors"]
        back = reconstruct.VelaturaLoadInversion.execute("ball.safetensors").args[0]
        one, other = (reconstruct.VelaturaReconstruct.execute(sprites.model, each).args[0] for each in (found, back))
        assert torch.equal(one["samples"], other["samples"])
        whole = (tmp_path / "inversions" / "ball.safetensors").read_bytes()
        (tmp_path / "inversions" / "half.safetensors").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=r"file: .*half\.safetensors cannot be used"):
            reconstruct.VelaturaLoadInversion.execute("half.safetensors")
        for name in ("../out", "", ".hidden"):
            with pytest.raises(ValueError, match="name: expected a plain file name"):
                reconstruct.VelaturaSaveInversion.execute(found, name)
        with pytest.raises(FileNotFoundError, match="file: there is no"):
            reconstruct.VelaturaLoadInversion.execute("../ball.safetensors")


def test_another_model_is_refused(sprites: Sprites, found: Any, random_folder: Path) -> None:
    other = HOST.load_folder(random_folder)[0]
    with torch.no_grad():
        for weight in other.unet.conv_out.parameters():
            weight.mul_(1.5)
    with pytest.raises(ValueError, match="inversion: it was made with another model"):
        reconstruct.VelaturaReconstruct.execute(other, found)


def test_a_v_prediction_model_inverts_too(sprites: Sprites) -> None:
    """The engine asks for eps; which network answers must not matter."""
    other = sprites._replace(model=DiffusersModel(sprites.model.unet, sprites.model.schedule, "v_prediction"))
    made, latent, *_ = invert(other, method="direct", negative=sprites.empty)
    torch.testing.assert_close(latent["samples"], other.model.unscale(made.x_0), rtol=1e-3, atol=1e-3)
    assert invert(other, negative=sprites.empty, tolerance=0.0)[0].nulls.isfinite().all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"guidance": 0.0}, "guidance: expected above 0"),
        ({"image": None}, "image: connect either image or latent"),
        ({"vae": None}, "vae: image needs one"),
        ({"image": torch.rand(1, 4, 64, 3)}, "image: expected at least 8 pixels"),
        ({"image": torch.full((1, 64, 64, 3), float("nan"))}, "latent: it has NaN"),
    ],
)
def test_what_cannot_work_is_named(sprites: Sprites, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        invert(sprites, **given)


def test_two_sizes_are_refused(sprites: Sprites) -> None:
    with pytest.raises(ValueError, match="image_b: expected a picture of image_a's size"):
        pair(sprites, image_b=torch.rand(1, 64, 96, 3))


def test_cancel_ends_the_node(sprites: Sprites) -> None:
    steps = list[int]()

    def sink(total: int) -> Any:
        def report(step: int, total: int, preview: Any = None) -> None:
            steps.append(step)
            if step == 8:
                raise running.Interrupted

        return report

    with running.reporting(sink), pytest.raises(running.Interrupted):
        invert(sprites, negative=sprites.empty, tolerance=0.0)
    assert steps[-1] == 8 and len(steps) < 14
