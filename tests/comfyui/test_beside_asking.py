"""The nodes that ask the network themselves beside what remembers, cuts or chooses at random, and beside our own maps:
they hear it, or say that they cannot; on models that are partly loaded, and in batches."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from . import beside
from .beside import Other, Scene, close, differ, seeded, start
from .matrix import refused, works
from .test_beside_engine import BOTH_WAYS as ASKING
from .test_beside_engine import (
    DRAG,
    DRAW,
    IMAGE,
    TOOLS,
    condition_on_layer,
    drag,
    identity,
    invert,
    joint,
    morph,
    null_text,
    train,
)
from .test_beside_samplers import patch, spatial, tiled
from .test_beside_training import RANDOM, same_draws
from .trainers import distill, smooth

pytestmark = pytest.mark.usefixtures("executor")

Tool = Callable[[Scene, Any], Tensor]


@pytest.mark.parametrize(
    "tool",
    [
        pytest.param(each, id=each.__name__, marks=works(TOOLS[each], "lcm_levels"))
        for each in (joint, condition_on_layer, invert, null_text, morph, drag, identity)
    ],
)
def test_the_levels_of_lcm_are_the_schedule(host: Any, plain: Any, vae: Any, tool: Tool, folders: None) -> None:
    made = tool(beside.lcm_levels(start(plain), 1.0), vae)
    # Of two steps over a thousand levels, and over every twentieth of them, Joint Layers takes the same.
    assert differ(made, tool(start(plain), vae)) == (tool is not joint)
    with pytest.MonkeyPatch.context() as longer:
        longer.setitem(DRAW, "steps", 3)
        assert tool is not joint or differ(joint(beside.lcm_levels(start(plain), 1.0), vae), joint(start(plain), vae))


CUT = "model: a patch on it cuts attention into tiles"


@pytest.mark.parametrize("tool", [pytest.param(drag, marks=refused("drag", "hyper_tile")), condition_on_layer])
def test_tiles_of_attention_are_not_for_what_joins_it(
    host: Any, plain: Any, vae: Any, folders: None, tool: Tool
) -> None:
    with pytest.raises(ValueError, match=CUT):
        tool(beside.hyper_tile(start(plain), 1.0), vae)


NETWORK = [(tool, beside.hyper_tile) for tool in (invert, null_text, morph, identity)]
NETWORK += [(tool, beside.token_merging) for tool in (joint, condition_on_layer, drag, identity)]
NETWORK += [(tool, beside.deep_cache) for tool in (joint, condition_on_layer, invert, morph)]
REMEMBERED = "as good as the cache; where gradients are needed, as for null text, it is refused"
SAID = {
    (identity, beside.hyper_tile): None,
    (invert, beside.deep_cache): REMEMBERED,
    (joint, beside.token_merging): RANDOM,
    (drag, beside.token_merging): RANDOM,
}
"""A remark in the table; None for what is no cell of it."""


def networks() -> Iterator[Any]:
    for tool, other in NETWORK:
        note = SAID.get((tool, other), "")
        marks = () if note is None else works(TOOLS[tool], other.__name__, note)
        yield pytest.param(tool, other, id=f"{tool.__name__}-{other.__name__}", marks=marks)


@pytest.mark.parametrize(("tool", "other"), list(networks()))
def test_what_changes_the_network_is_heard(
    host: Any, plain: Any, vae: Any, folders: None, tool: Tool, other: Other
) -> None:
    made = same_draws(tool, other(start(plain), 1.0), vae)
    assert differ(made, same_draws(tool, start(plain), vae))
    close(same_draws(tool, other(start(plain), 1.0), vae), made)


@pytest.mark.parametrize(
    "tool",
    [
        pytest.param(drag, marks=refused("drag", "deep_cache")),
        pytest.param(train, marks=refused("train", "deep_cache")),
        distill,
        null_text,
    ],
)
def test_what_is_remembered_has_no_gradients(host: Any, plain: Any, vae: Any, folders: None, tool: Tool) -> None:
    with pytest.raises(ValueError, match=r"answers from memory .*connect the model from before it"):
        tool(beside.deep_cache(start(plain), 1.0), vae)


@pytest.mark.parametrize("tool", [pytest.param(invert, marks=refused("invert", "token_merging", RANDOM)), morph])
def test_no_inversion_comes_back_from_a_random_choice(host: Any, plain: Any, vae: Any, tool: Tool) -> None:
    """Each call merges other tokens: it is another model that is asked on the way back, and that is said."""
    with pytest.raises(ValueError, match="inversion: it was made with another model"):
        tool(beside.token_merging(start(plain), 1.0), vae)


def on(ours: Any, host: Any) -> Other:
    return lambda scene, strength: scene._replace(model=ours(host, scene.model, strength))


TOLD = [(tool, spatial) for tool in (*ASKING, condition_on_layer, null_text, morph, smooth, distill)]
TOLD += [(tool, tiled) for tool in (joint, invert, null_text, train, smooth)]


@pytest.mark.parametrize(("tool", "ours"), TOLD, ids=lambda each: each.__name__)
def test_a_model_that_is_told_a_map_is_asked_with_it(
    host: Any, plain: Any, vae: Any, folders: None, tool: Tool, ours: Any
) -> None:
    assert differ(tool(on(ours, host)(start(plain), 1.0), vae), tool(start(plain), vae))


def two_hints(scene: Scene, strength: float) -> Scene:
    """A ControlNet with a picture for each of two latents."""
    import nodes

    net, hints = beside.control_net(), seeded(2, 128, 128, 3, seed=41).clamp(0, 1)
    sides = nodes.ControlNetApplyAdvanced().apply_controlnet(scene.positive, scene.negative, net, hints, 1.0, 0, 1)
    return scene._replace(positive=sides[0], negative=sides[1])


def two_maps(host: Any, model: Any, strength: float) -> Any:
    return host.with_layer_patch(model, patch(16), strength, 0.0, 1.0, seeded(2, 12, 16, 16, seed=60))


@pytest.mark.parametrize("tool", [train, smooth, distill, drag, identity], ids=lambda each: each.__name__)
def test_a_picture_for_each_latent_is_refused_where_they_come_in_another_order(
    host: Any, plain: Any, vae: Any, folders: None, tool: Tool
) -> None:
    """A training shuffles its latents, and a drag takes them one by one: they would get each other's map."""
    for scene in (two_hints(start(plain), 1.0), on(two_maps, host)(start(plain), 1.0)):
        with pytest.raises(ValueError, match="told of 2 pictures"):
            tool(scene, vae)


def test_an_inversion_keeps_the_order(host: Any, plain: Any, vae: Any) -> None:
    for scene in (two_hints(start(plain), 1.0), on(two_maps, host)(start(plain), 1.0)):
        assert differ(invert(scene, vae), invert(start(plain), vae))


def test_a_drag_in_tiles_is_refused(host: Any, plain: Any, vae: Any) -> None:
    """It would read the features of the last tile."""
    with pytest.raises(ValueError, match="reads features of the whole picture; set tile to 0"):
        drag(on(tiled, host)(start(plain), 1.0), vae)


# --- Partly loaded, and in batches. -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short(host: Any) -> Any:
    """The same MODEL, on a device with little room: loaded by ComfyUI's own partial loading, where it is not asked for
    the whole (it then asks for more than there is anywhere)."""
    import comfy.model_patcher

    class Short(comfy.model_patcher.ModelPatcher):
        def partially_load(self, device_to: Any, extra_memory: int = 0, force_patch_weights: bool = False) -> Any:
            room = extra_memory if extra_memory > 10**20 else min(extra_memory, 300_000)
            return super().partially_load(device_to, room, force_patch_weights)

    with torch.inference_mode():
        model, cpu = beside.network().model, torch.device("cpu")
        return Short(model, load_device=cpu, offload_device=cpu)


@pytest.mark.parametrize(
    "tool",
    [
        pytest.param(drag, marks=works("drag", "partly_loaded")),
        pytest.param(train, marks=works("train", "partly_loaded")),
        identity,
        smooth,
        null_text,
    ],
)
def test_gradients_are_those_of_the_whole_model(
    host: Any, plain: Any, short: Any, vae: Any, folders: None, tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    management.unload_all_models()
    # On a CPU ComfyUI loads all models whole.
    monkeypatch.setattr(management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(management, "vram_state", management.VRAMState.NORMAL_VRAM)
    beside.sample(start(short))
    assert short.model.model_lowvram
    made, expected = (tool(beside.stock_lora(start(model), 1.0), vae) for model in (short, plain))
    close(made, expected)


@works("drag", "batches")
def test_a_batch_of_drags_is_its_drags(host: Any, plain: Any, vae: Any) -> None:
    from velatura.core.points import Points
    from velatura.nodes import drag as drag_nodes

    pictures = torch.cat([IMAGE, seeded(1, 128, 128, 3, seed=73).sigmoid()])
    points = Points(torch.tensor([[20.0, 20.0]]), torch.tensor([[40.0, 20.0]]), 128, 128)
    scene = start(plain)

    def dragged(image: Tensor) -> Tensor:
        made = drag_nodes.VelaturaDrag.execute(scene.model, scene.positive, vae, points, **DRAG, image=image)
        return made.args[1]["samples"]

    together = dragged(pictures)
    close(torch.cat([dragged(each) for each in pictures.split(1)]), together)
    assert differ(together[:1], together[1:])
