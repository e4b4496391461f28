"""Other people's models and patches, as small as they go, put on a model, a prompt or a latent.

Their weights are seeded noise, at strengths that no test overlooks.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Scene(NamedTuple):
    """What is wired into a sampler."""

    model: Any
    positive: Any
    negative: Any
    latent: dict[str, Any]


Other = Callable[[Scene, float], Scene]
"""Somebody else's node in the graph; at 0 it changes nothing, where it has a strength."""


def extra(name: str) -> Any:
    return importlib.import_module(f"comfy_extras.{name}")


def first(result: Any) -> Any:
    """A node's first output, of either schema."""
    return (result.args if hasattr(result, "args") else result)[0]


LORA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"


def stock_lora(scene: Scene, strength: float) -> Scene:
    import comfy.sd

    file = {
        f"{LORA}.lora_up.weight": seeded(64, 4, seed=21),
        f"{LORA}.lora_down.weight": seeded(4, 64, seed=22) / 4,
    }
    return scene._replace(model=comfy.sd.load_lora_for_models(scene.model, None, file, strength, 0.0)[0])


class Adapter:
    """An IP-Adapter: what stands in for a cross attention adds the attention to the image's tokens, of the prompt's
    side, to the attention to the words (the way of the pack that most people use)."""

    def __init__(self, key: Any, weight: float, side: int) -> None:
        generator = torch.Generator().manual_seed(abs(hash(key)) % 1000)
        make = lambda: torch.nn.Linear(16, side, bias=False)  # noqa: E731
        self.to_k, self.to_v = make(), make()
        for layer in (self.to_k, self.to_v):
            layer.weight.data = torch.randn(side, 16, generator=generator) / 4
        self.weight = weight
        self.tokens = [seeded(1, 4, 16, seed=31), seeded(1, 4, 16, seed=32)]
        self.sides: list[int] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any]) -> Tensor:
        from comfy.ldm.modules.attention import optimized_attention

        sides, heads = options["cond_or_uncond"], options["n_heads"]
        self.sides += sides
        each = len(q) // len(sides)
        tokens = torch.cat([self.tokens[side].repeat(each, 1, 1) for side in sides])
        image = optimized_attention(q, self.to_k(tokens), self.to_v(tokens), heads)
        return optimized_attention(q, k, v, heads) + self.weight * image

    def add(self, weight: float) -> None:
        """A second adapter at the same place."""
        self.weight += weight


WIDTHS = {1: 32, 2: 32, 4: 64, 5: 64, 7: 64, 8: 64}
BLOCKS = [("input", n, width) for n, width in WIDTHS.items()]
BLOCKS += [("output", n, 64) for n in range(3, 9)] + [("output", n, 32) for n in range(9, 12)]


def ip_adapter(scene: Scene, strength: float) -> Scene:
    """At whole blocks, as on SD 1.5."""
    return _adapted(scene, strength, ())


def ip_adapter_at_depths(scene: Scene, strength: float) -> Scene:
    """At single transformer blocks, as on SDXL."""
    return _adapted(scene, strength, (0,))


def _adapted(scene: Scene, strength: float, depth: tuple[int, ...]) -> Scene:
    model = scene.model.clone()
    options = model.model_options["transformer_options"].copy()
    options["patches_replace"] = options.get("patches_replace", {}).copy()
    attn2 = options["patches_replace"].get("attn2", {}).copy()
    options["patches_replace"]["attn2"] = attn2
    for kind, number, width in BLOCKS:
        key = (kind, number, *depth)
        if key in attn2:
            attn2[key].add(strength)
        else:
            attn2[key] = Adapter(key, strength, width)
    model.model_options["transformer_options"] = options
    return scene._replace(model=model)


def controlnet(scene: Scene, strength: float) -> Scene:
    return scene._replace(
        **dict(zip(("positive", "negative"), _controlled(scene, control_net(), strength), strict=True))
    )


def _controlled(scene: Scene, net: Any, strength: float) -> Any:
    import nodes

    hint = seeded(1, 128, 128, 3, seed=41).clamp(0, 1)
    if strength == 0:  # the stock node then leaves it out
        return scene.positive, scene.negative
    return nodes.ControlNetApplyAdvanced().apply_controlnet(scene.positive, scene.negative, net, hint, strength, 0, 1)


def control_net() -> Any:
    import comfy.cldm.cldm
    import comfy.controlnet

    from velatura.hosts.comfyui.load import unet_config

    network = comfy.cldm.cldm.ControlNet(**unet_config(thin()), hint_channels=3)
    fill(network)
    return comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))


def thin(channels: int = 4) -> dict[str, Any]:
    """SD 1.5's blocks, thin."""
    return {
        "sample_size": 16, "in_channels": channels, "out_channels": 4, "block_out_channels": [32, 64, 64, 64],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "layers_per_block": 2,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "cross_attention_dim": 128,
        "attention_head_dim": 8, "norm_num_groups": 32,
    }  # fmt: skip


def fill(network: torch.nn.Module) -> None:
    """Seeded weights; ComfyUI's layers do not initialise theirs."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            parameter.data = torch.full_like(parameter, 1.0 if name.endswith("weight") else 0.01)
        else:
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5


def network(channels: int = 4) -> Any:
    """A MODEL of SD 1.5's blocks; with nine channels an inpainting one."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher

    from velatura.hosts.comfyui.load import FolderModel, sampling_settings, unet_config

    config = FolderModel(unet_config(thin(channels)), comfy.latent_formats.SD15())
    config.sampling_settings = sampling_settings({})
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.EPS)
    if channels == 9:
        config.inpaint_model = True
        model.concat_keys = ("mask", "masked_image")
        model.set_inpaint()
    fill(model.diffusion_model)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def zero_snr(scene: Scene, strength: float) -> Scene:
    """ModelSamplingDiscrete."""
    if strength == 0:
        return scene
    made = extra("nodes_model_advanced").ModelSamplingDiscrete().patch(scene.model, "v_prediction", True)
    return scene._replace(model=first(made))


def lcm_levels(scene: Scene, strength: float) -> Scene:
    """ModelSamplingDiscrete: fifty levels, and the scalings of consistency models."""
    made = extra("nodes_model_advanced").ModelSamplingDiscrete().patch(scene.model, "lcm", False)
    return scene._replace(model=first(made))


def rescale_cfg(scene: Scene, strength: float) -> Scene:
    return scene._replace(model=first(extra("nodes_model_advanced").RescaleCFG().patch(scene.model, strength)))


def free_u(scene: Scene, strength: float) -> Scene:
    b, s = 1 + 0.3 * strength, 1 - 0.5 * strength
    return scene._replace(model=first(extra("nodes_freelunch").FreeU().patch(scene.model, b, b, s, s)))


def free_u_v2(scene: Scene, strength: float) -> Scene:
    b, s = 1 + 0.3 * strength, 1 - 0.5 * strength
    return scene._replace(model=first(extra("nodes_freelunch").FreeU_V2().patch(scene.model, b, b, s, s)))


def pag(scene: Scene, strength: float) -> Scene:
    made = extra("nodes_pag").PerturbedAttentionGuidance.execute(scene.model, 3.0 * strength)
    return scene._replace(model=first(made))


def sag(scene: Scene, strength: float) -> Scene:
    return scene._replace(model=first(extra("nodes_sag").SelfAttentionGuidance.execute(scene.model, strength, 2.0)))


def hyper_tile(scene: Scene, strength: float) -> Scene:
    if strength == 0:
        return scene
    return scene._replace(model=first(extra("nodes_hypertile").HyperTile.execute(scene.model, 32, 1, 0, False)))


def token_merging(scene: Scene, strength: float) -> Scene:
    return scene._replace(model=first(extra("nodes_tomesd").TomePatchModel.execute(scene.model, 0.3 * strength)))


def scaled(scene: Scene, strength: float) -> Scene:
    """A wrapper around the network's function that changes what it says."""
    model = scene.model.clone()

    def wrapper(run: Any, call: dict[str, Any]) -> Tensor:
        return (1 - 0.2 * strength) * run(call["input"], call["timestep"], **call["c"])

    model.set_model_unet_function_wrapper(wrapper)
    return scene._replace(model=model)


class Reuse:
    """Skips the network: every second call with the same prompts gets the last answer again (a deep cache)."""

    def __init__(self) -> None:
        self.last: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, run: Any, call: dict[str, Any]) -> Tensor:
        key = (*call["cond_or_uncond"], *call["input"].shape)
        if key in self.last:
            return self.last.pop(key)
        self.last[key] = run(call["input"], call["timestep"], **call["c"])
        return self.last[key]


def deep_cache(scene: Scene, strength: float) -> Scene:
    if strength == 0:
        return scene
    model = scene.model.clone()
    model.set_model_unet_function_wrapper(Reuse())
    return scene._replace(model=model)


def easy_cache(scene: Scene, strength: float) -> Scene:
    if strength == 0:
        return scene
    made = extra("nodes_easycache").EasyCacheNode.execute(scene.model, 2.0, 0.0, 1.0, False)
    return scene._replace(model=first(made))


def area(scene: Scene, strength: float) -> Scene:
    """A second prompt for the right half."""
    import nodes

    (half,) = nodes.ConditioningSetAreaPercentage().append(prompt(7), 0.5, 1.0, 0.5, 0.0, strength)
    return scene._replace(positive=scene.positive + half)


def mask(scene: Scene, strength: float) -> Scene:
    import nodes

    shape = torch.zeros(1, 16, 16)
    shape[..., 8:] = 1
    (half,) = nodes.ConditioningSetMask().append(prompt(7), shape, "default", strength)
    return scene._replace(positive=scene.positive + half)


def steps(scene: Scene, strength: float) -> Scene:
    """A prompt for the first half of the sampling, another one for the second."""
    import nodes

    def within(conditioning: Any, start: float, end: float) -> Any:
        return nodes.ConditioningSetTimestepRange().set_range(conditioning, start, end)[0]

    other = prompt(7) if strength else scene.positive
    return scene._replace(positive=within(other, 0.0, 0.5) + within(scene.positive, 0.5, 1.0))


def hook_lora(scene: Scene, strength: float) -> Scene:
    """A LoRA that hangs on the prompt."""
    import comfy.hooks

    file = {f"{LORA}.lora_up.weight": seeded(64, 4, seed=23), f"{LORA}.lora_down.weight": seeded(4, 64, seed=24) / 4}
    group = comfy.hooks.create_hook_lora(lora=file, strength_model=strength, strength_clip=0.0)
    return scene._replace(positive=comfy.hooks.set_hooks_for_conditioning(scene.positive, group))


def windows(scene: Scene, strength: float) -> Scene:
    made = extra("nodes_context_windows").ContextWindowsManualNode.execute(
        scene.model, 3, 1, "standard_static", 1, False, "pyramid", 0
    )
    return scene._replace(model=first(made))


def prompt(seed: int, rows: int = 1) -> list[Any]:
    return [[seeded(rows, 12, 128, seed=seed), {}]]


def start(model: Any, rows: int = 2) -> Scene:
    return Scene(model, prompt(1), prompt(2), {"samples": torch.zeros(rows, 4, 16, 16)})


def sample(scene: Scene, cfg: float = 3.0, count: int = 2, seed: int = 5) -> Tensor:
    """What ComfyUI's KSampler draws."""
    import nodes

    torch.manual_seed(0)  # token merging draws from the global generator
    (done,) = nodes.KSampler().sample(
        scene.model, seed, count, cfg, "euler", "normal", scene.positive, scene.negative, scene.latent
    )
    return done["samples"]


def differ(a: Tensor, b: Tensor) -> bool:
    assert bool(a.isfinite().all() and b.isfinite().all())
    return float((a - b).abs().max()) > 1e-3 * float(b.abs().max())


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=2e-4 * float(b.abs().max()))
