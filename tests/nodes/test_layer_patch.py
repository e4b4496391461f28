"""The nodes of layer patches, on the demo model in the embedded host. A failure means that a file is applied otherwise
than it says, or that a wrong one passes in silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from velatura.core.frame_patch import FramePatch
from velatura.core.layer_patch import read_layer_patch
from velatura.hosts import folders
from velatura.hosts import load as load_host
from velatura.nodes.layer_patch import VelaturaApplyTransparency, VelaturaLayerPrompts, VelaturaLoadLayerPatch
from velatura.runtime.stock.sampling import KSampler

HOST = load_host("diffusers")
QUERY = "diffusion_model.input_blocks.3.1.transformer_blocks.0.attn1.to_q.weight"
FIRST = "diffusion_model.input_blocks.0.0.weight"


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


ATTENTION = {f"{QUERY}::lora::0": random(160, 2), f"{QUERY}::lora::1": random(2, 160) / 4}
FILES = {
    "layer_model/attn": ATTENTION,
    "layer_model/told": {f"{FIRST}::diff::0": random(96, 8, 3, 3) / 9},
    "layer_model/twice": {f"{FIRST}::diff::0": random(96, 12, 3, 3) / 9},
    "layer_model/sdxl": {f"{QUERY}::lora::0": random(640, 2), f"{QUERY}::lora::1": random(2, 640)},
    "layer_model/vae": {"conv_in.weight": random(4, 4, 3, 3)},
    "loras/plain": {
        "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q.lora_up.weight": ATTENTION[f"{QUERY}::lora::0"],
        "lora_unet_input_blocks_3_1_transformer_blocks_0_attn1_to_q.lora_down.weight": ATTENTION[f"{QUERY}::lora::1"],
    },
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name, tensors in FILES.items():
        path = root / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file(tensors, path)
    return root


@pytest.fixture(autouse=True)
def places(models: Path) -> Iterator[None]:
    with folders.using(folders.Folders(models=models)):
        yield


@pytest.fixture(scope="module")
def wires(random_folder: Path) -> dict[str, Any]:
    model, clip, _ = HOST.load_folder(random_folder)
    ball, empty = (HOST.conditioning(HOST.text(clip).encode([each])) for each in ("a red ball", ""))
    return {"model": model, "ball": ball, "empty": empty}


def loaded(name: str) -> Any:
    return VelaturaLoadLayerPatch.execute(f"{name}.safetensors").args[0]


def applied(wires: dict[str, Any], name: str, strength: float = 1.0, end: float = 1.0, **given: Any) -> Any:
    return VelaturaApplyTransparency.execute(wires["model"], loaded(name), strength, 0.0, end, **given).args[0]


def sampled(wires: dict[str, Any], model: Any, batch: int = 1) -> torch.Tensor:
    latent = {"samples": torch.zeros(batch, 4, 8, 8)}
    how = {"seed": 1, "steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    done = KSampler.execute(model=model, positive=wires["ball"], negative=wires["empty"], latent_image=latent, **how)
    return done.args[0]["samples"]


def latent(value: float, size: int = 8) -> dict[str, Any]:
    return {"samples": value * random(1, 4, size, size)}


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) > 1e-3


def test_a_released_sd15_file_is_told_by_its_keys(wires: dict[str, Any], models: Path) -> None:
    path = models / "layer_model" / "sd15.safetensors"
    pairs = [(16, 16), (16, 24)] * 16
    for told in (False, True):
        network = FramePatch(pairs, 2, 4, told)
        save_file(network.state_dict(), path)
        patch = loaded("layer_model/sd15")
        assert isinstance(patch.patch, FramePatch) and (patch.patch.frames, patch.patch.told) == (2, told)
        message = "told of a given layer" if told else "another model family"
        with pytest.raises(ValueError, match=f"sd15.safetensors: .*{message}"):
            applied(wires, "layer_model/sd15")
    with pytest.raises(ValueError, match=r"given: the SD 1\.5 patches"):
        applied(wires, "layer_model/sd15", given=latent(1.0))
    with pytest.raises(ValueError, match="given_image: this patch is told of latents"):
        applied(wires, "layer_model/told", given_image=torch.zeros(1, 64, 64, 3))
    save_file({"hookers.layers.0.to_q_lora.0.down.weight": torch.ones(2, 2)}, path)
    with pytest.raises(ValueError, match=r"sd15.safetensors: patch: .*is missing"):
        loaded("layer_model/sd15")


def test_a_batch_has_a_prompt_for_each_layer(wires: dict[str, Any]) -> None:
    joined = VelaturaLayerPrompts.execute(wires["ball"], wires["empty"], None).args[0]
    both = sampled({**wires, "ball": joined}, wires["model"], 4)
    for prompt, rows in ((wires["ball"], slice(0, 4, 2)), (wires["empty"], slice(1, 4, 2))):
        alone = sampled({**wires, "ball": prompt}, wires["model"], 4)
        torch.testing.assert_close(both[rows], alone[rows], rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="layer_1: expected one prompt"):
        VelaturaLayerPrompts.execute([*wires["ball"], *wires["empty"]], wires["empty"], None)


def test_files_are_offered_and_every_key_is_used() -> None:
    options = VelaturaLoadLayerPatch.define_schema().inputs[0].options["options"]
    assert {"layer_model/attn.safetensors", "loras/plain.safetensors"} <= set(options)
    assert [len(loaded(name).patch) for name in ("layer_model/attn", "layer_model/told", "loras/plain")] == [1, 1, 1]


def test_the_stock_sampler_draws_with_the_patch_and_the_model_stays(wires: dict[str, Any]) -> None:
    before = sampled(wires, wires["model"])
    patched = sampled(wires, applied(wires, "layer_model/attn"))
    assert differ(patched, before) and torch.equal(sampled(wires, wires["model"]), before)
    torch.testing.assert_close(sampled(wires, applied(wires, "loras/plain")), patched, rtol=0, atol=1e-4)
    torch.testing.assert_close(sampled(wires, applied(wires, "layer_model/attn", 0.0)), before, rtol=0, atol=1e-4)


def test_a_patch_that_stops_at_once_is_the_model_itself(wires: dict[str, Any]) -> None:
    before, whole = sampled(wires, wires["model"]), sampled(wires, applied(wires, "layer_model/attn"))
    part = sampled(wires, applied(wires, "layer_model/attn", end=0.3))  # the first of three steps
    assert differ(part, before) and differ(part, whole)
    torch.testing.assert_close(sampled(wires, applied(wires, "layer_model/attn", end=0.0)), before, rtol=0, atol=0)


def test_given_layers_decide_on_the_picture(wires: dict[str, Any]) -> None:
    one, other = (sampled(wires, applied(wires, "layer_model/told", given=latent(v))) for v in (1.0, 2.0))
    assert differ(one, other)
    two = applied(wires, "layer_model/twice", given=latent(1.0), given_blend=latent(2.0))
    swapped = applied(wires, "layer_model/twice", given=latent(2.0), given_blend=latent(1.0))
    assert differ(sampled(wires, two), sampled(wires, swapped))
    batch = sampled(wires, applied(wires, "layer_model/told", given=latent(1.0)), 2)
    torch.testing.assert_close(batch[:1], one, rtol=0, atol=1e-3)


def test_what_cannot_be_is_refused_by_name(wires: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"sdxl.safetensors: .*another model family"):
        applied(wires, "layer_model/sdxl")
    with pytest.raises(ValueError, match=r"vae.safetensors: .*expected a released layer file"):
        loaded("layer_model/vae")
    with pytest.raises(ValueError, match=r"takes 1 given.*connect"):
        applied(wires, "layer_model/told")
    with pytest.raises(ValueError, match="takes 0 given"):
        applied(wires, "layer_model/attn", given=latent(1.0))
    with pytest.raises(ValueError, match="given: expected"):
        applied(wires, "layer_model/told", given_blend=latent(1.0))
    with pytest.raises(ValueError, match="one size"):
        applied(wires, "layer_model/twice", given=latent(1.0), given_blend=latent(1.0, 16))
    with pytest.raises(ValueError, match="given layer"):
        sampled(wires, applied(wires, "layer_model/told", given=latent(1.0, 16)))
    with pytest.raises(ValueError, match="start_percent"):
        VelaturaApplyTransparency.execute(wires["model"], loaded("layer_model/attn"), 1.0, 0.6, 0.5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["diffusion_model.out.2.weight::lora::0"], "no down factor"),
        (["diffusion_model.out.2.weight::loha::0"], "no known kind"),
        (["diffusion_model.out.2.weight::diff"], "no known layout"),
        (["model.out.2.weight::diff::0"], "no known layout"),
        ([], "no tensor at all"),
    ],
)
def test_a_broken_file_says_what_is_wrong(keys: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_layer_patch({key: torch.ones(2, 2) for key in keys})
