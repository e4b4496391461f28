"""A network of two levels with attention, a LoRA on it and data, small enough to be differentiated twice in a test."""

from __future__ import annotations

import torch
from torch import Tensor

from velatura.core.protocols import Condition
from velatura.core.schedule import NoiseSchedule, Prediction
from velatura.hosts.diffusers import build
from velatura.hosts.diffusers.model import DiffusersModel
from velatura.training import adapters, students

SCHEDULE = NoiseSchedule.scaled_linear()
UNET = {
    "block_out_channels": [8, 8],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
NULL = Condition(torch.zeros(1, 3, 16))


def new_model(prediction: Prediction = "epsilon", schedule: NoiseSchedule = SCHEDULE) -> DiffusersModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DiffusersModel(build.new_unet(UNET), schedule, prediction)


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def data(first: int, count: int) -> tuple[Tensor, Condition]:
    return seeded(count, 4, 4, 4, seed=first), Condition(seeded(count, 3, 16, seed=first + 1))


def new_student(model: DiffusersModel, rank: int = 2) -> students.Student:
    """A LoRA whose both factors count from the first step."""
    lora = adapters.LowRankLayers(model.layers(), rank, which="attention")
    with torch.no_grad():
        for k, up in enumerate(lora.up.values()):
            up.copy_(seeded(*up.shape, seed=k) / 10)
    return students.Student(lora=lora)
