"""The trainers beside what is usually on a model that pictures are drawn with: a training learns beside it, says that
it cannot, or is not touched by it."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from . import beside
from .beside import Other, Scene, close, differ, start
from .matrix import works
from .test_beside_engine import control_for_both, row, train
from .trainers import distill, finetune, layers, smooth

pytestmark = pytest.mark.usefixtures("executor")

Tool = Callable[[Scene, Any], Tensor]


TRAINERS = (train, layers, smooth, distill, finetune)
TRAINED = (
    beside.controlnet, control_for_both, beside.ip_adapter, beside.ip_adapter_at_depths, beside.free_u, beside.scaled,
    beside.hyper_tile, beside.token_merging, beside.lcm_levels,
)  # fmt: skip
RANDOM = "a choice by the global random numbers: another one each time"


def same_draws(tool: Tool, scene: Scene, vae: Any) -> Tensor:
    torch.manual_seed(0)  # token merging draws from the global generator
    return tool(scene, vae)


def trained() -> Iterator[Any]:
    for other in TRAINED:
        note = RANDOM if other is beside.token_merging else ""
        yield pytest.param(train, other, id=f"train-{other.__name__}", marks=works("train", row(other), note))
    for tool in TRAINERS[1:]:
        for other in (beside.stock_lora, beside.controlnet, beside.ip_adapter):
            yield pytest.param(tool, other, id=f"{tool.__name__}-{other.__name__}")


@pytest.mark.parametrize(("tool", "other"), list(trained()))
def test_a_training_hears_what_is_beside_it(
    host: Any, plain: Any, vae: Any, folders: None, tool: Tool, other: Other
) -> None:
    made = same_draws(tool, other(start(plain), 1.0), vae)
    assert differ(made, same_draws(tool, start(plain), vae))
    close(same_draws(tool, other(start(plain), 1.0), vae), made)


GUIDED = (beside.rescale_cfg, beside.pag, beside.sag)
UNGUIDED = "a training guides nothing, and is the same with it; Distill LCM, whose teacher is guided, refuses it"


@pytest.mark.parametrize(
    "other",
    [pytest.param(each, id=each.__name__, marks=works("train", each.__name__, UNGUIDED)) for each in GUIDED],
)
def test_guidance_is_no_part_of_a_training(host: Any, plain: Any, vae: Any, folders: None, other: Other) -> None:
    scene = other(start(plain), 1.0)
    for tool in (train, smooth):
        close(tool(scene, vae), tool(start(plain), vae))
    with pytest.raises(ValueError, match="changes the guidance of ComfyUI's samplers"):
        distill(scene, vae)


@works("train", "batches")
def test_each_latent_of_a_training_has_its_prompt(host: Any, plain: Any, vae: Any, folders: None) -> None:
    a, b = beside.prompt(1), beside.prompt(9)

    def learned(*prompts: Any) -> Tensor:
        return smooth(start(plain)._replace(positive=[each for several in prompts for each in several]), None)

    ab, ba = learned(a, b), learned(b, a)
    assert differ(ab, ba)
    close(learned(a, a), learned(a))
