"""The files of latent transparency: the released ones and ours, told by their names and shapes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from .transparency import Convention, TransparencyDecoder, TransparencyEncoder

METADATA = "velatura_transparency"


def convention_of(metadata: Mapping[str, str]) -> Convention:
    """What a file's networks were trained with: the released convention where it does not say. ValueError if it says
    something else than numbers."""
    if METADATA not in metadata:
        return Convention()
    try:
        said = json.loads(metadata[METADATA])
        return Convention(float(said["scale"]), float(said["backdrop"]), bool(said["keep_soft"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its metadata {METADATA} cannot be read: {error}") from error


def metadata_of(convention: Convention) -> dict[str, str]:
    """The convention as a file's metadata."""
    return {METADATA: json.dumps(asdict(convention))}


def encoder_from(tensors: Mapping[str, Tensor]) -> TransparencyEncoder:
    """The encoder in a file, of any widths. ValueError if there is none, or not a whole one."""
    if "blocks.0.weight" not in tensors:
        raise ValueError("it is no transparency encoder: expected blocks.0.weight" + _other(tensors))
    widths = tuple(len(tensors.get(f"blocks.{k}.weight", ())) for k in (0, 4, 8, 12))
    last = tensors.get("blocks.16.weight")
    return _filled(lambda: TransparencyEncoder(widths, 4 if last is None else len(last)), tensors, "encoder")


def decoder_from(tensors: Mapping[str, Tensor]) -> TransparencyDecoder:
    """The decoder in a file, of any widths. ValueError if there is none, or not a whole one."""
    if "latent_conv_in.weight" not in tensors:
        raise ValueError("it is no transparency decoder: expected latent_conv_in.weight" + _other(tensors))
    levels = _count(tensors, "down_blocks.{}.resnets.0.conv1.weight")
    widths = tuple(len(tensors[f"down_blocks.{k}.resnets.0.conv1.weight"]) for k in range(levels))
    layers = _count(tensors, "down_blocks.0.resnets.{}.conv1.weight")
    attends = [k for k in range(levels) if f"down_blocks.{k}.attentions.0.to_q.weight" in tensors]
    channels = tensors["latent_conv_in.weight"].shape[1]
    attention_from = min(attends, default=levels)
    return _filled(lambda: TransparencyDecoder(widths, channels, layers, attention_from), tensors, "decoder")


def _filled(make: Any, tensors: Mapping[str, Tensor], what: str) -> Any:
    try:
        with torch.device("meta"):
            network = make()
        network.load_state_dict(dict(tensors), assign=True)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"it is not a whole transparency {what}: {error}") from error
    return network.float().eval().requires_grad_(False)


def _count(tensors: Mapping[str, Tensor], name: str) -> int:
    count = 0
    while name.format(count) in tensors:
        count += 1
    return count


def _other(tensors: Mapping[str, Tensor]) -> str:
    if "latent_conv_in.weight" in tensors:
        return "; it is a decoder"
    if "blocks.0.weight" in tensors:
        return "; it is an encoder"
    return f" among its {len(tensors)} tensors; it is some other model"
