"""Low-rank deltas as ComfyUI's weight patches, on clones."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.lora
from comfy.weight_adapter import LoRAAdapter

from ...core.lora import LowRank, LowRankDeltas


def with_model_lora(model: Any, deltas: LowRankDeltas, strength: float) -> Any:
    """A clone of MODEL with the UNet's deltas. ValueError if nothing fits, or a name or shape does not."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    entries = {f"lora_unet_{name}": low for name, low in deltas.of("unet").items()}
    clone = model.clone()
    clone.add_patches(_patches(entries, keys, model.model, "UNet"), strength)
    return clone


def with_clip_lora(clip: Any, deltas: LowRankDeltas, strength: float) -> Any:
    """A clone of CLIP with the text encoders' deltas. ValueError if nothing fits, or a name or shape does not."""
    keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    entries = {f"lora_te1_{name}": low for name, low in deltas.of("text").items()}
    entries |= {f"lora_te2_{name}": low for name, low in deltas.of("text_2").items()}
    clone = clip.clone()
    clone.add_patches(_patches(entries, keys, clip.cond_stage_model, "text encoder"), strength)
    return clone


def _patches(entries: Mapping[str, LowRank], keys: Mapping[str, str], network: Any, what: str) -> dict[str, Any]:
    if not entries:
        raise ValueError(f"LoRA: there is nothing for the {what} in this file")
    missing = sorted(set(entries) - set(keys))
    if missing:
        raise ValueError(
            f"LoRA: {len(missing)} of {len(entries)} layers are not in this {what}, {missing[0]} among them; "
            "the file was made for another model family"
        )
    weights = network.state_dict()
    patches = {}
    for name, low in entries.items():
        weight = weights[keys[name]]
        if low.up.shape[0] != weight.shape[0] or low.down[0].numel() != weight[0].numel():
            raise ValueError(
                f"LoRA: {name} has factors {tuple(low.up.shape)} and {tuple(low.down.shape)}, which do not fit "
                f"a weight {tuple(weight.shape)} of this {what}"
            )
        # ComfyUI divides alpha by the rank again.
        patches[keys[name]] = LoRAAdapter(set(), (low.up, low.down, low.scale * low.down.shape[0], None, None, None))
    return patches
