"""A ComfyUI CLIP as the engine's TextEncoder, and CONDITIONING as its Condition."""

# pyright: reportMissingImports=false
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...core.protocols import Condition


class ComfyText:
    """A CLIP with its tokenizer, prompt weights "(word:1.2)" and embeddings included."""

    def __init__(self, native: Any) -> None:
        self.native = native

    def encode(self, prompts: Sequence[str]) -> Condition:
        if isinstance(prompts, str) or not prompts:
            raise ValueError("prompts: expected a list of at least one prompt")
        return joined([condition(self._native(prompt)) for prompt in prompts])

    def _native(self, prompt: str) -> Any:
        return self.native.encode_from_tokens_scheduled(self.native.tokenize(prompt))


def condition(native: Any) -> Condition:
    """A CONDITIONING's first entry; whatever it carries beside the embedding stays in the extras."""
    if not native:
        raise ValueError("conditioning: expected at least one entry, got an empty list")
    embedding, extras = native[0]
    rest = {key: value for key, value in extras.items() if key != "pooled_output"}
    return Condition(embedding, extras.get("pooled_output"), rest)


def conditioning(condition: Condition) -> list[Any]:
    """The CONDITIONING of one condition, its extras as they came."""
    pooled = {} if condition.pooled is None else {"pooled_output": condition.pooled}
    return [[condition.embedding, {**condition.extras, **pooled}]]


def joined(rows: Sequence[Condition]) -> Condition:
    """One condition of all rows; extras are the first row's.

    A prompt longer than the encoder's window comes as several windows. Shorter rows are repeated to the common length,
    as ComfyUI does: cross attention to a repeated context is the same.
    """
    length = math.lcm(*(row.embedding.shape[1] for row in rows))
    embedding = torch.cat([row.embedding.repeat(1, length // row.embedding.shape[1], 1) for row in rows])
    pooled = [row.pooled for row in rows if row.pooled is not None]
    return Condition(embedding, torch.cat(pooled) if len(pooled) == len(rows) else None, rows[0].extras)
