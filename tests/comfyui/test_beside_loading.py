"""Ours on models that are not wholly loaded, as ComfyUI leaves them where memory is short: weights that stay behind are
fetched, and patched, at each use. The same numbers as of the whole model."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from . import beside
from .beside import Scene, close, differ, start
from .matrix import works
from .test_beside_engine import X, asked
from .test_beside_samplers import TOOL, Ours, given, guidance, lora, share, spatial, tiled, told_frames, whole

pytestmark = pytest.mark.usefixtures("executor")

ROOM = 300_000
"""Bytes of weights that are loaded; the rest stays behind."""


@pytest.fixture(scope="module")
def short(host: Any) -> Any:
    """The same MODEL on a device with room for ROOM bytes of it, loaded by ComfyUI's own partial loading."""
    import comfy.model_patcher

    class Short(comfy.model_patcher.ModelPatcher):
        def partially_load(self, device_to: Any, extra_memory: int = 0, force_patch_weights: bool = False) -> Any:
            return super().partially_load(device_to, min(extra_memory, ROOM), force_patch_weights)

    with torch.inference_mode():
        model, cpu = beside.network().model, torch.device("cpu")
        return Short(model, load_device=cpu, offload_device=cpu)


def left_behind(model: Any) -> int:
    return sum(bool(getattr(each, "weight_function", None)) for each in model.model.modules())


LOADED = (lora, guidance, whole, given, told_frames, share, spatial, tiled)


@pytest.mark.parametrize(
    "ours",
    [pytest.param(each, id=each.__name__, marks=works(TOOL[each], "partly_loaded")) for each in LOADED],
)
def test_samplers_draw_the_same_from_a_model_that_is_partly_loaded(
    host: Any, plain: Any, short: Any, ours: Ours
) -> None:
    drawn = []
    for model in (plain, short):
        scene = beside.stock_lora(start(model), 1.0)
        drawn.append(beside.sample(scene._replace(model=ours(host, scene.model, 1.0))))
        assert bool(left_behind(model)) == (model is short) == bool(model.model.model_lowvram)
    close(*drawn)
    assert differ(drawn[1], beside.sample(start(short)))


@works("joint", "partly_loaded")
@works("invert", "partly_loaded", "null text, Drag and the trainers, which need gradients, load the whole model")
def test_the_engine_hears_the_same_from_a_model_that_is_partly_loaded(host: Any, plain: Any, short: Any) -> None:
    said = [asked(host, beside.stock_lora(start(model), 1.0)) for model in (plain, short)]
    assert short.model.model_lowvram and not plain.model.model_lowvram
    for a, b in zip(*said, strict=True):
        close(b, a)


def test_gradients_load_the_whole_model(host: Any, short: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOM", 10**12)
    model = host.engine(beside.stock_lora(start(short), 1.0).model, guided=False)
    with model.differentiable():
        x = X.clone().requires_grad_()
        eps = model.predict_noise(x, torch.tensor(500), host.condition(beside.prompt(1)))
        (slope,) = torch.autograd.grad(eps.sum(), x)
    assert not short.model.model_lowvram and bool(slope.isfinite().all())


BATCHED = (lora, guidance, whole, given, told_frames, share, spatial, tiled)


@pytest.mark.parametrize(
    "ours", [pytest.param(each, id=each.__name__, marks=works(TOOL[each], "batches")) for each in BATCHED]
)
def test_a_batch_is_its_samples(host: Any, plain: Any, ours: Ours) -> None:
    """Two samples of two rows drawn at once are those drawn one by one, each under its own prompts."""
    import comfy.sample

    model = ours(host, beside.stock_lora(start(plain), 1.0).model, 1.0)
    whole_batch = Scene(model, beside.prompt(1, 4), beside.prompt(2, 4), {"samples": torch.zeros(4, 4, 16, 16)})
    noise = comfy.sample.prepare_noise(whole_batch.latent["samples"], 5)

    def drawn(rows: slice) -> Tensor:
        sides = ([[side[0][0][rows], {}]] for side in (whole_batch.positive, whole_batch.negative))
        return comfy.sample.sample(
            model, noise[rows], 2, 3.0, "euler", "normal", *sides, whole_batch.latent["samples"][rows], seed=5
        )

    together = drawn(slice(None))
    close(torch.cat([drawn(slice(0, 2)), drawn(slice(2, 4))]), together)
    assert differ(together[2:], together[:2])


@works("joint", "batches")
@works("invert", "batches")
def test_the_engine_takes_batches(host: Any, plain: Any) -> None:
    model, sides = host.engine(plain), beside.prompt(1, 2)[0][0]
    together = model.predict_noise(X, torch.tensor([801, 301]), host.condition([[sides, {}]]))
    for row, t in enumerate((801, 301)):
        alone = model.predict_noise(X[row : row + 1], torch.tensor([t]), host.condition([[sides[row : row + 1], {}]]))
        close(together[row : row + 1], alone)
