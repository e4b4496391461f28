"""The nodes that ask the network themselves, in place of a sampler, beside other people's: they hear all that ComfyUI's
samplers would tell it, for the prompt and for the negative one, or say what they do not hear."""

# pyright: reportMissingImports=false
from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from velatura.core.points import Points
from velatura.core.protocols import Condition

from . import beside
from .beside import Other, Scene, close, differ, seeded, start
from .matrix import refused, works
from .test_beside_samplers import frames, given, lora, share

pytestmark = pytest.mark.usefixtures("executor")

LAYERED = "one that draws layers together (Share Attention, SD 1.5's form of several layers) is refused"

X, T = seeded(2, 4, 16, 16, seed=71), torch.tensor([801, 301])
IMAGE = seeded(1, 128, 128, 3, seed=72).sigmoid()


def theirs(scene: Scene, x: Tensor, t: Tensor) -> list[Tensor]:
    """eps for both prompts as ComfyUI's samplers get it, from the same variance-preserving latent."""
    import comfy.model_management
    import comfy.sampler_helpers
    import comfy.samplers

    model = scene.model.model
    convert = comfy.sampler_helpers.convert_cond
    conds = {"positive": convert(scene.positive), "negative": convert(scene.negative)}
    extra = comfy.sampler_helpers.get_additional_models(conds, torch.float32)[0]
    comfy.model_management.load_models_gpu([scene.model, *extra])
    conds = comfy.samplers.process_conds(model, x, conds, x.device, torch.zeros_like(x))
    scene.model.pre_run()
    found = []
    for each, at in zip(x.split(1), t.split(1), strict=True):
        sigma = model.model_sampling.sigma(at)
        column = sigma[:, None, None, None]
        x_ve = each * (1 + column**2).sqrt()
        sides = [conds["positive"], conds["negative"]]
        x_0 = comfy.samplers.calc_cond_batch(model, sides, x_ve, sigma, scene.model.model_options)
        found.append(torch.cat([(x_ve - side) / column for side in x_0]))
    scene.model.cleanup()
    return [torch.stack(side) for side in zip(*found, strict=True)]


def asked(host: Any, scene: Scene) -> list[Tensor]:
    """The same from the engine."""
    model = host.engine(scene.model)
    sides = host.condition(scene.positive), host.negative(scene.negative, scene.positive)
    return [torch.cat([model.predict_noise(x, t, side) for x, t in zip(X.split(1), T.split(1), strict=True)])
            for side in sides]  # fmt: skip


def control_for_both(scene: Scene, strength: float) -> Scene:
    """The stock node that puts a ControlNet on the positive prompt and means both."""
    import nodes

    hint = seeded(1, 128, 128, 3, seed=41).clamp(0, 1)
    (positive,) = nodes.ControlNetApply().apply_controlnet(scene.positive, beside.control_net(), hint, strength)
    return scene._replace(positive=positive)


NETWORK: tuple[Other, ...] = (
    beside.stock_lora, beside.controlnet, control_for_both, beside.ip_adapter, beside.ip_adapter_at_depths,
    beside.zero_snr, beside.free_u, beside.free_u_v2, beside.scaled,
)  # fmt: skip
"""What changes the network's answers."""


@pytest.mark.parametrize("other", [*NETWORK, beside.lcm_levels], ids=lambda other: other.__name__)
def test_the_engine_hears_what_samplers_tell_the_network(host: Any, plain: Any, other: Other) -> None:
    scene = other(start(plain), 1.0)
    steps = T // 20 if other is beside.lcm_levels else T  # places in its own schedule
    model, x = host.engine(scene.model), X
    sides = host.condition(scene.positive), host.negative(scene.negative, scene.positive)
    sampling = scene.model.get_model_object("model_sampling")
    same = sampling.timestep(model.schedule.sigma(steps).float())
    for side, expected in zip(sides, theirs(scene, x, same), strict=True):
        found = torch.cat([model.predict_noise(a, t, side) for a, t in zip(x.split(1), steps.split(1), strict=True)])
        close(found, expected)
    unpatched = theirs(start(plain), x, T)
    if other is not beside.lcm_levels:
        assert all(differ(a, b) for a, b in zip(asked(host, scene), unpatched, strict=True))


def test_adapters_know_the_negative_prompt(host: Any, plain: Any) -> None:
    scene = beside.ip_adapter(start(plain), 1.0)
    replaced = scene.model.model_options["transformer_options"]["patches_replace"]["attn2"]
    asked(host, scene)
    assert {tuple(each.sides) for each in replaced.values()} == {(0, 0, 1, 1)}


# --- The nodes. -------------------------------------------------------------------------------------------------------

Tool = Callable[[Any, Scene, Any], Tensor]
"""A node of ours: (its module's classes by name, the scene, a VAE) -> what it made."""


def nodes(name: str) -> Any:
    return importlib.import_module(f"velatura.nodes.{name}")


DRAW = {"seed": 3, "steps": 2, "cfg": 3.0, "foreground_lora": "none", "background_lora": "none"}


def joint(scene: Scene, vae: Any) -> Tensor:
    wires = {"foreground": scene.positive, "background": beside.prompt(9), "negative": scene.negative}
    made = nodes("joint_layers").VelaturaJointLayers.execute(scene.model, **wires, latent_image=scene.latent, **DRAW)
    return torch.cat([each["samples"] for each in made.args])


def condition_on_layer(scene: Scene, vae: Any) -> Tensor:
    made = nodes("joint_layers").VelaturaConditionOnLayer.execute(
        scene.model, scene.positive, scene.negative, {"samples": X}, "foreground", **DRAW
    )
    return made.args[0]["samples"]


INVERT = {
    "steps": 2, "guidance": 3.0, "seed": 0, "noised_steps": 0, "tolerance": 0.0, "iterations": 1, "corrected": False,
}  # fmt: skip


def invert(scene: Scene, vae: Any, method: str = "direct") -> Tensor:
    """There, back, and edited."""
    latent, module = {"samples": X / 0.18215}, nodes("inversion")
    found = module.VelaturaInvert.execute(
        scene.model, scene.positive, method, **INVERT, latent=latent, negative=scene.negative
    ).args[0]
    module = nodes("reconstruct")
    again = module.VelaturaReconstruct.execute(scene.model, found).args[0]["samples"]
    if method == "direct":
        close(again, latent["samples"])
    # The target is under what the source prompt is under.
    target = [[beside.prompt(9)[0][0], scene.positive[0][1]]]
    edited = module.VelaturaPromptSwitchEdit.execute(scene.model, found, target, 0.9).args[0]["samples"]
    assert differ(edited, again)
    return torch.cat([found.noise, edited])


def null_text(scene: Scene, vae: Any) -> Tensor:
    return invert(scene, vae, "null text")


def morph(scene: Scene, vae: Any) -> Tensor:
    ends = {"latent_a": {"samples": X[:1] / 0.18215}, "latent_b": {"samples": X[1:] / 0.18215}}
    second = [[beside.prompt(9)[0][0], scene.positive[0][1]]]
    found = nodes("inversion").VelaturaInvertPair.execute(
        scene.model, scene.positive, second, "direct", **INVERT, shared_null=False, **ends, negative=scene.negative
    ).args[0]  # fmt: skip
    return nodes("reconstruct").VelaturaMorph.execute(scene.model, found, vae, 3, "linear", 3, 3).args[0]


DRAG = {
    "mode": "quality", "steps": 2, "strength": 1.0, "iterations": 1, "rate": 0.05, "cut_out": False, "snap": False,
    "fill_steps": 1, "fill_strength": 0.4, "seed": 0, "low_memory": False,
}  # fmt: skip


def drag(scene: Scene, vae: Any) -> Tensor:
    points = Points(torch.tensor([[20.0, 20.0]]), torch.tensor([[40.0, 20.0]]), 128, 128)
    made = nodes("drag").VelaturaDrag.execute(scene.model, scene.positive, vae, points, **DRAG, image=IMAGE)
    return made.args[1]["samples"]


def identity(scene: Scene, vae: Any) -> Tensor:
    """A LoRA of a picture, and what the model with it says."""
    made = nodes("drag").VelaturaDragIdentity.execute(
        scene.model, scene.positive, vae, IMAGE, steps=1, rank=2, rate=0.1, batch_size=1, seed=0, low_memory=False
    )
    return theirs(scene._replace(model=made.args[0]), X, T)[0]


def train(scene: Scene, vae: Any) -> Tensor:
    """A LoRA of layers, by its file."""
    from safetensors.torch import load_file

    module = nodes("train_layers")
    name = module.VelaturaTrainLayerLora.execute(
        scene.model, {"samples": X}, scene.positive, steps=1, batch=1, learning_rate=0.1, rank=1, given=0.0,
        low_memory=False, seed=1, name=f"layer-{len(list(_loras()))}",
    ).args[0]  # fmt: skip
    tensors = load_file(next(path for path in _loras() if path.name == name))
    return torch.cat([tensors[key].float().flatten() for key in sorted(tensors)])


def _loras() -> Iterator[Path]:
    import folder_paths

    return Path(folder_paths.get_folder_paths("loras")[0]).glob("*.safetensors")


TOOLS = {joint: "joint", condition_on_layer: "joint", invert: "invert", morph: "invert", null_text: "invert",
         drag: "drag", identity: "drag", train: "train"}  # fmt: skip
QUICK = (beside.stock_lora, beside.ip_adapter, beside.free_u_v2)
"""For tools that go the same way as another one, and for slow ones."""
WORKING: dict[Any, tuple[Other, ...]] = {
    joint: tuple(other for other in NETWORK if "control" not in other.__name__),
    condition_on_layer: QUICK,
    invert: NETWORK,
    null_text: (beside.stock_lora, beside.controlnet, beside.free_u, beside.free_u_v2, beside.zero_snr, beside.scaled),
    morph: QUICK,
    drag: (*QUICK, beside.stock_lora, beside.controlnet, beside.zero_snr, beside.free_u, beside.scaled),
    identity: (beside.stock_lora, beside.free_u_v2),
    train: (beside.stock_lora, beside.free_u_v2, beside.zero_snr),
}


BOTH_WAYS = (joint, invert, drag, train)
"""A node for each way of asking the network."""


def row(other: Other) -> str:
    return {"control_for_both": "controlnet"}.get(other.__name__, other.__name__.removesuffix("_at_depths"))


def pairs() -> Iterator[Any]:
    for tool, others in WORKING.items():
        for other in dict.fromkeys(others):
            yield pytest.param(
                tool, other, id=f"{tool.__name__}-{other.__name__}", marks=works(TOOLS[tool], row(other))
            )


@pytest.mark.parametrize(("tool", "other"), list(pairs()))
def test_the_nodes_work_beside(host: Any, plain: Any, vae: Any, folders: None, tool: Tool, other: Other) -> None:
    made = tool(other(start(plain), 1.0), vae)
    assert differ(made, tool(start(plain), vae))
    if other is beside.stock_lora:
        close(tool(other(start(plain), 0.0), vae), tool(start(plain), vae))


GUIDED = (beside.rescale_cfg, beside.pag, beside.sag)
PROMPTED = {beside.area: "combined", beside.mask: "combined", beside.steps: "combined", beside.hook_lora: "hooks"}
"""Two prompts in one, or one that is more than a prompt."""


def only(other: Other) -> Other:
    """The part of a picture or of the steps, without the rest."""

    def one(scene: Scene, strength: float) -> Scene:
        made = other(scene, strength)
        return made._replace(positive=made.positive[-1:])

    one.__name__ = f"only_{other.__name__}"
    return one


def refusals() -> Iterator[Any]:
    def case(tool: Any, other: Other, words: str, name: str, note: str = "") -> Any:
        return pytest.param(
            tool, other, words, id=f"{tool.__name__}-{other.__name__}", marks=refused(TOOLS[tool], name, note)
        )

    samplers = "Share Attention with a KSampler takes it in place of Joint Layers"
    for tool in (joint, invert, drag):
        for other in GUIDED:
            note = samplers if tool is joint and other is not beside.sag else ""
            yield case(tool, other, "changes the guidance of ComfyUI's samplers", other.__name__, note)
    for tool in BOTH_WAYS:
        for other, words in PROMPTED.items():
            if tool is not train or other is beside.hook_lora:
                yield case(tool, other, words, other.__name__, samplers if tool is joint else "")
        for other, words in ((beside.area, "an area"), (beside.mask, "a mask"), (beside.steps, "a range of steps")):
            yield case(tool, only(other), words, other.__name__)
        for other, name in ((beside.easy_cache, "easycache"), (beside.windows, "IndexListContextHandler")):
            yield case(tool, other, f"{name}.* on it works in ComfyUI's samplers only", other.__name__)
    for other in (beside.controlnet, control_for_both):
        yield case(
            joint, other, "ControlNet would hold for all layers", "controlnet",
            "put it on a layer that is drawn alone, or take Share Attention, where it holds for both",
        )  # fmt: skip
    yield case(joint, beside.hyper_tile, "HyperTile", "hyper_tile")


@pytest.mark.parametrize(("tool", "other", "words"), list(refusals()))
def test_what_is_not_heard_is_refused(
    host: Any, plain: Any, vae: Any, folders: None, tool: Tool, other: Other, words: str
) -> None:
    scene = other(start(plain), 1.0)
    with pytest.raises(ValueError, match=words):
        tool(scene, vae)


@pytest.mark.parametrize("tool", BOTH_WAYS, ids=lambda tool: tool.__name__)
@pytest.mark.parametrize("ours", [share, frames], ids=lambda ours: ours.__name__)
def test_models_that_draw_layers_are_refused(
    host: Any, plain: Any, vae: Any, folders: None, tool: Tool, ours: Any
) -> None:
    with pytest.raises(ValueError, match="2 layers together"):
        tool(start(ours(host, plain, 1.0)), vae)


@pytest.mark.parametrize(
    "tool",
    [
        pytest.param(each, id=each.__name__, marks=works(TOOLS[each], "ours", LAYERED))
        for each in (joint, invert, drag, train)
    ],
)
def test_the_nodes_take_models_with_ours(host: Any, plain: Any, vae: Any, folders: None, tool: Tool) -> None:
    for ours in (lora, given):
        assert differ(tool(start(ours(host, plain, 1.0)), vae), tool(start(plain), vae))


@pytest.fixture(scope="module")
def inpainting(host: Any) -> Any:
    with torch.inference_mode():
        return beside.network(9)


@pytest.mark.parametrize(
    "tool",
    [
        pytest.param(each, id=each.__name__, marks=works(TOOLS[each], "inpaint"))
        for each in (joint, invert, drag, train)
    ],
)
def test_the_nodes_take_inpainting_models(host: Any, inpainting: Any, vae: Any, folders: None, tool: Tool) -> None:
    hole = torch.zeros(1, 1, 128, 128)
    hole[..., 64:] = 1
    told = {"concat_latent_image": seeded(1, 4, 16, 16, seed=81), "concat_mask": hole}
    plain = start(inpainting)
    positive, negative = ([[each[0][0], told]] for each in (plain.positive, plain.negative))
    scene = plain._replace(positive=positive, negative=negative)
    for each in (plain, scene):
        for found, expected in zip(asked(host, each), theirs(each, X, T), strict=True):
            close(found, expected)
    untold = tool(plain, vae)
    if tool is joint:
        with pytest.raises(ValueError, match="differ in concat_latent_image, concat_mask"):
            tool(scene, vae)
    else:
        assert differ(tool(scene, vae), untold)


def test_prompts_of_one_batch_carry_the_same(host: Any, plain: Any) -> None:
    wide, narrow = ([[beside.prompt(n)[0][0], {"width": width}]] for n, width in ((1, 64), (2, 640)))
    with pytest.raises(ValueError, match="differ in width"):
        joint(start(plain)._replace(positive=wide), None)
    assert isinstance(host.condition(narrow), Condition)
