"""A patch of the released form means the same in every host: every key is used, and the numbers are those of a network
whose weights were changed by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from velatura import hosts
from velatura.core.layer_patch import LayerPatch, read_layer_patch
from velatura.core.protocols import Condition

from .conftest import Loaded

FIRST = "input_blocks.0.0"
# LDM's name in the demo model's network, one layer in a level -> diffusers'.
NAMES = {
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "output_blocks.3.1.transformer_blocks.0.attn2.to_v": "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v",
    "middle_block.1.transformer_blocks.0.attn1.to_out.0": "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
    "input_blocks.2.0.op": "down_blocks.0.downsamplers.0.conv",
    "output_blocks.1.2.conv": "up_blocks.0.upsamplers.0.conv",
    "middle_block.2.in_layers.2": "mid_block.resnets.1.conv1",
    "output_blocks.0.0.skip_connection": "up_blocks.0.resnets.0.conv_shortcut",
    "input_blocks.3.0.in_layers.0": "down_blocks.1.resnets.0.norm1",
    "input_blocks.3.1.transformer_blocks.0.norm2": "down_blocks.1.attentions.0.transformer_blocks.0.norm2",
    "input_blocks.3.0.emb_layers.1": "down_blocks.1.resnets.0.time_emb_proj",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    FIRST: "conv_in",
}  # fmt: skip


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network(random_folder: Any) -> Any:
    return hosts.load("diffusers").load_folder(random_folder)[0].unet


def released(network: Any, given: int = 0) -> dict[str, Tensor]:
    """A file for this network: low-rank attention, and whole differences of the rest; `given` latents beside."""
    tensors = {}
    for number, (ldm, ours) in enumerate(NAMES.items()):
        module, key = network.get_submodule(ours), f"diffusion_model.{ldm}"
        shape = list(module.weight.shape)
        if "attn" in ldm:
            tensors[f"{key}.weight::lora::0"] = random(shape[0], 3, seed=number)
            tensors[f"{key}.weight::lora::1"] = random(3, shape[1], seed=100 + number) / shape[1]
            continue
        if ldm == FIRST:
            shape[1] *= 1 + given
        tensors[f"{key}.weight::diff::0"] = 0.1 * random(*shape, seed=number) / shape[-1]
        if module.bias is not None:
            tensors[f"{key}.bias::diff::0"] = 0.1 * random(shape[0], seed=100 + number)
    return tensors


def expected(folder: Any, tensors: dict[str, Tensor], strength: float, given: Tensor | None, *call: Any) -> Tensor:
    """The prediction of a network with the weights of `tensors`, changed here, one by one."""
    model = hosts.load("diffusers").load_folder(folder)[0]
    for ldm, ours in NAMES.items():
        module, key = model.unet.get_submodule(ours), f"diffusion_model.{ldm}"
        with torch.no_grad():
            if "attn" in ldm:
                module.weight += strength * tensors[f"{key}.weight::lora::0"] @ tensors[f"{key}.weight::lora::1"]
                continue
            diff = strength * tensors[f"{key}.weight::diff::0"]
            if ldm == FIRST and given is not None:
                diff[:, : module.weight.shape[1]] += module.weight
                module.weight = nn.Parameter(diff)
                more = given.repeat(3 // len(given), 1, 1, 1) * model.scaling_factor
                module.register_forward_pre_hook(lambda _, inputs, more=more: torch.cat([inputs[0], more], 1))
            else:
                module.weight += diff
            if module.bias is not None:
                module.bias += strength * tensors[f"{key}.bias::diff::0"]
    with torch.no_grad():
        return model.predict_noise(*call)


def patched(loaded: Loaded, tensors: dict[str, Tensor], *how: Any) -> Any:
    return loaded.host.model(loaded.host.with_layer_patch(loaded.native[0], read_layer_patch(tensors), *how))


@pytest.mark.parametrize("given", [0, 1, 2])
@pytest.mark.parametrize("end", [1.0, 0.9])
def test_a_patch_is_the_change_of_weights_that_it_says(
    loaded: Loaded, network: Any, random_folder: Any, x: Tensor, condition: Condition, given: int, end: float
) -> None:
    tensors, t = released(network, given), torch.tensor([600, 600, 600])
    latent = random(1, 4 * given, 16, 16, seed=7) if given else None
    before = loaded.model.predict_noise(x, t, condition)
    model = patched(loaded, tensors, 0.7, 0.0, end, latent)
    want = expected(random_folder, tensors, 0.7, latent, x, t, condition)
    torch.testing.assert_close(model.predict_noise(x, t, condition), want, rtol=0, atol=2e-4)
    assert float((want - before).abs().max()) > 1e-2
    torch.testing.assert_close(loaded.model.predict_noise(x, t, condition), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("given", [0, 1])
def test_outside_of_its_steps_the_model_is_exactly_itself(
    loaded: Loaded, network: Any, x: Tensor, condition: Condition, given: int
) -> None:
    latent = random(1, 4, 16, 16, seed=7) if given else None
    model = patched(loaded, released(network, given), 1.0, 0.0, 0.5, latent)
    late, early = torch.tensor([300] * 3), torch.tensor([700] * 3)
    plain = loaded.model.predict_noise(x, late, condition)
    torch.testing.assert_close(model.predict_noise(x, late, condition), plain, rtol=0, atol=1e-5)
    changed = model.predict_noise(x, early, condition) - loaded.model.predict_noise(x, early, condition)
    assert float(changed.abs().max()) > 1e-2


def test_strength_zero_is_the_model_itself_with_the_given_latent_attached(
    loaded: Loaded, network: Any, x: Tensor, t: Tensor, condition: Condition
) -> None:
    model = patched(loaded, released(network, 1), 0.0, 0.0, 1.0, random(1, 4, 16, 16, seed=7))
    plain = loaded.model.predict_noise(x, t, condition)
    torch.testing.assert_close(model.predict_noise(x, t, condition), plain, rtol=0, atol=2e-5)


def test_a_plain_lora_is_a_patch_too(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition) -> None:
    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {
        f"{name}.lora_up.weight": random(160, 2, seed=1),
        f"{name}.lora_down.weight": random(2, 160, seed=2) / 13,
        f"{name}.alpha": torch.tensor(1.0),
    }
    from velatura.core.lora import read_lora

    want = loaded.model.with_lora(read_lora(tensors)).predict_noise(x, t, condition)
    for end in (1.0, 0.999):
        got = patched(loaded, tensors, 1.0, 0.0, end).predict_noise(x, t, condition)
        torch.testing.assert_close(got, want, rtol=0, atol=5e-5)


def test_gradients_pass_through_a_patch(
    loaded: Loaded, network: Any, x: Tensor, t: Tensor, condition: Condition
) -> None:
    with torch.inference_mode():
        model = patched(loaded, released(network), 1.0, 0.0, 0.99)
        with model.differentiable():
            z = x.clone().requires_grad_()
            (grad,) = torch.autograd.grad(model.predict_noise(z, t, condition).square().sum(), z)
    assert grad.isfinite().all() and float(grad.abs().max()) > 0


def test_what_does_not_fit_is_refused(loaded: Loaded, network: Any) -> None:
    tensors = released(network)
    strange = {"diffusion_model.input_blocks.9.0.op.weight::diff::0": torch.ones(2, 2, 3, 3)}
    with pytest.raises(ValueError, match="another model family"):
        patched(loaded, {**tensors, **strange}, 1.0, 0.0, 1.0)
    wide = {"diffusion_model.input_blocks.2.0.op.weight::diff::0": torch.ones(96, 64, 3, 3)}
    with pytest.raises(ValueError, match=r"down_blocks_0_downsamplers_0_conv.*another model family"):
        patched(loaded, {**tensors, **wide}, 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="takes 1 given"):
        patched(loaded, released(network, 1), 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="takes 0 given"):
        patched(loaded, tensors, 1.0, 0.0, 1.0, torch.zeros(1, 4, 16, 16))
    given = read_layer_patch(released(network, 1)), 1.0, 0.0, 1.0, torch.zeros(1, 4, 16, 16)
    once = loaded.host.with_layer_patch(loaded.native[0], *given)
    with pytest.raises(ValueError, match="on it already"):
        loaded.host.with_layer_patch(once, *given)


def test_a_given_latent_of_another_size_is_refused(
    loaded: Loaded, network: Any, x: Tensor, t: Tensor, condition: Condition
) -> None:
    model = patched(loaded, released(network, 1), 1.0, 0.0, 1.0, torch.zeros(1, 4, 8, 16))
    with pytest.raises(ValueError, match="16x8"):
        model.predict_noise(x, t, condition)


# SDXL's own layout: 560 linear layers of attention, and everything else as whole differences.
DEPTHS = {4: 2, 5: 2, 7: 10, 8: 10}, 10, {0: 10, 1: 10, 2: 10, 3: 2, 4: 2, 5: 2}


def transformers() -> dict[str, int]:
    down, mid, up = DEPTHS
    found = {f"input_blocks.{n}.1": depth for n, depth in down.items()} | {"middle_block.1": mid}
    return found | {f"output_blocks.{n}.1": depth for n, depth in up.items()}


def attention_keys() -> list[str]:
    return [
        f"{place}.transformer_blocks.{n}.{kind}.{layer}"
        for place, depth in transformers().items()
        for n in range(depth)
        for kind in ("attn1", "attn2")
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    ]


def other_keys() -> list[str]:
    """Every other module with weights, the timestep's and the label's among them."""
    found = ["input_blocks.0.0", "input_blocks.3.0.op", "input_blocks.6.0.op", "output_blocks.2.2.conv"]
    found += ["output_blocks.5.2.conv", "out.0", "out.2", "time_embed.0", "time_embed.2", "label_emb.0.0"]
    found += ["label_emb.0.2"]
    blocks = [f"input_blocks.{n}.0" for n in (1, 2, 4, 5, 7, 8)] + [f"output_blocks.{n}.0" for n in range(9)]
    for block in [*blocks, "middle_block.0", "middle_block.2"]:
        found += [f"{block}.{layer}" for layer in ("in_layers.0", "in_layers.2", "emb_layers.1")]
        found += [f"{block}.{layer}" for layer in ("out_layers.0", "out_layers.3")]
    found += [f"{block}.skip_connection" for block in blocks if block[0] == "o" or block in blocks[2:6:2]]
    for place, depth in transformers().items():
        found += [f"{place}.{layer}" for layer in ("norm", "proj_in", "proj_out")]
        for n in range(depth):
            layers = ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2")
            found += [f"{place}.transformer_blocks.{n}.{layer}" for layer in layers]
    return found


@pytest.fixture(scope="module", params=["diffusers", "comfyui"])
def sdxl(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The modules of an SDXL network without weights, by name, as the host's patches look them up."""
    if request.param == "diffusers":
        from diffusers import UNet2DConditionModel  # pyright: ignore[reportMissingImports]

        from velatura.hosts.diffusers.layer_patch import modules_of

        with torch.device("meta"):
            return modules_of(UNet2DConditionModel(**SDXL))
    request.getfixturevalue("comfyui")
    import comfy.model_base  # pyright: ignore[reportMissingImports]
    import comfy.supported_models  # pyright: ignore[reportMissingImports]

    from velatura.hosts.comfyui.unet import names_of

    base: Any = comfy.supported_models.SDXL(dict(COMFY_SDXL)).get_model({}, device=torch.device("meta"))
    return {name: base.diffusion_model.get_submodule(path) for name, path in names_of(base).items()}


SDXL = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20), "addition_time_embed_dim": 256,
    "addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
COMFY_SDXL = {
    "model_channels": 320, "use_spatial_transformer": True, "use_linear_in_transformer": True, "context_dim": 2048,
    "transformer_depth": [0, 0, 2, 2, 10, 10], "adm_in_channels": 2816, "use_temporal_attention": False,
    "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth_middle": 10, "in_channels": 4,
    "num_classes": "sequential", "out_channels": 4, "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "num_heads": -1, "num_head_channels": 64, "image_size": 32, "legacy": False, "dtype": torch.float16,
}  # fmt: skip


def test_every_key_of_the_released_layouts_has_its_place_in_sdxl(sdxl: dict[str, Any]) -> None:
    attention = {}
    for key in attention_keys():
        side, number = key.split(".")[:2]
        narrow = (side == "input_blocks" and number in "45") or (side == "output_blocks" and number in "345")
        width = 640 if narrow else 1280
        inner = 2048 if key.endswith(("attn2.to_k", "attn2.to_v")) else width
        attention[f"diffusion_model.{key}.weight::lora::0"] = torch.zeros(width, 1)
        attention[f"diffusion_model.{key}.weight::lora::1"] = torch.zeros(1, inner)
    low = read_layer_patch(attention).fitted(sdxl).low
    assert len(attention_keys()) == len(low) == 560
    assert set(low) == {name for name in sdxl if "_attn" in name}


def test_every_other_module_of_sdxl_has_a_key(sdxl: dict[str, Any]) -> None:
    named = LayerPatch(weights={key.replace(".", "_"): torch.zeros(1) for key in other_keys()}).named(2)
    # By identity: ComfyUI has two names for some.
    assert {id(sdxl[n]) for n in named.weights} == {id(module) for n, module in sdxl.items() if "_attn" not in n}
    whole = LayerPatch(weights={name: torch.empty_like(sdxl[name].weight) for name in named.weights})
    assert len(whole.fitted(sdxl)) == len(other_keys())
