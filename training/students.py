"""What is trained of a network: a LoRA or all of it, and the input by which it is told the guidance."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core.guidance import guidance_scale_embedding
from ..core.protocols import Condition, LatentModel
from .adapters import LowRankLayers

TIME_LAYER = "time_embedding_linear_1"
"""The layer whose input LCM adds the guidance embedding to."""


class GuidanceInput(nn.Module):
    """LCM's omega input for a network that has none: `weight` @ embedding(omega) is added to the sinusoidal timestep
    embedding (LCM, Section 4.1; `time_embedding.cond_proj` of the released networks).

    `weight` [C, W] starts at zero, C being the width of the timestep embedding.
    """

    def __init__(self, layers: Mapping[str, nn.Module], width: int = 256) -> None:
        super().__init__()
        if TIME_LAYER not in layers:
            raise ValueError(f"model: this network has no {TIME_LAYER}; a guidance embedding needs one")
        layer: Any = layers[TIME_LAYER]
        with torch.inference_mode(False):
            self.weight = nn.Parameter(torch.zeros(layer.weight.shape[1], width))

    @contextmanager
    def applied(self, layers: Mapping[str, nn.Module], omega: Tensor) -> Iterator[None]:
        """While open, the network's samples are guided by omega [B]."""
        embedding = guidance_scale_embedding(omega, self.weight.shape[1]).to(self.weight)

        def add(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (inputs[0] + (embedding @ self.weight.T).to(inputs[0]), *inputs[1:])

        hook = layers[TIME_LAYER].register_forward_pre_hook(add)
        try:
            yield
        finally:
            hook.remove()


class Student(nn.Module):
    """A network to be trained, as changes of the model it is called with: `forward` is eps_theta(x_t, omega, c, t).

    `lora` changes the model's layers. `network`, in its place, is a whole network of its own, which `around` makes a
    LatentModel of. `guidance`, with either, is the omega input; without it omega is not looked at.
    """

    def __init__(
        self,
        *,
        lora: LowRankLayers | None = None,
        network: nn.Module | None = None,
        around: Callable[[nn.Module], LatentModel] | None = None,
        guidance: GuidanceInput | None = None,
    ) -> None:
        super().__init__()
        if (lora is None) == (network is None) or (network is None) != (around is None):
            raise ValueError("student: expected a LoRA, or a network and how to call it")
        self.lora, self.network, self.guidance = lora, network, guidance
        self.around = around

    def forward(self, model: LatentModel, x_t: Tensor, t: Tensor, condition: Condition, omega: Tensor) -> Tensor:
        if self.around is not None and self.network is not None:
            model = self.around(self.network)
        with self.applied(model.layers(), omega):
            return model.predict_noise(x_t, t, condition)

    @contextmanager
    def applied(self, layers: Mapping[str, nn.Module], omega: Tensor) -> Iterator[None]:
        """While open, the model of these layers is the student."""
        with ExitStack() as stack:
            if self.lora is not None:
                stack.enter_context(self.lora.applied(layers))
            if self.guidance is not None:
                stack.enter_context(self.guidance.applied(layers, omega))
            yield
