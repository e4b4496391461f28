"""A world in closed form whose mean is told by the prompt: x_0 ~ N(m(prompt), std^2 I), float64."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from velatura.core.protocols import Condition
from velatura.core.schedule import NoiseSchedule

SHAPE = (2, 4, 4)  # of a latent
WORDS = (8, 8)  # tokens and width of an embedding


class WordedModel:
    """A LatentModel, as far as inversion needs one: eps = E[eps | x_t, prompt], exact. `bend` makes the mean a curved
    function of the embedding, 0 a linear one."""

    latent_channels = SHAPE[0]
    device = torch.device("cpu")
    dtype = torch.float64

    def __init__(self, *, std: float = 0.4, bend: float = 0.2, seed: int = 0) -> None:
        self.schedule = NoiseSchedule.scaled_linear()
        self.std, self.bend, self.calls = std, bend, list[float]()
        shape = (WORDS[0] * WORDS[1], torch.Size(SHAPE).numel())
        self.matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) / 8

    def mean(self, condition: Condition) -> Tensor:
        """m(prompt) [B, *SHAPE]."""
        straight = condition.embedding.double().flatten(1) @ self.matrix
        bent = straight if self.bend == 0 else torch.tanh(self.bend * straight) / self.bend
        return bent.unflatten(1, SHAPE)

    def predict_noise(
        self, x: Tensor, t: Tensor, condition: Condition, *, guidance_embedding: Tensor | None = None
    ) -> Tensor:
        self.calls.append(float(t.flatten()[0]))
        abar = self.schedule.alpha_bar(t).reshape(-1, 1, 1, 1)
        mean = self.mean(condition)
        mean = mean.repeat(1, 1, x.shape[2] // mean.shape[2], x.shape[3] // mean.shape[3])
        return ((1 - abar).sqrt() * (x - abar.sqrt() * mean) / (abar * self.std**2 + 1 - abar)).to(x)

    @contextmanager
    def differentiable(self) -> Iterator[None]:
        with torch.enable_grad():
            yield

    def solution(self, x_0: Tensor, condition: Condition, t: Tensor) -> Tensor:
        """Where the probability-flow ODE leads x_0 by timestep t: it keeps the standardised value."""
        abar = self.schedule.alpha_bar(t)
        return (
            abar.sqrt() * self.mean(condition)
            + (abar * self.std**2 + 1 - abar).sqrt() * (x_0 - self.mean(condition)) / self.std
        )


def prompt(seed: int, rows: int = 1) -> Condition:
    """A condition with random embeddings."""
    generator = torch.Generator().manual_seed(seed)
    return Condition(torch.randn(rows, *WORDS, dtype=torch.float64, generator=generator))


def pictures(rows: int, seed: int = 5) -> Tensor:
    """Latents [rows, *SHAPE]."""
    return torch.randn(rows, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
