"""What a method costs, in evaluations of the network."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .protocols import Condition, LatentModel


class CountedModel:
    """A LatentModel that counts: `evaluations` grows by 1 for each row of a forward pass, and by 1 for each row of a
    backward pass through it (the weights are fixed, so a backward pass costs what its forward pass did)."""

    def __init__(self, model: LatentModel) -> None:
        self.model, self.evaluations = model, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def predict_noise(
        self, x: Tensor, t: Tensor, condition: Condition, *, guidance_embedding: Tensor | None = None
    ) -> Tensor:
        """The model's, counted."""
        options = {} if guidance_embedding is None else {"guidance_embedding": guidance_embedding}
        eps = self.model.predict_noise(x, t, condition, **options)
        self.evaluations += x.shape[0]
        if eps.requires_grad:
            eps.register_hook(self._backward)
        return eps

    def _backward(self, gradient: Tensor) -> None:
        self.evaluations += gradient.shape[0]
