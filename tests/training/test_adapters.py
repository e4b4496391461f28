"""A hooked LoRA is what its file says, and leaves the network that it is hooked onto as it was."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from velatura.core.lcm_file import read_lcm
from velatura.core.lora import read_lora
from velatura.core.protocols import Condition
from velatura.core.schedule import NoiseSchedule
from velatura.hosts.diffusers import build
from velatura.hosts.diffusers.model import DiffusersModel
from velatura.training import adapters, students

UNET = {
    "block_out_channels": [8, 8],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DiffusersModel(build.new_unet(UNET), NoiseSchedule.scaled_linear())


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    return x, torch.tensor([999, 19]), Condition(torch.randn(2, 3, 16, generator=generator))


def filled(layers, **options) -> adapters.LowRankLayers:
    """Factors as after training: `up` is no longer zero."""
    lora = adapters.LowRankLayers(layers, 3, **options)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for up in lora.up.values():
            up.copy_(torch.randn(up.shape, generator=generator) * 0.3)
    return lora


@pytest.mark.parametrize("which", ["all", "attention", "conv"])
def test_hooked_and_merged_are_the_same_network(model, inputs, which):
    lora = filled(model.layers(), alpha=1.5, which=which)
    before = model.predict_noise(*inputs)
    with torch.no_grad(), lora.applied(model.layers()):
        hooked = model.predict_noise(*inputs)
    assert torch.allclose(hooked, model.with_lora(lora.deltas()).predict_noise(*inputs), atol=1e-5)
    assert float((hooked - before).abs().max()) > 0.01
    assert torch.equal(model.predict_noise(*inputs), before)


def test_a_new_lora_changes_nothing_and_is_the_seeds(model, inputs):
    layers = model.layers()
    one, two, other = (adapters.LowRankLayers(layers, 4, seed=seed) for seed in (7, 7, 8))
    state = torch.get_rng_state()
    with torch.no_grad(), one.applied(layers):
        assert torch.equal(model.predict_noise(*inputs), model.predict_noise(*inputs))
        hooked = model.predict_noise(*inputs)
    assert torch.allclose(hooked, model.predict_noise(*inputs))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_gradients_reach_every_factor_and_nothing_else(model, inputs):
    lora = filled(model.layers())
    with model.differentiable(), lora.applied(model.layers()):
        model.predict_noise(*inputs).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in lora.parameters())
    assert all(p.grad is None for p in model.unet.parameters())


def test_a_file_comes_back_as_the_same_factors_in_half_precision(model, inputs, tmp_path):
    layers = model.layers()
    student = students.Student(lora=filled(layers, alpha=6.0), guidance=students.GuidanceInput(layers))
    with torch.no_grad():
        student.guidance.weight.fill_(0.01)
    path = tmp_path / "a.safetensors"
    students.write_student(path, student, guidance=5.0)
    tensors = load_file(path)
    assert {key.rsplit(".", 2)[-2] for key in tensors if "lora_unet" in key and key.endswith("weight")} == {
        "lora_down", "lora_up"
    }  # fmt: skip
    assert all(t.dtype == torch.float16 for t in tensors.values())
    lcm = read_lcm(tensors)
    assert lcm.projection.shape == (8, 256) and len(lcm.deltas) == len(layers)
    merged = model.with_lora(lcm.deltas)
    with torch.no_grad(), student.lora.applied(layers):
        assert torch.allclose(model.predict_noise(*inputs), merged.predict_noise(*inputs), atol=5e-3)
    again = students.Student(lora=adapters.LowRankLayers(layers, 3), guidance=students.GuidanceInput(layers))
    students.read_student(path, again)
    with torch.no_grad(), again.lora.applied(layers):
        assert torch.allclose(model.predict_noise(*inputs), merged.predict_noise(*inputs), atol=5e-3)


def test_the_wrong_file_to_go_on_from_is_refused(model, tmp_path):
    layers = model.layers()
    path = tmp_path / "a.safetensors"
    students.write_student(path, students.Student(lora=filled(layers)))
    with pytest.raises(ValueError, match="with a guidance input"):
        students.read_student(path, students.Student(lora=filled(layers), guidance=students.GuidanceInput(layers)))
    with pytest.raises(ValueError, match="rank 3 in the file; expected 2"):
        students.read_student(path, students.Student(lora=adapters.LowRankLayers(layers, 2)))
    with pytest.raises(ValueError, match="differ"):
        students.read_student(path, students.Student(lora=filled(layers, which="attention")))


def test_the_guidance_input_is_the_networks_own(inputs, model):
    """diffusers' cond_proj with the same weight, and the hook, are one network."""
    layers = model.layers()
    guidance = students.GuidanceInput(layers)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        guidance.weight.copy_(torch.randn(guidance.weight.shape, generator=generator) * 0.2)
    own = build.new_unet({**UNET, "time_cond_proj_dim": 256})
    own.load_state_dict({**model.unet.state_dict(), students.PROJECTION: guidance.weight.detach()})
    omega = torch.tensor([2.0, 7.5])
    with torch.no_grad(), guidance.applied(layers, omega):
        hooked = model.predict_noise(*inputs)
    expected = DiffusersModel(own, model.schedule).predict_noise(*inputs, guidance_embedding=omega)
    assert torch.allclose(hooked, expected, atol=1e-5)
    assert not torch.allclose(hooked, model.predict_noise(*inputs), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank: expected at least 1"),
        ({"rank": 2, "which": "nowhere"}, "'nowhere' matches none of the network's"),
        ({"rank": 2, "which": "("}, "expected one of all, attention, cross or a regular expression"),
    ],
)
def test_impossible_choices_are_refused(model, options, message):
    rank = options.pop("rank")
    with pytest.raises(ValueError, match=message):
        adapters.LowRankLayers(model.layers(), rank, **options)


def test_factors_can_be_trained_where_the_host_runs_in_inference_mode(model, inputs):
    with torch.inference_mode():
        lora = filled(model.layers())
        with model.differentiable(), lora.applied(model.layers()):
            model.predict_noise(*inputs).square().mean().backward()
    assert all(p.grad is not None for p in lora.parameters())


def test_narrow_layers_get_as_many_factors_as_they_have():
    layers: dict[str, nn.Module] = {"a": nn.Linear(4, 2), "b": nn.Conv2d(8, 8, 3)}
    lora = adapters.LowRankLayers(layers, 6)
    assert lora.down["a"].shape == (2, 4) and lora.up["a"].shape == (2, 2) and lora.down["b"].shape == (6, 8, 3, 3)
    read = read_lora(adapters.lora_tensors(lora.deltas())).of("unet")
    assert {low.scale for low in read.values()} == {1.0}
