"""The transparency nodes on the demo model's autoencoder and small random networks, in the embedded host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from velatura.core.transparency import Convention, TransparencyDecoder, TransparencyEncoder
from velatura.core.transparency_file import metadata_of
from velatura.hosts import folders, load, running
from velatura.nodes import transparency as nodes

HOST = load("diffusers")
OURS = Convention(2.0, 0.6, True)


def seeded(network: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: 0.1 * torch.randn(p.shape, generator=generator) + ("norm" in name and "weight" in name)
        for name, p in network.state_dict().items()
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    folder = root / "layer_model"
    folder.mkdir()
    note = metadata_of(OURS)
    save_file(seeded(TransparencyEncoder((8, 8, 8, 8))), folder / "encoder.safetensors", note)
    save_file(seeded(TransparencyDecoder((8, 8, 8, 8), 4, 1)), folder / "decoder.safetensors", note)
    save_file(seeded(TransparencyDecoder((8, 8, 8, 8), 4, 1)), folder / "other.safetensors")
    save_file(seeded(TransparencyEncoder((8, 8, 8, 8), 16)), folder / "flux.safetensors", note)
    return root


def loaded(models: Path, encoder: str = "encoder", decoder: str = "decoder", scale: float = 0.0) -> Any:
    names = [each if each == "none" else f"layer_model/{each}.safetensors" for each in (encoder, decoder)]
    with folders.using(folders.Folders(models=models)):
        return nodes.VelaturaLoadTransparency.execute(*names, scale).args[0]


@pytest.fixture(scope="module")
def vae(sprites_folder: Path) -> Any:
    return HOST.load_folder(sprites_folder)[2]


def picture(h: int = 64, w: int = 64, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand(batch, h, w, 3, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(batch, h, w)
    mask[:, 16:48, 16:48] = 0
    return image, mask


def decoded(transparency: Any, vae: Any, latent: Any, **given: Any) -> tuple[Any, ...]:
    inputs = {"passes": "2", "average": "median", "tile_size": 1024, "overlap": 128} | given
    return nodes.VelaturaDecodeTransparent.execute(transparency, vae, latent, **inputs).args


def test_files_are_offered_and_their_convention_is_followed(models: Path) -> None:
    with folders.using(folders.Folders(models=models)):
        options = nodes.VelaturaLoadTransparency.define_schema().inputs[1].options["options"]
    assert "layer_model/decoder.safetensors" in options and nodes.NONE in options
    shipped = (nodes.load.DEMO_MODELS / nodes.DEMO_FILES["decoder"]).exists()
    assert (options[0] == nodes.DEMO) == shipped  # what cannot be loaded is not offered
    assert loaded(models).convention == OURS
    assert loaded(models, scale=5.0).convention == Convention(5.0, 0.6, True)
    assert loaded(models, "none", "other").convention == Convention()


def test_a_picture_goes_in_and_comes_out(models: Path, vae: Any) -> None:
    transparency, (image, mask) = loaded(models), picture(64, 72, 2)
    latent, drop = nodes.VelaturaEncodeTransparent.execute(transparency, vae, image, mask).args
    assert latent["samples"].shape == (2, 4, 8, 9) and drop == 0
    out, alpha, rgba = decoded(transparency, vae, latent)
    assert out.shape == (2, 64, 72, 3) and alpha.shape == (2, 64, 72) and rgba.shape == (2, 64, 72, 4)
    torch.testing.assert_close(rgba[..., 3], 1 - alpha)
    tiled = decoded(transparency, vae, latent, tile_size=64, overlap=16)
    assert tiled[0].shape == out.shape and not torch.equal(tiled[0], out)


def test_the_offset_is_added_to_what_the_autoencoder_says(models: Path, vae: Any) -> None:
    image, mask = picture()
    mean = nodes.VelaturaEncodeTransparent.execute(loaded(models, scale=1e-9), vae, image, mask).args[0]["samples"]
    one, two = (
        nodes.VelaturaEncodeTransparent.execute(loaded(models, scale=scale), vae, image, mask).args[0]["samples"] - mean
        for scale in (1.0, 2.0)
    )
    torch.testing.assert_close(two, 2 * one, rtol=1e-3, atol=1e-4)
    assert one.abs().max() > 0


def test_a_mask_and_a_fourth_channel_say_the_same(models: Path, vae: Any) -> None:
    transparency, (image, mask) = loaded(models), picture()
    four = torch.cat([image, 1 - mask[..., None]], -1)
    by_mask, by_alpha = (
        nodes.VelaturaEncodeTransparent.execute(transparency, vae, *given).args[0]["samples"]
        for given in ((image, mask), (four,))
    )
    torch.testing.assert_close(by_mask, by_alpha)
    hidden = torch.where(mask[..., None] == 1, 1 - image, image)
    other = nodes.VelaturaEncodeTransparent.execute(transparency, vae, hidden, mask).args[0]["samples"]
    torch.testing.assert_close(other, by_mask)


def test_an_odd_size_is_cut_as_vae_encode_does(models: Path, vae: Any) -> None:
    transparency, (image, mask) = loaded(models), picture(67, 70)
    cut = nodes.VelaturaEncodeTransparent.execute(transparency, vae, image, mask).args[0]["samples"]
    same = nodes.VelaturaEncodeTransparent.execute(transparency, vae, image[:, 1:65, 3:67], mask[:, 1:65, 3:67])
    torch.testing.assert_close(cut, same.args[0]["samples"])


def test_identity_is_measured_when_asked(models: Path, vae: Any) -> None:
    image, mask = picture()
    none, much = (
        nodes.VelaturaEncodeTransparent.execute(loaded(models, scale=scale), vae, image, mask, True).args[1]
        for scale in (1e-9, 300.0)
    )
    assert abs(none) < 1e-3 < much


def test_padding_fills_what_is_transparent() -> None:
    image, mask = picture()
    padded = nodes.VelaturaPadRgb.execute(image, mask).args[0]
    assert torch.equal(padded[:, 16:48, 16:48], image[:, 16:48, 16:48])
    assert padded[:, :8].std() < 0.2 * image[:, :8].std()


def test_what_cannot_work_is_named(models: Path, vae: Any) -> None:
    transparency, (image, mask) = loaded(models), picture()

    def encode(*given: Any, using: Any = transparency) -> None:
        nodes.VelaturaEncodeTransparent.execute(using, vae, *given)

    with pytest.raises(ValueError, match="mask: the image has no alpha"):
        encode(image)
    with pytest.raises(ValueError, match="mask: every pixel is transparent"):
        encode(image, torch.ones_like(mask))
    with pytest.raises(ValueError, match="mask: expected the image's size"):
        encode(image, mask[:, :32])
    with pytest.raises(ValueError, match="encoder: it has latents of 16 channels, the VAE 4"):
        encode(image, mask, using=loaded(models, "flux", "none"))
    with pytest.raises(ValueError, match="transparency: it was loaded without decoder"):
        decoded(loaded(models, "encoder", "none"), vae, {"samples": torch.zeros(1, 4, 8, 8)})
    with pytest.raises(ValueError, match="samples: it has latents of 16"):
        decoded(transparency, vae, {"samples": torch.zeros(1, 16, 8, 8)})
    with pytest.raises(ValueError, match=r"encoder: .* cannot be used: .*it is a decoder"):
        loaded(models, "decoder", "none")
    with pytest.raises(ValueError, match="trained with different conventions"):
        loaded(models, "encoder", "other")
    with pytest.raises(ValueError, match="both are “none”"):
        loaded(models, "none", "none")


def test_cancel_ends_a_decode(models: Path, vae: Any) -> None:
    steps = list[int]()

    def sink(total: int) -> Any:
        def report(step: int, total: int, preview: Any = None) -> None:
            steps.append(step)
            raise running.Interrupted

        return report

    with running.reporting(sink), pytest.raises(running.Interrupted):
        decoded(loaded(models), vae, {"samples": torch.zeros(2, 4, 8, 8)}, passes="8")
    assert steps == [1]
