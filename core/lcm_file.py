"""What a file holds that makes a model a latent consistency model: a LoRA, a guidance projection, or both.

An LCM-LoRA is an ordinary LoRA. A guidance-distilled network (LCM, Section 4.1) has one tensor more than others,
`time_embedding.cond_proj.weight` [C, W], which adds the embedding of omega to that of the timestep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from .lora import LowRankDeltas, holds_lora, read_lora

Convention = Literal["omega", "scale"]
"""What the embedding takes: omega = w - 1, as in the paper and diffusers, or the guidance scale w itself."""

PROJECTION = "time_embedding.cond_proj.weight"
_ENDINGS = (PROJECTION, "time_embed.cond_proj.weight")


@dataclass(frozen=True)
class LcmWeights:
    """At least one of `deltas` and `projection` is there. `default` is the guidance scale w that the file suggests."""

    deltas: LowRankDeltas | None
    projection: Tensor | None
    convention: Convention = "omega"
    default: float | None = None


def read_lcm(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> LcmWeights:
    """The LCM parts of a file: a LoRA in any layout of `read_lora`, with or without a guidance projection, or the
    projection of a whole checkpoint, whose network the caller has loaded otherwise.

    Of a whole checkpoint only the projection is asked of `tensors`, which may read lazily. In `metadata`,
    `velatura_guidance` ("omega" or "scale") and `velatura_guidance_default` (a number) are understood. Raises
    ValueError if there is neither part, or one is broken.
    """
    metadata = metadata or {}
    keys = sorted((key for key in tensors if key.endswith(_ENDINGS)), key=len)
    others = [key for key in tensors if key not in keys]
    deltas = read_lora({key: tensors[key] for key in others}) if holds_lora(others) else None
    if deltas is None and not keys:
        raise ValueError(
            f"it is no LCM: expected a LoRA, or a guidance-distilled network with {PROJECTION}, and found neither "
            f"among {len(tensors)} tensors"
        )
    projection = tensors[keys[0]] if keys else None
    return LcmWeights(deltas, projection, _convention(metadata), _default(metadata))


def _convention(metadata: Mapping[str, str]) -> Convention:
    said = metadata.get("velatura_guidance", "omega")
    for known in get_args(Convention):
        if said == known:
            return known
    raise ValueError(f"its metadata velatura_guidance: expected {' or '.join(get_args(Convention))}, got {said!r}")


def _default(metadata: Mapping[str, str]) -> float | None:
    said = metadata.get("velatura_guidance_default")
    try:
        return None if said is None else float(said)
    except ValueError:
        raise ValueError(f"its metadata velatura_guidance_default: expected a number, got {said!r}") from None
