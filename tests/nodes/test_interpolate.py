"""Interpolating and comparing, as nodes: batches, and inputs that do not fit."""

import pytest
import torch

from velatura.hosts import load
from velatura.nodes import interpolate, measure

HOST = load("diffusers")


def latent(*shape: int, seed: int = 0) -> dict[str, torch.Tensor]:
    return {"samples": torch.randn(*shape, generator=torch.Generator().manual_seed(seed))}


@pytest.mark.parametrize("rows", [2, 4])
def test_a_batch_is_not_mixed_up(rows: int) -> None:
    """Stock interpolation fails or mixes samples where the batch has other than, or as many samples as channels."""
    a, b = latent(rows, 4, 8, 8), latent(rows, 4, 8, 8, seed=1)
    (both,) = interpolate.VelaturaSlerpLatents.execute(a, b, 0.3, "slerp", True).args
    for k in range(rows):
        one = ({"samples": each["samples"][k : k + 1]} for each in (a, b))
        (alone,) = interpolate.VelaturaSlerpLatents.execute(*one, 0.3, "slerp", True).args
        assert torch.equal(both["samples"][k : k + 1], alone["samples"])
    (many,) = interpolate.VelaturaSlerpLatents.execute(a, {"samples": b["samples"][:1]}, 1.0, "lerp", True).args
    assert torch.equal(many["samples"], b["samples"][:1].expand(rows, -1, -1, -1))


def test_latents_that_do_not_fit_are_named() -> None:
    for other in (latent(3, 4, 8, 8), latent(2, 4, 8, 9)):
        with pytest.raises(ValueError, match="latent_b: expected latents of latent_a's size"):
            interpolate.VelaturaSlerpLatents.execute(latent(2, 4, 8, 8), other, 0.5, "slerp", True)
    with pytest.raises(ValueError, match="latent_a: it has NaN"):
        interpolate.VelaturaSlerpLatents.execute({"samples": torch.full((1, 2), torch.nan)}, latent(1, 2), 0, "", True)


def test_a_path_joins_its_key_frames() -> None:
    keys, more = latent(2, 4, 4, 4), latent(1, 4, 4, 4, seed=2)
    (path,) = interpolate.VelaturaLatentPath.execute(keys, 9, "slerp", "linear", True, False, more).args
    assert path["samples"].shape == (9, 4, 4, 4)
    assert torch.equal(path["samples"][0], keys["samples"][0]) and torch.equal(path["samples"][-1], more["samples"][0])
    with pytest.raises(ValueError, match="more: expected latents of the keyframes' size"):
        interpolate.VelaturaLatentPath.execute(keys, 9, "slerp", "linear", True, False, latent(1, 4, 8, 8))


def test_prompts_meet_half_way() -> None:
    a, b = [[torch.zeros(1, 3, 4), {}]], [[torch.ones(1, 3, 4), {"pooled_output": torch.ones(1, 2)}]]
    with pytest.raises(ValueError, match="pooled"):
        interpolate.VelaturaSlerpConditioning.execute(a, b, 0.5, "lerp")
    ((mixed, extras),) = interpolate.VelaturaSlerpConditioning.execute(a, [[torch.ones(1, 3, 4), {}]], 0.5, "lerp")[0]
    assert torch.equal(mixed, torch.full((1, 3, 4), 0.5)) and extras == {}


def test_figures_of_a_known_difference() -> None:
    a = torch.rand(2, 16, 20, 3, generator=torch.Generator().manual_seed(0)) * 0.8
    mse, psnr, ssim, lpips, table, picture = measure.VelaturaCompareImages.execute(a, a + 0.1, 4.0).args
    assert mse == pytest.approx(0.01, rel=1e-4) and psnr == pytest.approx(20, abs=1e-3) and 0 < ssim < 1
    assert lpips == measure.NOT_MEASURED or lpips >= 0
    assert len(table.splitlines()) == 4 and "mse" in table and "mean" in table
    assert picture.shape == (2, 16, 60, 3)
    torch.testing.assert_close(picture[..., 40:, :], torch.full((2, 16, 20, 3), 0.4))
    equal = measure.VelaturaCompareImages.execute(a, a[:1].expand(2, -1, -1, -1), 4.0).args
    assert equal[0] > 0 and measure.VelaturaCompareImages.execute(a, a, 4.0).args[1:3] == (100.0, pytest.approx(1.0))


def test_pictures_too_small_for_ssim_say_so() -> None:
    tiny = torch.rand(1, 8, 8, 3)
    assert measure.VelaturaCompareImages.execute(tiny, tiny, 4.0).args[2] == measure.NOT_MEASURED


def test_pictures_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="image_b: expected image_a's size 8x8, got 9x8"):
        measure.VelaturaCompareImages.execute(torch.rand(1, 8, 8, 3), torch.rand(1, 8, 9, 3), 4.0)
    with pytest.raises(ValueError, match="image_b: expected 2 pictures"):
        measure.VelaturaCompareImages.execute(torch.rand(2, 8, 8, 3), torch.rand(3, 8, 8, 3), 4.0)
