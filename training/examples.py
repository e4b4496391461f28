"""Training examples: latents and their conditions, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..core.conditions import check_one_batch
from ..core.protocols import Condition

Examples = Callable[[int, int], tuple[Tensor, Condition]]
"""`examples(first, count)`: scaled latents [count, C, h, w] and their condition, of as many rows or one; the same for
the same numbers."""


def shuffled_rows(total: int, seed: int, weights: Tensor | None = None) -> Callable[[int, int], Tensor]:
    """`rows(first, count)`: indices [count] into `total` rows, epoch after epoch, each in its own order. With `weights`
    [total] rows come as often as those say, some of them twice in an epoch and others not at all."""
    order: dict[int, Tensor] = {}

    def position(n: int) -> int:
        epoch, at = divmod(n, total)
        if epoch not in order:
            order.clear()
            generator = torch.Generator().manual_seed(seed + epoch)
            if weights is None:
                order[epoch] = torch.randperm(total, generator=generator)
            else:
                order[epoch] = torch.multinomial(weights.float(), total, replacement=True, generator=generator)
        return int(order[epoch][at])

    return lambda first, count: torch.tensor([position(n) for n in range(first, first + count)])


def from_rows(latents: Tensor, condition: Condition, seed: int) -> Examples:
    """Examples of latents [N, C, h, w] that are all in memory, with one condition for all or one for each.

    ValueError if the condition has another number of rows.
    """
    count = condition.embedding.shape[0]
    if count not in (1, len(latents)):
        raise ValueError(f"conditioning: expected 1 row or one for each of {len(latents)} latents, got {count}")
    rows = shuffled_rows(len(latents), seed)

    def examples(first: int, count: int) -> tuple[Tensor, Condition]:
        chosen = rows(first, count)
        return latents[chosen], take(condition, chosen)

    return examples


def take(condition: Condition, rows: Tensor) -> Condition:
    """Some rows of a condition; one that has a single row stays as it is."""

    def of(value: Tensor) -> Tensor:
        return value if value.shape[0] == 1 else value[rows.to(value.device)]

    pooled = None if condition.pooled is None else of(condition.pooled)
    return Condition(of(condition.embedding), pooled, condition.extras)


def join(conditions: Sequence[Condition], rows: Sequence[int]) -> Condition:
    """Several conditions below one another, each of one row or `rows[i]`, with the same extras, else ValueError.

    Prompts of different lengths are repeated to a common one, which leaves cross attention as it is.
    """
    check_one_batch(*conditions)
    length = math.lcm(*(c.embedding.shape[1] for c in conditions))

    def all_rows(value: Tensor, count: int) -> Tensor:
        return value.expand(count, *value.shape[1:])

    like = conditions[0].embedding
    embedding = torch.cat(
        [
            all_rows(c.embedding.to(like), n).repeat(1, length // c.embedding.shape[1], 1)
            for c, n in zip(conditions, rows, strict=True)
        ]
    )
    pooled = [c.pooled for c in conditions if c.pooled is not None]
    if len(pooled) not in (0, len(conditions)):
        raise ValueError("conditioning: expected a pooled prompt embedding in all of them or in none")
    both = torch.cat([all_rows(p.to(pooled[0]), n) for p, n in zip(pooled, rows, strict=True)]) if pooled else None
    return Condition(embedding, both, conditions[0].extras)
