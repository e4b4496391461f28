"""LoRA reading. A failure means a file is ignored, misread or added at the wrong strength."""

import pytest
import torch
from torch import Tensor

from velatura.core.lora import Target, diffusers_name, read_lora

PLACE = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
KOHYA = "lora_unet_" + PLACE.replace(".", "_")
UP, DOWN = torch.randn(8, 2), torch.randn(2, 6)
Q = Target("unet", f"{PLACE}.to_q".replace(".", "_"))
OUT = Target("unet", f"{PLACE}.to_out.0".replace(".", "_"))

LAYOUTS: dict[str, dict[str, Tensor]] = {
    "peft": {f"unet.{PLACE}.to_q.lora_A.weight": DOWN, f"unet.{PLACE}.to_q.lora_B.weight": UP},
    "peft, wrapped": {
        f"base_model.model.{PLACE}.to_q.lora_A.default.weight": DOWN,
        f"base_model.model.{PLACE}.to_q.lora_B.default.weight": UP,
    },
    "older diffusers": {f"unet.{PLACE}.to_q.lora.down.weight": DOWN, f"unet.{PLACE}.to_q.lora.up.weight": UP},
    "kohya": {f"{KOHYA}_to_q.lora_down.weight": DOWN, f"{KOHYA}_to_q.lora_up.weight": UP},
    "processor": {
        f"{PLACE}.processor.to_q_lora.down.weight": DOWN,
        f"{PLACE}.processor.to_q_lora.up.weight": UP,
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_same_delta(layout: str) -> None:
    deltas = read_lora(LAYOUTS[layout])
    assert list(deltas.entries) == [Q]
    torch.testing.assert_close(deltas.entries[Q].delta(torch.Size([8, 6])), UP @ DOWN)


@pytest.mark.parametrize(
    "key",
    [f"{KOHYA}_to_q.alpha", f"unet.{PLACE}.to_q.alpha", f"{PLACE}.processor.to_q_lora.alpha"],
)
def test_alpha_over_rank_scales_the_delta(key: str) -> None:
    layout = next(v for v in LAYOUTS.values() if key.rpartition(".")[0] in next(iter(v)))
    deltas = read_lora({**layout, key: torch.tensor(1.0)})
    torch.testing.assert_close(deltas.entries[Q].delta(torch.Size([8, 6])), 0.5 * UP @ DOWN)


def test_the_processor_layouts_out_projection_is_the_first_of_a_list() -> None:
    key = f"unet.{PLACE}.processor.to_out_lora"
    assert list(read_lora({f"{key}.down.weight": DOWN, f"{key}.up.weight": UP}).entries) == [OUT]


@pytest.mark.parametrize(
    ("prefix", "component"),
    [
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_", "text"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_", "text"),
        ("lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_", "text_2"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.", "text"),
        ("text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora.", "text_2"),
    ],
)
def test_text_encoders_are_told_apart(prefix: str, component: str) -> None:
    deltas = read_lora({f"{prefix}down.weight": DOWN, f"{prefix}up.weight": UP})
    assert list(deltas.entries) == [Target(component, "text_model_encoder_layers_0_self_attn_q_proj")]


def test_convolutions_multiply_as_matrices() -> None:
    down, up = torch.randn(2, 4, 3, 3), torch.randn(5, 2, 1, 1)
    low = next(iter(read_lora({"unet.c.lora_A.weight": down, "unet.c.lora_B.weight": up}).entries.values()))
    x = torch.randn(1, 4, 6, 6)
    two = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, down), up)
    torch.testing.assert_close(torch.nn.functional.conv2d(x, low.delta(torch.Size([5, 4, 3, 3]))), two)


def test_a_delta_that_does_not_fit_the_weight_says_so() -> None:
    low = read_lora(LAYOUTS["kohya"]).entries[Q]
    with pytest.raises(ValueError, match="do not fit a weight"):
        low.delta(torch.Size([8, 7]))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "found no tensor"),
        ({f"{KOHYA}_to_q.lora_down.weight": DOWN}, "no up factor"),
        ({f"{KOHYA}_to_q.lora_down.weight": DOWN, f"{KOHYA}_to_q.lora_up.weight": torch.ones(8, 3)}, "different rank"),
        ({f"{KOHYA}_to_q.hada_w1_a": DOWN}, "LoHa"),
        ({f"{KOHYA}_to_q.dora_scale": DOWN}, "DoRA"),
        ({"model.diffusion_model.input_blocks.0.0.weight": DOWN}, "no known layout"),
    ],
)
def test_a_file_that_is_no_plain_lora_is_refused_by_name(weights: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_lora(weights)


@pytest.mark.parametrize(
    ("ldm", "diffusers"),
    [
        ("input_blocks_0_0", "conv_in"),
        (
            "input_blocks_1_1_transformer_blocks_0_attn1_to_q",
            "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        ),
        ("input_blocks_5_0_in_layers_2", "down_blocks_1_resnets_1_conv1"),
        ("input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv"),
        ("middle_block_1_proj_in", "mid_block_attentions_0_proj_in"),
        ("middle_block_2_emb_layers_1", "mid_block_resnets_1_time_emb_proj"),
        ("output_blocks_2_1_conv", "up_blocks_0_upsamplers_0_conv"),
        ("output_blocks_5_2_conv", "up_blocks_1_upsamplers_0_conv"),
        (
            "output_blocks_8_1_transformer_blocks_0_attn2_to_v",
            "up_blocks_2_attentions_2_transformer_blocks_0_attn2_to_v",
        ),
        ("output_blocks_8_0_skip_connection", "up_blocks_2_resnets_2_conv_shortcut"),
        ("down_blocks_0_resnets_0_conv1", "down_blocks_0_resnets_0_conv1"),
    ],
)
def test_ldm_names_are_translated(ldm: str, diffusers: str) -> None:
    assert diffusers_name(ldm, layers_per_block=2) == diffusers
