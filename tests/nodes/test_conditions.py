"""The nodes of spatial conditions, on the demo model's architecture in the embedded host. A failure means that a map or
a small picture is told otherwise than it was given, or that a wrong one passes in silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from velatura.core.layer_patch import LayerPatch
from velatura.core.spatial_file import SpatialPatch
from velatura.hosts import folders, running
from velatura.hosts import load as load_host
from velatura.nodes.conditions import (
    VelaturaSemanticMap,
    VelaturaSuperResolution,
    VelaturaSuperResolutionModel,
)
from velatura.nodes.paint_map import EXAMPLE, VelaturaPaintMap
from velatura.runtime.stock.sampling import KSampler
from velatura.training.concat import ToldLayers, write_told

HOST = load_host("diffusers")
CLASSES = {"sky": "66bbff", "grass": "55aa33", "fish": "0033ff"}
MAP, SMALL = "loras/map.safetensors", "loras/small.safetensors"


def learned(model: Any, channels: int) -> ToldLayers:
    """Layers that do something, without training."""
    layers = ToldLayers(model.layers(), channels, 2, which="attn1", seed=1)
    generator = torch.Generator().manual_seed(2)
    for each in (layers.columns, *layers.lora.up.values()):
        each.data.copy_(torch.randn(each.shape, generator=generator) / 10)
    return layers


@pytest.fixture(scope="module")
def wires(random_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    model, clip, vae = HOST.load_folder(random_folder)
    root = tmp_path_factory.mktemp("models")
    (root / "loras").mkdir()
    told = SpatialPatch(LayerPatch(), "classes", CLASSES)
    write_told(root / MAP, learned(model, 4 * len(CLASSES)), told)
    write_told(root / SMALL, learned(model, 16), SpatialPatch(LayerPatch(), "small picture", size=64))
    ball, empty = (HOST.conditioning(HOST.text(clip).encode([each])) for each in ("a red ball", ""))
    with folders.using(folders.Folders(models=root)):
        yield {"model": model, "vae": vae, "ball": ball, "empty": empty}


def painted(text: str, width: int = 64, height: int = 64) -> torch.Tensor:
    return VelaturaPaintMap.execute(text, width, height, MAP).args[0]


def mapped(wires: dict[str, Any], picture: torch.Tensor, tile: int = 0, batch: int = 1, **more: Any) -> Any:
    how = {"file": MAP, "strength": 1.0, "tile": tile, "overlap": tile // 2, "batch_size": batch, **more}
    return VelaturaSemanticMap.execute(wires["model"], picture, **how).args


def sampled(wires: dict[str, Any], model: Any, latent: Any, denoise: float = 1.0) -> torch.Tensor:
    how = {"seed": 1, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": denoise}
    done = KSampler.execute(model=model, positive=wires["ball"], negative=wires["empty"], latent_image=latent, **how)
    return done.args[0]["samples"]


def enlarged(wires: dict[str, Any], image: torch.Tensor, seed: int = 1, steps: int = 2, **more: Any) -> torch.Tensor:
    how = {"file": SMALL, "denoise": 1.0, "strength": 1.0, "tile": 64, "overlap": 32, **more}
    made = VelaturaSuperResolution.execute(
        wires["model"], wires["vae"], image, wires["empty"], seed=seed, steps=steps, **how
    )
    return made.args[0]


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(height))


def test_a_map_is_painted_in_words_and_read_again(wires):
    picture = painted("sky\ngrass: below 0.5\n\n# a comment\nFish: ellipse 0.5 0.25 0.2 0.1", 80, 64)
    assert picture.shape == (1, 64, 80, 3)
    codes = (picture[0] * 255).round().int()
    assert codes[0, 0].tolist() == [0x66, 0xBB, 0xFF] and codes[-1, 0].tolist() == [0x55, 0xAA, 0x33]
    fish = (codes == torch.tensor([0x00, 0x33, 0xFF])).all(-1)
    assert abs(float(fish.float().mean()) - torch.pi * 0.2 * 0.1) < 0.01
    read = mapped(wires, picture)[2]
    torch.testing.assert_close(read, picture)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("skye", "line 1: there is no class “skye”; did you mean “sky”"),
        ("sky\nfish: cirle 0.5 0.5 0.1", "line 2: there is no shape “cirle”; did you mean “circle”"),
        ("sky\nfish: circle 0.5 0.5", "line 2: circle wants the numbers x y radius"),
        ("sky\nfish: circle 0.5 0.5 wide", "got 0.5 0.5 wide"),
        ("sky\nfish: polygon 0 0 1 1", "polygon wants the numbers"),
        ("fish: circle 0.5 0.5 0.1", "leaves a part of the map unpainted"),
        ("", "leaves a part of the map unpainted"),
    ],
)
def test_what_cannot_be_painted_is_said_with_its_line(wires, text, said):
    with pytest.raises(ValueError, match=said):
        painted(text)


def test_every_shape_can_be_painted():
    from velatura.nodes._paint import SHAPES, paint

    for name, (wants, _) in SHAPES.items():
        count = 6 if name == "polygon" else len(wants.split())
        numbers = [0.2, 0.3, 0.6, 0.7, 0.4, 0.9][:count]
        classes = paint(f"a\nb: {name} {' '.join(map(str, numbers))}", ["a", "b"], 32, 48)
        assert classes.shape == (1, 32, 48) and set(classes.unique().tolist()) <= {0, 1} and (classes == 1).any()
    assert len(EXAMPLE.splitlines()) == 4


def test_the_stock_sampler_draws_by_the_map(wires):
    """Another map, another picture; the model that was there stays; two pictures of a batch have one map."""
    before = sampled(wires, wires["model"], {"samples": torch.zeros(1, 4, 8, 8)})
    model, latent, _ = mapped(wires, painted("sky\nfish: circle 0.5 0.5 0.3"))
    other, _, _ = mapped(wires, painted("grass\nfish: circle 0.5 0.5 0.3"))
    assert latent["samples"].shape == (1, 4, 8, 8)
    one = sampled(wires, model, latent)
    assert (one - sampled(wires, other, latent)).abs().max() > 1e-3
    assert torch.equal(sampled(wires, wires["model"], {"samples": torch.zeros(1, 4, 8, 8)}), before)
    model, latent, _ = mapped(wires, painted("sky\nfish: circle 0.5 0.5 0.3"), batch=2)
    assert latent["samples"].shape[0] == 2
    torch.testing.assert_close(sampled(wires, model, latent)[:1], one, atol=1e-4, rtol=1e-3)


def test_a_map_larger_than_a_tile_is_drawn_in_tiles(wires):
    picture = painted("sky\nfish: circle 0.5 0.5 0.3", 96, 80)
    whole, tiles = (mapped(wires, picture, tile=tile) for tile in (0, 64))
    assert tiles[1]["samples"].shape == (1, 4, 10, 12)
    a, b = (sampled(wires, model, latent) for model, latent, _ in (whole, tiles))
    assert torch.isfinite(b).all() and (a - b).abs().max() > 1e-4
    with pytest.raises(ValueError, match="in tiles already"):
        VelaturaSemanticMap.execute(tiles[0], picture, MAP, 1.0, 64, 32, 1)


def test_a_wrong_map_or_file_is_refused_with_the_reason(wires):
    picture = painted("sky")
    with pytest.raises(ValueError, match="map: expected sides that are multiples of 8, got 60x64"):
        mapped(wires, picture[:, :, :60])
    alien = picture.clone()
    alien[:, :32] = torch.tensor([1.0, 0.0, 0.5])
    with pytest.raises(ValueError, match=r"1 of its colours is no class's: #ff0080 \(50.0% of it"):
        mapped(wires, alien)
    with pytest.raises(ValueError, match="it is told small picture, expected one that is told classes"):
        mapped(wires, picture, file=SMALL)
    with pytest.raises(FileNotFoundError):
        mapped(wires, picture, file="loras/nowhere.safetensors")
    with pytest.raises(ValueError, match="latent: expected 8x8 cells"):
        sampled(wires, mapped(wires, picture)[0], {"samples": torch.zeros(1, 4, 8, 10)})


@pytest.mark.parametrize(("height", "width"), [(16, 16), (5, 7), (33, 20)])
def test_a_picture_of_any_size_is_enlarged_four_times(wires, height, width):
    large = enlarged(wires, pictures(1, height, width))
    assert large.shape == (1, 4 * height, 4 * width, 3)
    assert float(large.min()) >= 0 and float(large.max()) <= 1


def test_the_seed_decides_and_the_small_picture_matters(wires):
    image = pictures(2, 16, 18)
    large = enlarged(wires, image)
    assert torch.equal(enlarged(wires, image), large)
    assert (enlarged(wires, image, seed=2) - large).abs().max() > 1e-3
    assert (enlarged(wires, image.flip(0)) - large).abs().max() > 1e-3
    one = enlarged(wires, torch.cat([image[..., :3], torch.ones(2, 16, 18, 1)], -1))
    assert torch.equal(one, large)  # alpha is not looked at


def test_stock_samplers_enlarge_too(wires):
    model, latent = VelaturaSuperResolutionModel.execute(
        wires["model"], wires["vae"], pictures(1, 16, 18), SMALL, 1.0, 64, 32
    ).args
    assert latent["samples"].shape == (1, 4, 8, 9)
    assert torch.isfinite(sampled(wires, model, latent, denoise=0.5)).all()


def test_enlarging_shows_its_steps_and_stops_within_one(wires):
    steps = []

    def sink(total: int) -> Any:
        def report(step: int, total: int, preview: Any = None) -> None:
            steps.append((step, total, preview is not None))
            if step == 2:
                raise running.Interrupted

        return report

    with running.reporting(sink), pytest.raises(running.Interrupted):
        enlarged(wires, pictures(1, 16, 16), steps=9)
    assert [step for step, _, _ in steps] == [1, 2] and steps[0][1] == 9 and steps[0][2]
