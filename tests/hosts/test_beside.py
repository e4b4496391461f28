"""Two patches on one model, and prompts that are more than prompts: the same in every host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from velatura.core.layer_patch import LayerPatch
from velatura.core.lora import LowRank, LowRankDeltas, Target
from velatura.core.protocols import Condition

from .conftest import Loaded
from .test_shared_attention import ATTENTION, lora

NORM = "down_blocks_0_resnets_0_norm1"


def seeded(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def patches(host: Any, strengths: tuple[float, ...]) -> list[Any]:
    """A LoRA, a patch for all steps, one for some, and a guidance embedding: MODEL -> MODEL."""
    low = LowRank(seeded(160, 2, seed=1), seeded(2, 160, seed=2) / 9)
    patch = LayerPatch({ATTENTION: low}, {}, {NORM: seeded(96, seed=3)})
    first = LowRankDeltas({Target("unet", ATTENTION): LowRank(seeded(160, 2, seed=4), seeded(2, 160, seed=5) / 9)})
    a, b, c = strengths
    return [
        lambda model: host.with_lora(model, None, first, a, 0.0)[0],
        lambda model: host.with_layer_patch(model, patch, b, 0.0, 1.0),
        lambda model: host.with_layer_patch(model, patch, c, 0.0, 0.7),
    ]


def said(loaded: Loaded, steps: list[Any], case: tuple[Any, ...]) -> Tensor:
    model = loaded.native[0]
    for step in steps:
        model = step(model)
    return loaded.host.engine(model).predict_noise(*case)


def test_patches_add_up_in_either_order(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition) -> None:
    case = (x, t, condition)
    whole = said(loaded, patches(loaded.host, (1.0, 0.7, 0.5)), case)
    again = said(loaded, patches(loaded.host, (1.0, 0.7, 0.5))[::-1], case)
    torch.testing.assert_close(again, whole, rtol=0, atol=5e-5)
    for missing in range(3):
        strengths = tuple(0.0 if n == missing else value for n, value in enumerate((1.0, 0.7, 0.5)))
        without = [each for n, each in enumerate(patches(loaded.host, (1.0, 0.7, 0.5))) if n != missing]
        less = said(loaded, without, case)
        assert float((less - whole).abs().max()) > 1e-3
        torch.testing.assert_close(said(loaded, patches(loaded.host, strengths), case), less, rtol=0, atol=5e-5)


def test_a_lora_holds_beside_shared_attention(loaded: Loaded) -> None:
    case = (seeded(4, 4, 16, 16, seed=8), torch.tensor([700] * 4), loaded.text.encode(["a red ball"]))
    host, native = loaded.host, loaded.native[0]
    deltas, shared = lora(1, ATTENTION), [lora(2, ATTENTION), None]
    before = host.with_layers(host.with_lora(native, None, deltas, 1.0, 0.0)[0], shared, [1.0, 1.0])
    after = host.with_lora(host.with_layers(native, shared, [1.0, 1.0]), None, deltas, 1.0, 0.0)[0]
    both = host.model(before).predict_noise(*case)
    torch.testing.assert_close(host.model(after).predict_noise(*case), both, rtol=0, atol=5e-5)
    for one in (host.with_layers(native, shared, [1.0, 1.0]), host.with_lora(native, None, deltas, 1.0, 0.0)[0]):
        assert float((host.model(one).predict_noise(*case) - both).abs().max()) > 1e-3


def test_a_batch_is_in_layers_once(loaded: Loaded) -> None:
    layered = loaded.host.with_layers(loaded.native[0], [None, None], [1.0, 1.0])
    with pytest.raises(ValueError, match="draws 2 layers together already"):
        loaded.host.with_layers(layered, [None, None], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"draws 2 layers together, in samplers"):
        loaded.host.engine(layered)


def test_combined_prompts_are_refused(loaded: Loaded, condition: Condition) -> None:
    one = loaded.host.conditioning(condition)
    with pytest.raises(ValueError, match="expected one prompt, got 2 combined"):
        loaded.host.condition(one + one)
    with pytest.raises(ValueError, match="expected one prompt, got 0"):
        loaded.host.negative([], one)


@pytest.mark.parametrize(
    ("extras", "words"),
    [
        ({"area": (8, 8, 0, 0)}, "an area"),
        ({"mask": torch.ones(1, 16, 16), "mask_strength": 1.0}, "a mask"),
        ({"start_percent": 0.0, "end_percent": 0.5}, "a range of steps"),
        ({"hooks": object()}, "hooks"),
    ],
)
def test_a_prompt_for_a_part_is_refused(loaded: Loaded, x: Tensor, t: Tensor, extras: Any, words: str) -> None:
    condition = loaded.text.encode(["a red ball"])
    part = Condition(condition.embedding, condition.pooled, extras)
    with pytest.raises(ValueError, match=f"conditioning: it holds for .*{words}"):
        loaded.model.predict_noise(x, t, part)


def test_a_prompt_for_all_of_it_is_none_for_a_part(loaded: Loaded, x: Tensor, t: Tensor) -> None:
    condition = loaded.text.encode(["a red ball"])
    whole = Condition(condition.embedding, condition.pooled, {"start_percent": 0.0, "end_percent": 1.0})
    with torch.no_grad():
        a, b = (loaded.model.predict_noise(x, t, each) for each in (condition, whole))
    torch.testing.assert_close(a, b)
