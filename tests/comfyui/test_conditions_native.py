"""The nodes of painted maps and larger pictures in ComfyUI's process, on native models loaded in inference mode, as its
executor's are: the same numbers as in the embedded host, cancel heard within a step, and all memory given back."""

# pyright: reportMissingImports=false
from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from velatura import hosts
from velatura.core.palette import colours_of, painted
from velatura.core.protocols import Condition
from velatura.nodes import conditions, load

from .conftest import ROOT, SEMANTIC_FILE, SUPERRES_FILE
from .test_native import seeded
from .test_same_numbers import NOISE

pytestmark = pytest.mark.usefixtures("executor")

MAP, LARGE = "sprites-semantic (demo)", "sprites-superres (demo)"


@pytest.fixture
def native(host: Any, sprites_folder: Path) -> Any:
    """MODEL, CLIP, VAE."""
    return host.load_folder(sprites_folder)


def picture(side: int = 128, batch: int = 1) -> Tensor:
    """A map in stripes of the classes, every row of the batch another one."""
    patch = conditions.patch_of("classes", MAP)
    stripes = torch.arange(side)[None, :] // 16 + torch.arange(batch)[:, None]
    classes = (stripes % len(patch.classes))[:, None].expand(-1, side, -1)
    return painted(classes, colours_of(list(patch.classes.values()))).movedim(1, -1)


def told(model: Any, tile: int = 128, side: int = 128, strength: float = 1.0, batch: int = 1) -> tuple[Any, Any]:
    made = conditions.VelaturaSemanticMap.execute(model, picture(side), MAP, strength, tile, tile // 2, batch)
    return made.args[0], made.args[1]


def drawn(native: Any, model: Any, latent: dict[str, Tensor], steps: int = 2) -> Tensor:
    import nodes

    encode = nodes.CLIPTextEncode().encode
    wires = [encode(native[1], "a red ball")[0], encode(native[1], "")[0], latent]
    return nodes.KSampler().sample(model, 3, steps, 3.0, "euler", "normal", *wires)[0]["samples"]


def test_the_network_says_the_same_in_both_hosts(host: Any, native: Any, sprites_folder: Path) -> None:
    """The map and the small picture reach the network alike, whole and in tiles."""
    embedded = hosts.load("diffusers")
    image, x, t = seeded(2, 40, 40, 3).sigmoid(), seeded(2, 4, 20, 20, seed=1), torch.tensor([900, 100])
    condition = Condition(seeded(1, 32, 128, seed=2))

    def said(chosen: Any, wires: Any) -> list[Tensor]:
        hosts._chosen = chosen
        found = []
        for tile in (0, 128):
            maps = conditions.VelaturaSemanticMap.execute(wires[0], picture(160), MAP, 1.0, tile, tile // 2, 2)
            large = conditions.VelaturaSuperResolutionModel.execute(
                wires[0], wires[2], image, LARGE, 1.0, tile, tile // 2
            )
            found += [chosen.model(made.args[0]).predict_noise(x, t, condition) for made in (maps, large)]
        return found

    ours = said(host, native)
    with torch.inference_mode(False):
        theirs = said(embedded, embedded.load_folder(sprites_folder))
    hosts._chosen = host
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=NOISE)
    plain = host.model(native[0]).predict_noise(x, t, condition)
    assert all((each - plain).abs().max() > 100 * NOISE for each in ours)
    assert all((a - b).abs().max() > 100 * NOISE for a, b in ((ours[0], ours[2]), (ours[1], ours[3])))


def test_each_picture_of_a_batch_has_its_map(host: Any, native: Any) -> None:
    """Two maps, two pictures each: rows (map, picture), each as it is drawn alone."""
    import comfy.sample

    both = conditions.VelaturaSemanticMap.execute(native[0], picture(64, 2), MAP, 1.0, 0, 0, 2)
    model, latent = both.args[:2]
    assert latent["samples"].shape == (4, 4, 8, 8)
    prompt = host.conditioning(Condition(seeded(1, 32, 128, seed=2)))
    noise = comfy.sample.prepare_noise(latent["samples"], 5)

    def sample(model: Any, rows: slice) -> Tensor:
        empty = torch.zeros_like(noise[rows])
        return comfy.sample.sample(model, noise[rows], 2, 3.0, "ddim", "normal", prompt, prompt, empty, seed=5)

    together = sample(model, slice(None))
    for number, one in enumerate(picture(64, 2)):
        alone = conditions.VelaturaSemanticMap.execute(native[0], one[None], MAP, 1.0, 0, 0, 2).args[0]
        rows = slice(2 * number, 2 * number + 2)
        torch.testing.assert_close(sample(alone, rows), together[rows], rtol=0, atol=2e-3)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_weights_are_told_too(
    host: Any, native: Any, sprites_folder: Path, monkeypatch: pytest.MonkeyPatch, half: torch.dtype
) -> None:
    from comfy.cli_args import args

    whole = drawn(native, *told(native[0]))
    monkeypatch.setattr(args, "fp16_unet" if half == torch.float16 else "bf16_unet", True)
    model = host.load_folder(sprites_folder)[0]
    assert model.model_dtype() == half
    made = drawn(native, *told(model))
    error = (made - whole).abs().mean() / (drawn(native, native[0], told(native[0])[1]) - whole).abs().mean()
    assert float(error) < 0.2  # the weights' own rounding beside what the map does


def test_a_vae_of_the_stock_loader_serves(host: Any, native: Any) -> None:
    """Such a VAE does not know its own latent format: the model it serves does."""
    import copy

    stock = copy.copy(native[2])
    delattr(stock, "velatura_latent_format")
    image = seeded(1, 32, 32, 3).sigmoid()
    a, b = (
        conditions.VelaturaSuperResolutionModel.execute(native[0], vae, image, LARGE, 1.0, 128, 64).args[1]["samples"]
        for vae in (native[2], stock)
    )
    assert torch.equal(a, b)


@pytest.fixture
def shown(host: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that the progress bar shows, as the server does it: it raises where a cancel is asked for."""
    import comfy.model_management as management
    import comfy.utils

    steps: list[int] = []

    def hook(value: int, *_: Any, **__: Any) -> None:
        management.throw_exception_if_processing_interrupted()
        steps.append(value)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", hook)
    return steps


@pytest.mark.parametrize("tile", [0, 128])
def test_cancel_is_heard_within_a_step_and_within_its_tiles(
    host: Any, native: Any, shown: list[int], tile: int
) -> None:
    """A step of a large picture takes long: in tiles it is not waited for."""
    import comfy.model_management as management

    model, latent = told(native[0], tile, 256)
    ran: list[int] = []

    def cancel(*_: Any) -> None:
        ran.append(1)
        management.interrupt_current_processing()

    hook = native[0].model.diffusion_model.time_embed.register_forward_hook(cancel)
    with pytest.raises(management.InterruptProcessingException):
        drawn(native, model, latent, steps=5)
    hook.remove()
    assert len(ran) == 1 and shown == []
    assert drawn(native, model, latent).isfinite().all()  # the model goes on to work
    assert shown == [1, 2]


def test_cancel_is_heard_while_enlarging(host: Any, native: Any, shown: list[int]) -> None:
    import comfy.model_management as management

    calls: list[int] = []

    def cancel(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            management.interrupt_current_processing()

    hook = native[0].model.diffusion_model.time_embed.register_forward_hook(cancel)
    prompt = host.conditioning(host.text(native[1]).encode([""]))
    with pytest.raises(management.InterruptProcessingException):
        conditions.VelaturaSuperResolution.execute(
            native[0], native[2], seeded(1, 32, 32, 3).sigmoid(), prompt, LARGE, 1, 20, 1.0, 1.0, 128, 64
        )
    hook.remove()
    assert shown == [1] and len(calls) == 2


def test_all_memory_is_given_back(host: Any, native: Any) -> None:
    """The patch's weights come and go with the model, by ComfyUI's own management; nothing keeps them afterwards."""
    import comfy.model_management as management

    network = native[0].model.diffusion_model
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model, latent = told(native[0])
    drawn(native, model, latent)
    extra = model.get_nested_additional_models()
    assert extra and all(each.model in [one.model for one in management.loaded_models()] for each in extra)
    gone = [weakref.ref(each.model) for each in extra]
    count = tensors_alive()
    for _ in range(2):
        drawn(native, *told(native[0]))
    management.unload_all_models()
    assert management.loaded_models() == []
    del model, extra
    gc.collect()
    assert all(each() is None for each in gone)
    assert tensors_alive() <= count
    assert not any(module._forward_hooks for module in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def tensors_alive() -> int:
    gc.collect()
    return sum(isinstance(each, Tensor) for each in gc.get_objects())


def test_the_files_that_ship_are_these() -> None:
    assert {name for _, name in conditions.DEMO.values()} == {SEMANTIC_FILE, SUPERRES_FILE}
    assert load.DEMO_MODELS == ROOT / "demo" / "models"
