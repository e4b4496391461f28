"""Low-rank deltas (LoRA, Hu et al. 2021), read from the three layouts in the wild into one form.

`W' = W + strength * (alpha / rank) * up @ down`. Layouts, for a linear layer ATTN.to_q (ATTN stands for
`down_blocks.0.attentions.0.transformer_blocks.0.attn1`):

- diffusers / PEFT: `unet.ATTN.to_q.lora_A.weight` (down), `.lora_B.weight` (up); older files: `.lora.down.weight`;
- kohya: `lora_unet_ATTN_to_q.lora_down.weight`, `.lora_up.weight`, `.alpha`, with the dots of ATTN as underscores;
- processor: `ATTN.processor.to_q_lora.down.weight`, `.up.weight` (Smooth Diffusion's released file).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Component = Literal["unet", "text", "text_2"]


class Target(NamedTuple):
    """The layer a delta belongs to: its component and its module name with dots written as underscores.

    The name is diffusers' (transformers' for text encoders), or the original LDM one where the file uses that
    (`input_blocks_1_1_...`). Underscores, because kohya's files do not tell them from dots: a host matches its own
    module names in the same spelling.
    """

    component: Component
    name: str


class LowRank(NamedTuple):
    """`up` [out, r, ...], `down` [r, in, ...] and `scale` = alpha / r (1 where the file gives no alpha)."""

    up: Tensor
    down: Tensor
    scale: float = 1.0

    def delta(self, shape: torch.Size) -> Tensor:
        """scale * up @ down in float32, as a weight of `shape` (linear [out, in] or convolution [out, in, k, k]).

        Raises ValueError if the factors cannot make that shape.
        """
        up, down = self.up.float(), self.down.float()
        if down.shape[0] != up.shape[1] or up.shape[0] != shape[0] or down[0].numel() != shape[1:].numel():
            raise ValueError(
                f"LoRA factors {tuple(up.shape)} and {tuple(down.shape)} do not fit a weight {tuple(shape)}"
            )
        if up.ndim == 4 and up.shape[2:] != (1, 1):
            raise ValueError(f"LoRA up factor {tuple(up.shape)}: expected a 1x1 convolution")
        return self.scale * (up.flatten(1) @ down.flatten(1)).reshape(shape)


@dataclass(frozen=True)
class LowRankDeltas:
    """All deltas of one file."""

    entries: Mapping[Target, LowRank]

    def __len__(self) -> int:
        return len(self.entries)

    def of(self, component: Component) -> dict[str, LowRank]:
        """The deltas of one component, by underscored module name."""
        return {target.name: low for target, low in self.entries.items() if target.component == component}


def low_rank(module: Any, low: LowRank, x: Tensor, strength: float = 1.0) -> Tensor:
    """What a delta adds to the output of a linear layer or convolution for its input x: scale * up(down(x))."""
    weight = module.weight
    down = low.down.to(x).reshape(-1, *weight.shape[1:])
    down = down.clone() if down.is_inference() else down  # no graph takes an inference tensor
    up = (strength * low.scale * low.up.to(x)).reshape(weight.shape[0], -1, *(1,) * (weight.ndim - 2))
    if weight.ndim == 2:
        return F.linear(F.linear(x, down), up)
    return F.conv2d(F.conv2d(x, down, None, module.stride, module.padding, module.dilation), up)


_PREFIXES: tuple[tuple[str, Component], ...] = (
    ("lora_unet_", "unet"),
    ("lora_te2_", "text_2"),
    ("lora_te1_", "text"),
    ("lora_te_", "text"),
    ("text_encoder_2.", "text_2"),
    ("text_encoder.", "text"),
    ("unet.", "unet"),
)
# What stands between the module's name and the end of the key, for either factor.
_FACTOR = re.compile(
    r"\.(?:lora_(?P<ab>[AB])(?:\.\w+)?"
    r"|lora_(?P<kohya>down|up)"
    r"|(?:lora|lora_linear_layer)\.(?P<old>down|up))\.weight$"
)
_PROCESSOR = re.compile(r"\.processor\.to_(?P<which>q|k|v|out)_lora\.(?P<part>down|up)\.weight$")
_ALPHA = re.compile(r"\.(?:network_)?alpha$")
_OTHER_KINDS = {
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "dora_scale": "DoRA",
    "lora_magnitude_vector": "DoRA",
    "lora_mid": "a Tucker-decomposed LoCon",
    "oft_": "OFT",
    "ia3": "IA3",
}


def read_lora(weights: Mapping[str, Tensor]) -> LowRankDeltas:
    """The deltas of a LoRA file, whichever of the three layouts it has; layouts may be mixed.

    Raises ValueError if a key is of no known layout, a factor lacks its partner, ranks differ, or nothing is there.
    """
    factors: dict[Target, dict[str, Tensor]] = {}
    for key, value in weights.items():
        target, part = _parse(key)
        factors.setdefault(target, {})[part] = value
    if not factors:
        raise ValueError("LoRA file: expected pairs of low-rank factors, found no tensor")
    return LowRankDeltas({target: _pair(target, parts) for target, parts in factors.items()})


def holds_lora(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is a LoRA, of a layout that `read_lora` knows or one that it refuses."""
    return any(key.startswith("lora_") or _FACTOR.search(key) or _PROCESSOR.search(key) for key in keys)


def _pair(target: Target, parts: dict[str, Tensor]) -> LowRank:
    for part in ("up", "down"):
        if part not in parts:
            raise ValueError(
                f"LoRA file: {target.component} {target.name} has no {part} factor; the file is incomplete"
            )
    up, down = parts["up"], parts["down"]
    if up.ndim < 2 or down.ndim < 2 or up.shape[1] != down.shape[0]:
        raise ValueError(
            f"LoRA file: {target.name} has factors {tuple(up.shape)} and {tuple(down.shape)} of different rank"
        )
    alpha = parts.get("alpha")
    return LowRank(up, down, 1.0 if alpha is None else float(alpha) / down.shape[0])


def _parse(key: str) -> tuple[Target, str]:
    """Target and part ("up", "down" or "alpha") of one key."""
    for mark, kind in _OTHER_KINDS.items():
        if mark in key:
            raise ValueError(
                f"LoRA file: {key!r} belongs to {kind}, expected plain low-rank factors; convert the file first"
            )
    component, name = _component(key.removeprefix("base_model.model."))
    if match := _PROCESSOR.search(name):
        layer = "to_out.0" if match["which"] == "out" else f"to_{match['which']}"
        return _target(component, f"{name[: match.start()]}.{layer}"), match["part"]
    if match := _FACTOR.search(name):
        part = {"A": "down", "B": "up"}[match["ab"]] if match["ab"] else match["kohya"] or match["old"]
        return _target(component, name[: match.start()]), part
    if match := _ALPHA.search(name):
        module = re.sub(r"\.(?:lora|lora_A|lora_linear_layer)$", "", name[: match.start()])
        return _target(component, re.sub(r"\.processor\.to_(\w+)_lora$", _processor_layer, module)), "alpha"
    raise ValueError(f"LoRA file: key {key!r} is of no known layout (diffusers/PEFT, kohya, attention processor)")


def _processor_layer(match: re.Match[str]) -> str:
    return ".to_out.0" if match[1] == "out" else f".to_{match[1]}"


def _component(key: str) -> tuple[Component, str]:
    for prefix, component in _PREFIXES:
        if key.startswith(prefix):
            return component, key.removeprefix(prefix)
    return "unet", key


def _target(component: Component, module: str) -> Target:
    return Target(component, module.replace(".", "_"))


_ENDS = {
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}
_LDM = re.compile(r"^(?P<block>input_blocks|middle_block|output_blocks)_(?P<rest>.*)$")


def diffusers_name(name: str, layers_per_block: int) -> str:
    """The diffusers spelling of an LDM-style UNet module name (underscored); any other name as it is.

    LDM numbers the blocks through: `input_blocks.n` is layer (n-1) mod (layers+1) of level (n-1) div (layers+1), the
    last one of a level being its downsampler. `layers_per_block` is 2 for SD1.5 and SDXL.
    """
    match = _LDM.match(name)
    return _from_ldm(match["block"], match["rest"], layers_per_block) if match else _ENDS.get(name, name)


def layers_per_block(names: Iterable[str]) -> int:
    """How many layers the first level of a network has, from diffusers' module names, underscored."""
    found = {match[1] for name in names if (match := re.match(r"down_blocks_0_resnets_(\d+)_", name))}
    return max(len(found), 1)


def _from_ldm(block: str, rest: str, layers: int) -> str:
    number, _, inner = rest.partition("_")
    sub, _, leaf = inner.partition("_")
    n = int(number)
    if block == "middle_block":
        return f"mid_block_attentions_0_{inner}" if n == 1 else f"mid_block_resnets_{n // 2}_{_resnet(inner)}"
    if block == "input_blocks":
        if n == 0:
            return "conv_in"
        level, layer = divmod(n - 1, layers + 1)
        if layer == layers:
            return f"down_blocks_{level}_downsamplers_0_conv"
        place = f"down_blocks_{level}"
    else:
        level, layer = divmod(n, layers + 1)
        place = f"up_blocks_{level}"
        if leaf == "conv":
            return f"{place}_upsamplers_0_conv"
    return f"{place}_attentions_{layer}_{leaf}" if sub == "1" else f"{place}_resnets_{layer}_{_resnet(leaf)}"


def _resnet(leaf: str) -> str:
    names = {
        "in_layers_0": "norm1",
        "in_layers_2": "conv1",
        "emb_layers_1": "time_emb_proj",
        "out_layers_0": "norm2",
        "out_layers_3": "conv2",
        "skip_connection": "conv_shortcut",
    }
    return names.get(leaf, leaf)
