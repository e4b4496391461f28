"""Stable Diffusion 1.5 and XL in the original single-file layout, as diffusers' and transformers' networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Configurations as in the models' diffusers folders; what is left out is diffusers' default.
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
_CLIP_G = {
    **_CLIP_L,
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
    "pad_token_id": 0,
}
SD15: dict[str, Any] = {
    "name": "Stable Diffusion 1.5",
    "unet": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
    "vae": {**_VAE, "scaling_factor": 0.18215},
    "text": [(_CLIP_L, "cond_stage_model.transformer.")],
}
SDXL: dict[str, Any] = {
    "name": "Stable Diffusion XL",
    "unet": {
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "sample_size": 128,
    },
    "vae": {**_VAE, "scaling_factor": 0.13025},
    "text": [(_CLIP_L, "conditioner.embedders.0.transformer."), (_CLIP_G, "conditioner.embedders.1.model.")],
}


def family_of(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """SD15 or SDXL, told by the shapes of two layers. ValueError says what else it is."""
    prefix = "model.diffusion_model."
    entry = weights.get(f"{prefix}input_blocks.0.0.weight")
    if entry is None:
        raise ValueError("expected a Stable Diffusion 1.5 or XL checkpoint; it has no model.diffusion_model weights")
    if entry.shape[1] != 4:
        raise ValueError(f"its UNet takes {entry.shape[1]} channels, expected 4 (not an inpainting or edit model)")
    for family, block in ((SD15, "input_blocks.1.1"), (SDXL, "input_blocks.4.1")):
        context = weights.get(f"{prefix}{block}.transformer_blocks.0.attn2.to_k.weight")
        if context is not None and context.shape[1] == family["unet"]["cross_attention_dim"]:
            return family
    raise ValueError("expected a Stable Diffusion 1.5 or XL (base) checkpoint; its cross attention has another width")


def build(family: Mapping[str, Any], weights: Mapping[str, Tensor]) -> list[nn.Module]:
    """UNet, autoencoder and text encoders of a single file, in the file's precision.

    The file's tensors become the parameters: nothing is copied. ValueError if any is missing.
    """
    from diffusers.loaders import single_file_utils as convert
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from .build import new_autoencoder, new_unet

    unet = _filled(
        lambda: new_unet(family["unet"]), lambda net: convert.convert_ldm_unet_checkpoint(weights, net.config)
    )
    vae = _filled(
        lambda: new_autoencoder(family["vae"]), lambda net: convert.convert_ldm_vae_checkpoint(weights, net.config)
    )
    encoders = []
    for config, prefix in family["text"]:
        if prefix.endswith("transformer."):
            inside = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
            encoders.append(_filled(lambda c=config: CLIPTextModel(CLIPTextConfig(**c)), lambda _, s=inside: s))
        else:
            encoders.append(
                _filled(
                    lambda c=config: CLIPTextModelWithProjection(CLIPTextConfig(**c)),
                    lambda net, p=prefix: convert.convert_open_clip_checkpoint(net, weights, p),
                )
            )
    return [unet, vae, *encoders]


def _filled(make: Callable[[], nn.Module], convert: Callable[[Any], Mapping[str, Tensor]]) -> nn.Module:
    """A network whose parameters are the converted tensors themselves; it never exists with random ones."""
    with torch.device("meta"):
        network = make()
    state = dict(convert(network))
    wanted = network.state_dict()
    if not any(key.startswith("text_model.") for key in wanted):  # transformers 5 names CLIPTextModel's layers without
        state = {key.removeprefix("text_model."): value for key, value in state.items()}
    missing = [key for key in wanted if key not in state]
    if missing:
        raise ValueError(f"{len(missing)} weights of its {type(network).__name__} are missing, {missing[0]} among them")
    network.load_state_dict({key: state[key] for key in wanted}, assign=True)
    for name, buffer in list(network.named_buffers()):  # not in the file: made anew, off the meta device
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            network.get_submodule(owner).register_buffer(
                leaf, torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False
            )
    return network
