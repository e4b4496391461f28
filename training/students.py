"""What is trained of a network: a LoRA or all of it, and the input by which it is told the guidance."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..core.guidance import guidance_scale_embedding
from ..core.lora import read_lora
from ..core.protocols import Condition, LatentModel
from .adapters import LowRankLayers, lora_tensors, write_weights

TIME_LAYER = "time_embedding_linear_1"
"""The layer whose input LCM adds the guidance embedding to."""
PROJECTION = "time_embedding.cond_proj.weight"


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


def tensors_of(student: Student) -> dict[str, Tensor]:
    """A student as a file holds it, fp16: a LoRA in kohya's layout or a whole network under its own names, and
    `time_embedding.cond_proj.weight` where it is told the guidance."""
    more = {} if student.guidance is None else {PROJECTION: student.guidance.weight.detach().half()}
    if student.lora is not None:
        return {**lora_tensors(student.lora.deltas()), **more}
    network: Any = student.network
    return {**{name: value.half() for name, value in network.state_dict().items()}, **more}


def write_student(path: str | os.PathLike[str], student: Student, *, guidance: float | None = None) -> None:
    """The student's file, whole or not at all. Its header says that the projection takes omega, and which guidance
    scale w = 1 + omega to begin with."""
    header = {} if student.guidance is None else {"velatura_guidance": "omega"}
    if student.guidance is not None and guidance is not None:
        header["velatura_guidance_default"] = f"{guidance:g}"
    write_weights(path, tensors_of(student), header)


def read_student(path: str | os.PathLike[str], student: Student) -> None:
    """Go on from a file that `write_student` left. ValueError unless it is of the same layers, ranks and inputs."""
    tensors = load_file(path)
    projection = tensors.pop(PROJECTION, None)
    if student.lora is None or (projection is None) != (student.guidance is None):
        raise ValueError(f"{path}: expected a LoRA {'with' if student.guidance else 'without'} a guidance input")
    student.lora.load(read_lora(tensors))
    if student.guidance is not None and projection is not None:
        with torch.no_grad():
            student.guidance.weight.copy_(projection)
