"""What a condition says beside its embedding, and whether a whole batch can be asked by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .protocols import Condition

_PARTS = {"area": "an area", "mask": "a mask", "gligen": "boxes (GLIGEN)", "hooks": "hooks"}
_SPAN = {"start_percent": 0.0, "end_percent": 1.0}


def check_whole(condition: Condition) -> None:
    """ValueError if it holds for a part of the picture or of the sampling only: a sampler mixes such prompts, one
    evaluation of the network cannot."""
    extras = condition.extras
    found = [words for key, words in _PARTS.items() if extras.get(key) is not None]
    if any(extras.get(key, whole) != whole for key, whole in _SPAN.items()):
        found.append("a range of steps")
    if found:
        raise ValueError(
            f"conditioning: it holds for {' and '.join(found)}, which only samplers can mix with others; this node "
            "asks the network itself, for whole pictures at every step: connect the prompt without it"
        )


def check_one_prompt(native: Sequence[Any]) -> None:
    """ValueError unless a CONDITIONING wire carries one prompt: a sampler mixes several, a single call cannot."""
    if len(native) != 1:
        raise ValueError(f"conditioning: expected one prompt, got {len(native)} combined; connect a text encoder's")


def same(a: Condition, b: Condition) -> bool:
    """Whether the network would predict the same for both."""
    return a is b or (
        alike(a.embedding, b.embedding) and alike(a.pooled, b.pooled) and alike(dict(a.extras), dict(b.extras))
    )


def alike(u: Any, v: Any) -> bool:
    """Whether two values are the same to the network; tensors by their rows, which may repeat."""
    if isinstance(u, Tensor) and isinstance(v, Tensor):
        return u.shape[1:] == v.shape[1:] and bool((u == v.to(u)).all())
    if isinstance(u, dict) and isinstance(v, dict):
        return u.keys() == v.keys() and all(alike(u[key], v[key]) for key in u)
    return u is v or (not isinstance(u, Tensor) and not isinstance(v, Tensor) and bool(u == v))


def check_one_batch(*conditions: Condition) -> None:
    """ValueError unless they carry the same beside their prompts: the rows of one batch have that in common."""
    first = conditions[0].extras
    for other in conditions[1:]:
        keys = sorted(key for key in {**first, **other.extras} if not alike(first.get(key), other.extras.get(key)))
        if keys:
            raise ValueError(
                f"conditioning: the prompts differ in {', '.join(keys)}, which holds for all pictures of one batch; "
                "give it to all of them or to none"
            )
