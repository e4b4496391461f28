"""Layers denoised together mean the same in every host: one attention over all their tokens, and a LoRA for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from velatura import hosts
from velatura.core.ddim import ddim_sample
from velatura.core.joint_layers import joint_sample, stacked
from velatura.core.lora import LowRank, LowRankDeltas, Target
from velatura.core.protocols import Condition
from velatura.core.shared_attention import layer_loras, shared_attention

from .conftest import Loaded

ATTENTION = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
SHAPES = {
    ATTENTION: (160, 160),
    "down_blocks_0_resnets_0_conv1": (96, 96, 3, 3),
    "down_blocks_0_attentions_0_proj_in": (96, 96, 1, 1),
    "time_embedding_linear_2": (384, 384),
}


def lora(seed: int, *names: str) -> LowRankDeltas:
    generator = torch.Generator().manual_seed(seed)
    entries = {}
    for name in names:
        out, inner, *kernel = SHAPES[name]
        up = torch.randn(out, 1 + seed, *(1 for _ in kernel), generator=generator)
        down = torch.randn(1 + seed, inner, *kernel, generator=generator) / (inner * len(kernel or [1])) ** 0.5
        entries[Target("unet", name)] = LowRank(up, down, 0.5)
    return LowRankDeltas(entries)


class Joined:
    """Attention of pairs of rows written out: their tokens side by side, softmax of each head's scores."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
        h = hidden_states
        if encoder_hidden_states is None:
            h = torch.stack([torch.cat([h[i], h[i + 1]]) for i in range(0, len(h), 2)])
        context = h if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            each.unflatten(-1, (attn.heads, -1)) for each in (attn.to_q(h), attn.to_k(context), attn.to_v(context))
        )
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
        out = attn.to_out[0](torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2))
        return out.reshape(hidden_states.shape)


@pytest.fixture
def four() -> tuple[Tensor, Tensor]:
    """Two samples of two layers, and their timesteps, which differ."""
    return torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(8)), torch.tensor([700, 0, 700, 0])


@pytest.fixture
def prompts(loaded: Loaded) -> Condition:
    return loaded.text.encode(["a red ball", "a meadow", "a blue feather", ""])


def test_one_layer_is_plain_attention(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition) -> None:
    plain = loaded.model.predict_noise(x, t, condition)
    with loaded.model.attention(shared_attention(1)):
        ruled = loaded.model.predict_noise(x, t, condition)
    torch.testing.assert_close(ruled, plain, rtol=0, atol=2e-5)


def test_two_layers_are_attention_over_the_tokens_of_both(
    loaded: Loaded, four: Any, prompts: Condition, random_folder: Any
) -> None:
    reference = hosts.load("diffusers").load_folder(random_folder)[0]
    reference.unet.set_attn_processor(Joined())
    with torch.no_grad():
        expected = reference.predict_noise(*four, prompts)
    with loaded.model.attention(shared_attention(2)):
        got = loaded.model.predict_noise(*four, prompts)
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-5)
    assert float((got - loaded.model.predict_noise(*four, prompts)).abs().max()) > 1e-3


def test_a_batch_that_is_no_multiple_is_refused(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition) -> None:
    with loaded.model.attention(shared_attention(2)), pytest.raises(ValueError, match="multiples of 2"):
        loaded.model.predict_noise(x, t, condition)


def test_each_row_runs_with_its_layers_lora(loaded: Loaded, four: Any, prompts: Condition) -> None:
    (x, t), loras = four, [lora(1, *SHAPES), lora(2, ATTENTION)]
    plain = loaded.model.predict_noise(x, t, prompts)
    with layer_loras(loaded.model, loras, [1.0, -0.5]), torch.no_grad():
        got = loaded.model.predict_noise(x, t, prompts)
    for layer, strength in enumerate((1.0, -0.5)):
        own = loaded.model.with_lora(loras[layer], strength).predict_noise(x, t, prompts)
        torch.testing.assert_close(got[layer::2], own[layer::2], rtol=0, atol=5e-5)
        assert float((own - plain)[layer::2].abs().max()) > 1e-3
    torch.testing.assert_close(loaded.model.predict_noise(x, t, prompts), plain, rtol=0, atol=0)


def test_factors_in_half_precision_hold_under_autocast(loaded: Loaded, four: Any, prompts: Condition) -> None:
    """Files are in half precision, which a processor's autocast does not take everywhere."""
    full = lora(1, *SHAPES)
    half = LowRankDeltas(
        {name: LowRank(low.up.half(), low.down.half(), low.scale) for name, low in full.entries.items()}
    )
    seen = []
    for each in (full, half):
        hooks = layer_loras(loaded.model, [each, None], [1.0, 1.0])
        with hooks, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            seen.append(loaded.model.predict_noise(*four, prompts).float())
    torch.testing.assert_close(*seen, rtol=0.05, atol=0.05)


def test_a_layer_without_lora_is_the_model_alone(loaded: Loaded, four: Any, prompts: Condition) -> None:
    plain = loaded.model.predict_noise(*four, prompts)
    with layer_loras(loaded.model, [None, lora(2, ATTENTION)], [1.0, 1.0]), torch.no_grad():
        got = loaded.model.predict_noise(*four, prompts)
    torch.testing.assert_close(got[::2], plain[::2], rtol=0, atol=1e-6)
    assert float((got - plain)[1::2].abs().max()) > 1e-3


def test_gradients_reach_the_factors_through_shared_attention(loaded: Loaded, four: Any, prompts: Condition) -> None:
    one = lora(1, *SHAPES)
    factors = [each for low in one.entries.values() for each in (low.up, low.down)]
    for each in factors:
        each.requires_grad_()
    model = loaded.model
    rule, hooks = model.attention(shared_attention(2)), layer_loras(model, [one, None], [1.0, 1.0])
    with torch.inference_mode(), model.differentiable(), rule, hooks:
        model.predict_noise(*four, prompts)[1::2].square().sum().backward()
    # Layer 2 has no LoRA of its own: what moves it is what it sees of layer 1.
    assert all(each.grad is not None and bool(each.grad.abs().sum() > 0) for each in factors)


@pytest.mark.parametrize("name", ["double_blocks_0_img_attn_qkv", ATTENTION], ids=["unknown layer", "wrong shape"])
def test_a_lora_for_another_network_is_refused(loaded: Loaded, name: str) -> None:
    strange = LowRankDeltas({Target("unet", name): LowRank(torch.ones(3, 1), torch.ones(1, 3))})
    with pytest.raises(ValueError, match="another model family"), layer_loras(loaded.model, [None, strange], [1, 1]):
        pass


def test_a_given_layer_stays_and_moves_the_other(loaded: Loaded) -> None:
    generator = torch.Generator().manual_seed(4)
    noise = torch.randn(1, 2, 4, 16, 16, generator=generator)
    conditions = [loaded.text.encode(["a red ball"]), loaded.text.encode(["a meadow"])]
    times = torch.tensor([900, 600, 300])
    found = []
    for strength in (1.0, 2.0):
        given = strength * torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(5))
        with loaded.model.attention(shared_attention(2)):
            out = joint_sample(
                loaded.model, noise, conditions, loaded.text.encode([""]), w=3.0, timesteps=times, clean={0: given}
            )
        assert torch.equal(out[:, 0], given)
        found.append(out[:, 1])
    assert float((found[0] - found[1]).abs().max()) > 1e-3


def test_layers_apart_are_samples_drawn_apart(loaded: Loaded) -> None:
    noise = torch.randn(2, 2, 4, 16, 16, generator=torch.Generator().manual_seed(6))
    prompts, null = [loaded.text.encode([each]) for each in ("a red ball", "a meadow")], loaded.text.encode([""])
    times = torch.tensor([900, 400])
    together = joint_sample(loaded.model, noise, prompts, null, w=3.0, timesteps=times)
    with torch.no_grad():
        for layer, prompt in enumerate(prompts):
            alone = ddim_sample(loaded.model, noise[:, layer], prompt, null, w=3.0, timesteps=times)
            torch.testing.assert_close(together[:, layer], alone, rtol=0, atol=1e-4)


def test_prompts_of_different_length_keep_their_meaning(loaded: Loaded, four: Any) -> None:
    (x, t), one = four, loaded.text.encode(["a red ball"])
    double = one.with_embedding(one.embedding.repeat(1, 2, 1))
    got = loaded.model.predict_noise(x, t, stacked([one, double], 2))
    torch.testing.assert_close(got, loaded.model.predict_noise(x, t, one), rtol=0, atol=2e-5)


def test_a_model_of_layers_is_both_at_once_and_leaves_the_other_alone(
    loaded: Loaded, four: Any, prompts: Condition
) -> None:
    loras, strengths = [lora(1, *SHAPES), None], [0.5, 1.0]
    before = loaded.model.predict_noise(*four, prompts)
    with loaded.model.attention(shared_attention(2)), layer_loras(loaded.model, loras, strengths), torch.no_grad():
        expected = loaded.model.predict_noise(*four, prompts)
    together = loaded.host.model(loaded.host.with_layers(loaded.native[0], loras, strengths))
    torch.testing.assert_close(together.predict_noise(*four, prompts), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(loaded.model.predict_noise(*four, prompts), before, rtol=0, atol=0)
