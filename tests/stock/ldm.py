"""diffusers' networks in the original single-file layout: what a test needs to write a checkpoint."""

from __future__ import annotations

import re

from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_key(key: str, attention_levels: set[int]) -> str:
    """Of a network with 2 layers in each level; `attention_levels` counts the up levels that have attentions."""
    stem, _, leaf = key.rpartition(".")
    if stem in _ENDS:
        return f"{_ENDS[stem]}.{leaf}"
    where, rest = re.match(r"(mid_block|(?:down|up)_blocks\.\d)\.(.*)", key).groups()  # type: ignore[union-attr]
    kind, index, inner = rest.split(".", 2)
    if kind == "resnets":
        head, _, leaf = inner.rpartition(".")
        inner = f"{_RESNET[head]}.{leaf}"
    if where == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{inner}"
    level = int(where[-1])
    if kind == "downsamplers":
        return f"input_blocks.{3 * level + 3}.0.op.{inner.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * level + 2}.{2 if level in attention_levels else 1}.{inner}"
    block = (
        f"input_blocks.{3 * level + int(index) + 1}" if where[0] == "d" else f"output_blocks.{3 * level + int(index)}"
    )
    return f"{block}.{1 if kind == 'attentions' else 0}.{inner}"


def vae_key(key: str, levels: int) -> str:
    key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    key = key.replace("mid_block.attentions.0", "mid.attn_1")
    for new, old in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        key = re.sub(rf"(attn_1\.){re.escape(new)}\.", rf"\1{old}.", key)
    key = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", key)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", key)


def single_file(unet, vae, text_encoder) -> dict[str, Tensor]:
    """The state of SD1-like networks as one checkpoint."""
    attends = {i for i, block in enumerate(unet.up_blocks) if hasattr(block, "attentions")}
    out = {f"model.diffusion_model.{unet_key(key, attends)}": value for key, value in unet.state_dict().items()}
    for key, value in vae.state_dict().items():
        old = vae_key(key, len(vae.config.block_out_channels))
        is_projection = ".attn_1." in old and value.ndim == 2
        out[f"first_stage_model.{old}"] = value[:, :, None, None] if is_projection else value
    for key, value in text_encoder.state_dict().items():
        out[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    return {key: value.contiguous() for key, value in out.items()}
