"""Prompts to conditions with CLIP text towers, in ComfyUI's prompt syntax and chunking.

`(word)` weighs 1.1, `(word:1.3)` weighs 1.3, parentheses nest, `\\(` is a plain parenthesis. A prompt longer than the
tower's window is cut into windows whose embeddings follow one another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...core.lora import Component, LowRankDeltas
from ...core.protocols import Condition
from .merge import merged

Token = tuple[int, float]
"""A token and its weight."""

_WHOLE = 8  # A weighted piece of fewer tokens than this is not broken across windows.


def weighted_pieces(text: str) -> list[tuple[str, float]]:
    """The prompt as plain pieces with weights, in order: "a (b (c:2))" is [("a ", 1), ("b ", 1.1), ("c", 2)]."""
    hidden = text.replace("\\)", "\0\1").replace("\\(", "\0\2")
    return [(piece.replace("\0\1", ")").replace("\0\2", "("), weight) for piece, weight in _pieces(hidden, 1.0)]


def _pieces(text: str, weight: float) -> list[tuple[str, float]]:
    result: list[tuple[str, float]] = []
    for part in _groups(text):
        if len(part) < 2 or part[0] != "(" or part[-1] != ")":
            result.append((part, weight))
            continue
        inner, inside = part[1:-1], weight * 1.1
        head, colon, tail = inner.rpartition(":")
        if colon and head:
            try:
                inner, inside = head, float(tail)
            except ValueError:
                inner = part[1:-1]
        result += _pieces(inner, inside)
    return result


def _groups(text: str) -> list[str]:
    """The text cut before and after each outermost pair of parentheses; an unmatched one stays where it is."""
    parts, start, depth = [], 0, 0
    for i, character in enumerate(text):
        if character == "(":
            if depth == 0 and i > start:
                parts.append(text[start:i])
                start = i
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                parts.append(text[start : i + 1])
                start = i + 1
    return [*parts, text[start:]] if start < len(text) else parts


def windows(groups: Sequence[Sequence[Token]], length: int, start: int, end: int, pad: int) -> list[list[Token]]:
    """Groups of tokens laid into windows of exactly `length`: start token, tokens, end token, padding.

    A group that does not fit moves to the next window if it is short, and is broken if it is not. At least one window.
    """
    room = length - 2
    filled: list[list[Token]] = [[]]
    for group in groups:
        rest = list(group)
        while len(rest) > room - len(filled[-1]):
            free = room - len(filled[-1])
            if len(group) >= _WHOLE:
                filled[-1] += rest[:free]
                rest = rest[free:]
            elif len(rest) > room:
                raise ValueError(f"text: a window of {length} tokens is too short for a word of {len(rest)}")
            filled.append([])
        filled[-1] += rest
    return [_closed(each, length, start, end, pad) for each in filled]


def _closed(tokens: Sequence[Token], length: int, start: int, end: int, pad: int) -> list[Token]:
    padding = [(pad, 1.0)] * (length - 2 - len(tokens))
    return [(start, 1.0), *tokens, (end, 1.0), *padding]


@dataclass(frozen=True)
class Tower:
    """A CLIP text transformer and its tokenizer.

    `layer` is the hidden state used, -1 the last; `normed`: the final layer norm is applied to it. `pad` is the token
    after the end token. `length` is the window, start and end included.
    """

    tokenizer: Any
    encoder: Any
    pad: int
    length: int
    layer: int = -1
    normed: bool = True

    @classmethod
    def of(cls, tokenizer: Any, encoder: Any, **options: Any) -> Tower:
        """Window from the encoder's positions; padding with the end token unless said otherwise."""
        length = encoder.config.max_position_embeddings
        options.setdefault("pad", tokenizer.eos_token_id)
        return cls(tokenizer, encoder.eval().requires_grad_(False), length=length, **options)

    def tokens(self, text: str) -> list[list[Token]]:
        """The prompt's windows."""
        if re.search(r"(?:^|[ \n(])embedding:", text):
            raise ValueError("text: this runtime does not read embedding:NAME; take it out, or use ComfyUI")
        groups = [
            [(token, weight) for token in self.tokenizer(piece, add_special_tokens=False)["input_ids"]]
            for piece, weight in weighted_pieces(text)
        ]
        return windows(groups, self.length, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.pad)

    def empty(self) -> list[Token]:
        """The window of the empty prompt."""
        return _closed((), self.length, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.pad)

    @torch.no_grad()
    def encode(self, text: str, count: int = 1) -> tuple[Tensor, Tensor]:
        """Embedding [1, L, D] of at least `count` windows, and the first window's pooled embedding [1, P], float32.

        A weight w moves a token's embedding from that of the empty prompt, e_0, to e_0 + w (e - e_0).
        """
        tokens = self.tokens(text)
        tokens += [self.empty()] * (count - len(tokens))
        weights = torch.tensor([[weight for _, weight in window] for window in tokens])
        weighted = bool((weights != 1).any())
        hidden, pooled = self._run([*tokens, self.empty()] if weighted else tokens)
        if weighted:
            empty = hidden[-1:]
            hidden = empty + weights.to(hidden)[..., None] * (hidden[:-1] - empty)
        return hidden.flatten(0, 1)[None], pooled[:1]

    def _run(self, tokens: Sequence[Sequence[Token]]) -> tuple[Tensor, Tensor]:
        """Hidden states [n, length, D] of n windows; the embeddings at their end tokens [n, P], projected for SDXL."""
        device = next(self.encoder.parameters()).device
        ids = torch.tensor([[token for token, _ in window] for window in tokens], device=device)
        out = self.encoder(input_ids=ids, output_hidden_states=True)
        hidden = out.last_hidden_state
        if self.layer != -1 or not self.normed:
            hidden = out.hidden_states[self.layer]
            hidden = self._final_norm(hidden) if self.normed else hidden
        ends = (ids == self.tokenizer.eos_token_id).int().argmax(dim=1)
        pooled = out.last_hidden_state[torch.arange(len(ids)), ends]
        projection = getattr(self.encoder, "text_projection", None)
        return hidden.float(), (pooled if projection is None else projection(pooled)).float()

    def _final_norm(self, hidden: Tensor) -> Tensor:
        # transformers 5 dropped the module between CLIPTextModel and its layers.
        return getattr(self.encoder, "text_model", self.encoder).final_layer_norm(hidden)

    def with_lora(self, deltas: LowRankDeltas, component: Component, strength: float) -> Tower:
        """The tower with one component of the deltas added; itself where the file has none."""
        found = deltas.of(component)
        if not found:
            return self
        if not hasattr(self.encoder, "text_model"):
            found = {name.removeprefix("text_model_"): low for name, low in found.items()}
        return replace(self, encoder=merged(self.encoder, found, strength))


@dataclass(frozen=True)
class DiffusersText:
    """One tower (SD1.5, Sprites), or two whose embeddings stand side by side (SDXL, pooled from the second)."""

    towers: tuple[Tower, ...]

    def encode(self, prompts: Sequence[str]) -> Condition:
        """A row for each prompt, [B, L, D] with pooled [B, P]; shorter ones are filled up with empty windows."""
        if isinstance(prompts, str) or not prompts:
            raise ValueError("prompts: expected a list of at least one text")
        count = max(len(tower.tokens(prompt)) for tower in self.towers for prompt in prompts)
        rows = [[tower.encode(prompt, count) for tower in self.towers] for prompt in prompts]
        embedding = torch.cat([torch.cat([embedding for embedding, _ in row], dim=-1) for row in rows])
        return Condition(embedding, torch.cat([row[-1][1] for row in rows]))

    def with_lora(self, deltas: LowRankDeltas, strength: float = 1.0) -> DiffusersText:
        """New towers with the text encoders' deltas of a file added."""
        names: tuple[Component, ...] = ("text", "text_2")
        pairs = zip(self.towers, names, strict=False)
        return DiffusersText(tuple(tower.with_lora(deltas, name, strength) for tower, name in pairs))

    def stopping_at(self, layer: int) -> DiffusersText:
        """The embedding of another hidden state, -1 the last, -2 the one before it ("clip skip")."""
        return DiffusersText(tuple(replace(tower, layer=layer) for tower in self.towers))
