"""The nodes that draw layers together, on the demo model with random LoRAs, in the embedded host. A failure means that
a layer does not see the other one, that a given one changes, or that a wrong input passes in silence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from velatura.core.layers import Layer, Layers
from velatura.core.transparency import Convention, TransparencyDecoder
from velatura.hosts import folders, running
from velatura.hosts import load as load_host
from velatura.nodes.joint_layers import VelaturaConditionOnLayer, VelaturaJointLayers, VelaturaShareAttention
from velatura.nodes.layer_patch import VelaturaLayerPrompts
from velatura.nodes.layer_stack import VelaturaLayerStack
from velatura.nodes.transparency import Transparency
from velatura.runtime.stock.sampling import KSampler

HOST = load_host("diffusers")
NAME = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
DRAW = {"seed": 3, "steps": 2, "cfg": 3.0}


def lora(seed: int, width: int = 160, name: str = NAME) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}.lora_up.weight": torch.randn(width, 2, generator=generator),
        f"{name}.lora_down.weight": torch.randn(2, width, generator=generator) / 4,
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    (root / "loras").mkdir()
    save_file(lora(1), root / "loras" / "front.safetensors")
    save_file(lora(2), root / "loras" / "back.safetensors")
    save_file(lora(1, 320), root / "loras" / "wide.safetensors")
    save_file({"lora_te_x.lora_up.weight": torch.ones(2, 2), "lora_te_x.lora_down.weight": torch.ones(2, 2)},
              root / "loras" / "text.safetensors")  # fmt: skip
    return root


@pytest.fixture(autouse=True)
def places(models: Path, tmp_path: Path) -> Iterator[None]:
    with folders.using(folders.Folders(models=models, output=tmp_path)):
        yield


@pytest.fixture(scope="module")
def wires(random_folder: Path) -> dict[str, Any]:
    model, clip, vae = HOST.load_folder(random_folder)
    text = HOST.text(clip)
    ball, meadow, empty = (HOST.conditioning(text.encode([each])) for each in ("a red ball", "a meadow", ""))
    return {"model": model, "vae": vae, "ball": ball, "meadow": meadow, "empty": empty}


FILES = {"foreground_lora": "front.safetensors", "background_lora": "back.safetensors"}


def joint(wires: dict[str, Any], batch: int = 1, **more: Any) -> list[torch.Tensor]:
    size = {"samples": torch.zeros(batch, 4, 8, 12)}
    given = (wires["model"], wires["ball"], wires["meadow"], wires["empty"], size)
    return [each["samples"] for each in VelaturaJointLayers.execute(*given, **FILES | DRAW | more).args]


def conditioned(wires: dict[str, Any], given: torch.Tensor, layer: str = "foreground", **more: Any) -> torch.Tensor:
    wired = (wires["model"], wires["meadow"], wires["empty"], {"samples": given}, layer)
    return VelaturaConditionOnLayer.execute(*wired, **FILES | DRAW | more).args[0]["samples"]


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float((a - b).abs().max()) > 1e-3


def test_a_seed_is_a_pair_of_layers_whatever_the_batch(wires: dict[str, Any]) -> None:
    first, again, two, other = joint(wires), joint(wires), joint(wires, 2), joint(wires, seed=4)
    assert [each.shape for each in two] == [(2, 4, 8, 12)] * 2
    for layer in range(2):
        assert torch.equal(first[layer], again[layer])
        torch.testing.assert_close(two[layer][:1], first[layer], rtol=0, atol=1e-3)
        assert differ(first[layer], other[layer]) and differ(two[layer][0], two[layer][1])


def test_the_layers_see_each_other_and_apart_they_do_not(wires: dict[str, Any]) -> None:
    swapped = {**wires, "meadow": wires["empty"]}
    assert differ(joint(wires)[0], joint(swapped)[0])  # another background, another foreground
    apart = [joint(each, shared=False)[0] for each in (wires, swapped)]
    torch.testing.assert_close(*apart, rtol=0, atol=1e-4)


def test_each_layers_lora_is_its_own(wires: dict[str, Any]) -> None:
    base = joint(wires, shared=False, foreground_lora="none", background_lora="none")
    front, back = joint(wires, shared=False, background_lora="none")
    assert differ(front, base[0])
    torch.testing.assert_close(back, base[1], rtol=0, atol=1e-4)
    off = joint(wires, shared=False, strength=0.0)
    torch.testing.assert_close(off[0], base[0], rtol=0, atol=1e-4)


def test_previews_show_both_layers_and_cancel_stops(wires: dict[str, Any]) -> None:
    shown: list[Any] = []

    def sink(total: int) -> Any:
        return lambda step, total, preview=None: shown.append((step, total, preview.shape))

    with running.reporting(sink):
        joint(wires)
    assert shown == [(1, 2, (3, 8, 24)), (2, 2, (3, 8, 24))]

    def stop(total: int) -> Any:
        def cancelled(*_: Any) -> None:
            raise running.Interrupted

        return cancelled

    with running.reporting(stop), pytest.raises(running.Interrupted):
        joint(wires, steps=500)


@pytest.mark.parametrize("layer", ["foreground", "background"])
def test_a_given_layer_decides_on_the_other(wires: dict[str, Any], layer: str) -> None:
    given = [5 * torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(2)]
    before = given[0].clone()
    made = [conditioned(wires, each, layer) for each in given]
    assert made[0].shape == given[0].shape and differ(*made) and torch.equal(given[0], before)
    assert differ(made[0], conditioned(wires, given[0], layer, given_positive=wires["ball"]))


def test_the_stock_sampler_draws_layers_together(wires: dict[str, Any]) -> None:
    how = {"seed": 1, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    model = VelaturaShareAttention.execute(wires["model"], *FILES.values()).args[0]

    def sampled(model: Any, behind: Any, batch: int = 2) -> torch.Tensor:
        prompts = VelaturaLayerPrompts.execute(wires["ball"], behind).args[0]
        latent = {"samples": torch.zeros(batch, 4, 8, 8)}
        wired = {"positive": prompts, "negative": wires["empty"], "latent_image": latent}
        return KSampler.execute(model=model, **wired, **how).args[0]["samples"]

    one, other = (sampled(model, behind)[0] for behind in (wires["meadow"], wires["ball"]))
    assert differ(one, other)  # the foreground sees another background
    apart = [sampled(wires["model"], behind)[0] for behind in (wires["meadow"], wires["ball"])]
    torch.testing.assert_close(*apart, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="multiples of 2"):
        sampled(model, wires["meadow"], 3)


def test_what_cannot_be_is_refused_by_name(wires: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"layer 1.*another model family|LoRA: .*another model family"):
        joint(wires, foreground_lora="wide.safetensors")
    with pytest.raises(ValueError, match="nothing for the UNet"):
        joint(wires, background_lora="text.safetensors")
    with pytest.raises(ValueError, match="positive"):
        conditioned({**wires, "meadow": [*wires["meadow"], *wires["ball"]]}, torch.zeros(1, 4, 8, 8))
    controlled = [[wires["ball"][0][0], {"control": object()}]]
    with pytest.raises(ValueError, match="foreground: a ControlNet"):
        joint({**wires, "ball": controlled})
    with pytest.raises(ValueError, match="clean"):
        conditioned(wires, torch.zeros(1, 16, 8, 8))


@pytest.fixture(scope="module")
def transparency() -> Transparency:
    network = TransparencyDecoder((8, 8, 8, 8), 4, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, each in network.state_dict().items():
            each.copy_(0.1 * torch.randn(each.shape, generator=generator) + ("norm" in name and "weight" in name))
    return Transparency(None, HOST.network(network.eval()), Convention())


def stack(wires: dict[str, Any], transparency: Transparency, layers: Layers, **more: Any) -> Any:
    given = (wires["model"], transparency, wires["vae"], layers, wires["ball"], wires["empty"])
    return VelaturaLayerStack.execute(*given, **FILES | DRAW | more)


def canvas(value: float = 0.2, batch: int = 1) -> Layers:
    colour = torch.full((batch, 3, 60, 64), value)
    return Layers(60, 64, (Layer("paper", colour, torch.ones_like(colour[:, :1])),))


def test_a_layer_is_added_to_those_below(wires: dict[str, Any], transparency: Transparency) -> None:
    made, image, mask, rgba = stack(wires, transparency, canvas(), name=" ball ", opacity=0.5, x=4, blend="screen").args
    paper, ball = made.layers
    assert paper.name == "paper" and (ball.name, ball.opacity, ball.x, ball.blend) == ("ball", 0.5, 4, "screen")
    assert image.shape == (1, 60, 64, 3) and mask.shape == (1, 60, 64) and rgba.shape == (1, 60, 64, 4)
    torch.testing.assert_close(rgba[..., 3], ball.alpha[:, 0])
    flat, _ = made.flatten()
    torch.testing.assert_close(image, flat.movedim(1, -1))


def test_a_layer_sees_what_is_below_and_not_what_is_above(wires: dict[str, Any], transparency: Transparency) -> None:
    above = Layer("top", torch.full((1, 3, 20, 20), 0.9), torch.ones(1, 1, 20, 20))
    one, other = canvas(0.2), canvas(0.8)
    alone = stack(wires, transparency, one).args[3]
    assert differ(alone, stack(wires, transparency, other).args[3])
    under = stack(wires, transparency, one.added(above), place=1)
    torch.testing.assert_close(under.args[3], alone, rtol=0, atol=1e-5)
    assert [each.name for each in under.args[0].layers] == ["paper", "layer", "top"]
    assert differ(alone, stack(wires, transparency, one.added(above)).args[3])


def test_a_batch_of_pictures_gets_a_layer_each(wires: dict[str, Any], transparency: Transparency) -> None:
    made, image, *_ = stack(wires, transparency, canvas(batch=2)).args
    assert made.batch() == len(image) == 2 and differ(made.layers[1].colour[0], made.layers[1].colour[1])


def test_a_place_beyond_the_layers_is_refused(wires: dict[str, Any], transparency: Transparency) -> None:
    with pytest.raises(ValueError, match="place: expected at most 1"):
        stack(wires, transparency, canvas(), place=2)
