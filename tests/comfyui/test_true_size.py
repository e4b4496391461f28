"""The networks of SD 1.5 and SDXL at their true size, of random weights in half precision, as ComfyUI's own classes for
them: what is made for those families fits every layer of them, and goes through its steps in a real ComfyUI."""

# pyright: reportMissingImports=false
from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from velatura.core.frame_patch import FramePatch, frame_patch_from
from velatura.core.layer_patch import read_layer_patch
from velatura.core.lora import read_lora

from ..hosts.test_frame_patch import SD15 as WIDTHS
from ..hosts.test_frame_patch import widths
from .beside import Scene, differ, seeded

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("executor")]

COMMON = {
    "use_checkpoint": False, "image_size": 32, "out_channels": 4, "use_spatial_transformer": True, "legacy": False,
    "in_channels": 4, "model_channels": 320, "use_temporal_attention": False,
}  # fmt: skip
SD15 = COMMON | {
    "adm_in_channels": None, "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "channel_mult": [1, 2, 4, 4], "transformer_depth_middle": 1, "use_linear_in_transformer": False,
    "context_dim": 768, "num_heads": 8, "num_head_channels": -1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}  # fmt: skip
SDXL = COMMON | {
    "num_classes": "sequential", "adm_in_channels": 2816, "num_res_blocks": [2, 2, 2],
    "transformer_depth": [0, 0, 2, 2, 10, 10], "channel_mult": [1, 2, 4], "transformer_depth_middle": 10,
    "use_linear_in_transformer": True, "context_dim": 2048, "num_heads": -1, "num_head_channels": 64,
    "transformer_depth_output": [10, 10, 10, 2, 2, 2, 0, 0, 0],
}  # fmt: skip
NOISE = seeded(1_000_003)
"""All weights are pieces of it: drawing billions of numbers would take minutes."""


def noise(*shape: int, size: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of that size for each of a row's inputs together."""
    made = torch.empty(*shape, dtype=dtype)
    piece = NOISE * (size / max(1, made[0].numel()) ** 0.5)
    for part in made.view(-1).split(len(piece)):
        part.copy_(piece[: len(part)])
    return made


def network(config: Mapping[str, Any], dtype: torch.dtype, computed: torch.dtype | None) -> Any:
    """A MODEL as the stock loaders make it of a checkpoint of the family."""
    import comfy.model_detection
    import comfy.model_patcher

    found = comfy.model_detection.model_config_from_unet_config(dict(config), {})
    assert found is not None
    found.set_inference_dtype(dtype, computed)
    model = found.get_model({}, "")
    for parameter in model.diffusion_model.parameters():
        parameter.requires_grad_(False)
        matrix = parameter.ndim > 1
        parameter.data = noise(*parameter.shape, dtype=dtype) if matrix else torch.full_like(parameter, 0.05)
    for module in model.diffusion_model.modules():
        if "Norm" in type(module).__name__:
            module.weight.data.fill_(1.0)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def freed(model: Any) -> Iterator[Any]:
    import comfy.model_management

    yield model
    comfy.model_management.unload_all_models()
    del model
    gc.collect()


@pytest.fixture(scope="module")
def sd15(host: Any) -> Iterator[Any]:
    """Weights in fp16, computed in fp32: how most people's checkpoints run on a CPU."""
    with torch.inference_mode():
        model = network(SD15, torch.float16, torch.float32)
    yield from freed(model)


@pytest.fixture(scope="module")
def sdxl(host: Any) -> Iterator[Any]:
    with torch.inference_mode():
        model = network(SDXL, torch.bfloat16, None)
    yield from freed(model)


def scene(model: Any, rows: int = 1) -> Scene:
    context = model.model.model_config.unet_config["context_dim"]
    pooled = {"pooled_output": seeded(1, 1280, seed=3)} if context == 2048 else {}
    positive, negative = ([[seeded(1, 77, context, seed=seed), pooled]] for seed in (1, 2))
    return Scene(model, positive, negative, {"samples": torch.zeros(rows, 4, 16, 16)})


def drawn(model: Any, rows: int = 1, steps: int = 1) -> Tensor:
    import nodes

    wires = scene(model, rows)
    (done,) = nodes.KSampler().sample(
        model, 5, steps, 2.0, "euler", "normal", wires.positive, wires.negative, wires.latent
    )
    return done["samples"]


def frames(count: int, told: bool) -> FramePatch:
    """A file of the released layout and rank, at SD 1.5's widths."""
    with torch.device("meta"):
        layout = FramePatch(widths(WIDTHS, 768), count, 256, told).state_dict()
    with torch.inference_mode(False):
        return frame_patch_from({name: noise(*each.shape, size=0.5) for name, each in layout.items()})


@pytest.mark.parametrize(("count", "told"), [(1, False), (3, False), (2, True)])
def test_the_joint_layers_of_sd15(host: Any, sd15: Any, count: int, told: bool) -> None:
    """One transparent picture; foreground, background and blend; a layer beside a given picture."""
    picture = seeded(1, 3, 128, 128, seed=9).clamp(-1, 1) if told else None
    model = host.with_frame_patch(sd15, frames(count, told), 1.0, 0.0, 1.0, picture)
    assert differ(drawn(model, count), drawn(sd15, count))


def lora(network: Any, only: str = "") -> dict[str, Tensor]:
    """A file for every linear layer and convolution, as LCM-LoRAs are, or for some, in kohya's layout."""
    tensors = {}
    for name, layer in network.layers().items():
        if only in name:
            weight = layer.weight
            tensors[f"lora_unet_{name}.lora_down.weight"] = noise(4, *weight.shape[1:])
            tensors[f"lora_unet_{name}.lora_up.weight"] = noise(weight.shape[0], 4, *[1] * (weight.ndim - 2), size=0.3)
            tensors[f"lora_unet_{name}.alpha"] = torch.tensor(4.0)
    return tensors


@pytest.mark.parametrize(("family", "only"), [("sd15", ""), ("sd15", "_attn"), ("sdxl", "_attn"), ("sdxl", "")])
def test_smooth_and_lcm_loras(host: Any, request: pytest.FixtureRequest, family: str, only: str) -> None:
    """A Smooth-LoRA is of the attention layers, an LCM-LoRA of all; and the guidance that a full LCM brings."""
    model = request.getfixturevalue(family)
    before, file = drawn(model), lora(host.model(model), only)
    assert len(file) > 300
    made = host.with_lora(model, None, read_lora(file), 1.0, 0.0)[0]
    if not only:
        made = host.with_guidance(made, noise(320, 256), 7.0)
    assert differ(drawn(made), before)
    assert bool((drawn(model) == before).all())  # the weights are back


def released(base: Any, given: int) -> dict[str, Tensor]:
    """A file of the SDXL form: factors for each attention, whole differences of norms and of both ends."""
    tensors: dict[str, Tensor] = {}
    for name, module in base.diffusion_model.named_modules():
        key, weight = f"diffusion_model.{name}", getattr(module, "weight", None)
        if weight is None:
            continue
        if ".attn" in name and weight.ndim == 2:
            tensors[f"{key}.weight::lora::0"] = noise(weight.shape[0], 64, size=0.3)
            tensors[f"{key}.weight::lora::1"] = noise(64, weight.shape[1])
        elif name == "input_blocks.0.0" and given:
            tensors[f"{key}.weight::diff::0"] = noise(weight.shape[0], 4 + 4 * given, 3, 3, size=0.3)
        elif name in ("out.2", "input_blocks.1.0.in_layers.2"):
            tensors[f"{key}.weight::diff::0"] = noise(*weight.shape, size=0.3)
        elif name.endswith("in_layers.0"):
            tensors[f"{key}.bias::diff::0"] = 0.3 * noise(*weight.shape)
    return tensors


@pytest.mark.parametrize(("given", "end"), [(0, 1.0), (2, 1.0), (1, 0.9)])
def test_the_transparency_patches_of_sdxl(host: Any, sdxl: Any, given: int, end: float) -> None:
    patch = read_layer_patch(released(sdxl.model, given))
    latent = seeded(1, 4 * given, 16, 16, seed=7) if given else None
    model = host.with_layer_patch(sdxl, patch, 1.0, 0.0, end, latent)
    before = drawn(sdxl)
    assert differ(drawn(model), before)
    assert bool((drawn(sdxl) == before).all())


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_step_of_null_text_inversion(host: Any, request: pytest.FixtureRequest, family: str) -> None:
    """Gradients go through the whole network: the null text is another one afterwards."""
    from velatura.nodes import inversion, reconstruct

    wires = scene(request.getfixturevalue(family))
    settings = {
        "method": "null text", "steps": 1, "guidance": 3.0, "seed": 0, "noised_steps": 0, "tolerance": 0.0,
        "iterations": 1, "corrected": False,
    }  # fmt: skip
    found = inversion.VelaturaInvert.execute(
        wires.model, wires.positive, latent={"samples": seeded(1, 4, 16, 16)}, negative=wires.negative, **settings
    ).args[0]
    start = wires.negative[0][0]
    assert found.nulls.isfinite().all() and (found.nulls[0] - start).abs().max() > 0
    again = reconstruct.VelaturaReconstruct.execute(wires.model, found).args[0]["samples"]
    assert again.isfinite().all()
