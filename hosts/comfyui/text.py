"""A ComfyUI CLIP as the engine's TextEncoder, and CONDITIONING as its Condition."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ...core.conditions import check_one_prompt
from ...core.protocols import Condition


class ComfyText:
    """A CLIP with its tokenizer, prompt weights "(word:1.2)" and embeddings included."""

    def __init__(self, native: Any) -> None:
        self.native = native

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """A row for each prompt; shorter ones are filled up with empty windows. Extras are the first row's."""
        if isinstance(prompts, str) or not prompts:
            raise ValueError("prompts: expected a list of at least one text")
        tokens = [self.native.tokenize(prompt) for prompt in prompts]
        empty = self.native.tokenize("")
        windows = max(len(lists) for row in tokens for lists in row.values())
        filled = [{name: lists + empty[name] * (windows - len(lists)) for name, lists in row.items()} for row in tokens]
        rows = [condition(self.native.encode_from_tokens_scheduled(row)) for row in filled]
        pooled = [row.pooled for row in rows if row.pooled is not None]
        return Condition(
            torch.cat([row.embedding for row in rows]),
            torch.cat(pooled) if len(pooled) == len(rows) else None,
            rows[0].extras,
        )


def condition(native: Any) -> Condition:
    """A CONDITIONING of one prompt; whatever it carries beside the embedding stays in the extras."""
    check_one_prompt(native)
    embedding, extras = native[0]
    rest = {key: value for key, value in extras.items() if key != "pooled_output"}
    return Condition(embedding, extras.get("pooled_output"), rest)


def negative(native: Any, positive: Any) -> Condition:
    """What guidance leads away from. ComfyUI's samplers tell the network and adapters that it is (an IP-Adapter has
    another picture for it), and put a ControlNet of `positive` that is to hold for both on it."""
    away, towards = condition(native), condition(positive).extras
    extras = {"prompt_type": "negative", **away.extras}
    if towards.get("control_apply_to_uncond") and towards.get("control") is not None:
        extras.setdefault("control", towards["control"])
    return replace(away, extras=extras)


def conditioning(condition: Condition) -> list[Any]:
    """The CONDITIONING of one condition, its extras as they came."""
    pooled = {} if condition.pooled is None else {"pooled_output": condition.pooled}
    return [[condition.embedding, {**condition.extras, **pooled}]]
