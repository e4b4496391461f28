"""What core may rely on in any host's noise predictor."""

import pytest
import torch
from torch import Tensor

from velatura.core.lora import LowRank, LowRankDeltas, Target
from velatura.core.protocols import Attend, Condition, LatentModel, Site

from .conftest import Loaded

DEEP = torch.Generator().manual_seed(9)
Q = Target("unet", "up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_q")
DELTAS = LowRankDeltas({Q: LowRank(torch.randn(96, 4, generator=DEEP), torch.randn(4, 96, generator=DEEP))})


def test_it_is_a_latent_model(loaded: Loaded) -> None:
    assert isinstance(loaded.model, LatentModel)
    assert loaded.model.latent_channels == 4
    assert len(loaded.model.schedule) == 1000
    assert loaded.model.schedule.sigmas[-1].item() == pytest.approx(14.6146, abs=1e-3)


def test_noise_has_the_latents_shape_and_dtype(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition) -> None:
    eps = loaded.model.predict_noise(x, t, condition)
    assert eps.shape == x.shape
    assert eps.dtype == x.dtype
    assert eps.isfinite().all()


def test_samples_do_not_see_each_other(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition) -> None:
    together = loaded.model.predict_noise(x, t, condition)
    for i in range(len(x)):
        one = Condition(condition.embedding[i : i + 1], extras=condition.extras)
        torch.testing.assert_close(
            loaded.model.predict_noise(x[i : i + 1], t[i : i + 1], one), together[i : i + 1], rtol=0, atol=2e-5
        )


def test_one_condition_row_serves_all_samples(loaded: Loaded, x: Tensor, t: Tensor) -> None:
    one = loaded.text.encode(["a red ball"])
    many = loaded.text.encode(["a red ball"] * 3)
    torch.testing.assert_close(
        loaded.model.predict_noise(x, t, one), loaded.model.predict_noise(x, t, many), rtol=0, atol=2e-5
    )


def test_other_sizes_and_shapes_run(loaded: Loaded, condition: Condition) -> None:
    x = torch.randn(3, 4, 24, 8, generator=torch.Generator().manual_seed(1))
    assert loaded.model.predict_noise(x, torch.tensor([500] * 3), condition).shape == x.shape


def test_a_guidance_embedding_is_refused_by_a_network_without_it(
    loaded: Loaded, x: Tensor, t: Tensor, condition: Condition
) -> None:
    with pytest.raises(ValueError, match="guidance"):
        loaded.model.predict_noise(x, t, condition, guidance_embedding=torch.tensor([8.0]))


def test_places_are_named_as_the_protocol_says(loaded: Loaded) -> None:
    layers = ["down.0.0", "down.0", "down.1.0", "down.1", "mid"]
    assert list(loaded.model.places()) == [*layers, "up.0.0", "up.0.1", "up.0", "up.1.0", "up.1.1", "up.1"]


def test_taps_read_features_and_leave_nothing_behind(
    loaded: Loaded, x: Tensor, t: Tensor, condition: Condition
) -> None:
    model = loaded.model
    shapes = {
        "down.0.0": (3, 96, 16, 16),
        "down.0": (3, 96, 8, 8),
        "down.1": (3, 160, 8, 8),
        "mid": (3, 160, 8, 8),
        "up.0.1": (3, 160, 8, 8),
        "up.0": (3, 160, 16, 16),
        "up.1": (3, 96, 16, 16),
    }
    plain = model.predict_noise(x, t, condition)
    with model.taps(*shapes) as features:
        tapped = model.predict_noise(x, t, condition)
    torch.testing.assert_close(tapped, plain, rtol=0, atol=1e-6)
    assert {place: tuple(f.shape) for place, f in features.items()} == shapes
    before = dict(features)
    model.predict_noise(2 * x, t, condition)
    assert all(features[place] is before[place] for place in shapes)


def test_an_unknown_place_is_named(loaded: Loaded) -> None:
    with pytest.raises(ValueError, match=r"up\.9"), loaded.model.taps("up.9"):
        pass


def test_sites_are_all_attentions_in_running_order(loaded: Loaded) -> None:
    places = ["down.0.0", "down.1.0", "mid", "up.0.0", "up.0.1", "up.1.0", "up.1.1"]
    assert list(loaded.model.sites()) == [Site(p, 0, kind) for p in places for kind in ("self", "cross")]


def test_a_rule_meets_every_site_and_may_do_nothing(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition) -> None:
    met = []

    def rule(site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        met.append(site)
        assert q.shape[0] == 3
        assert k.shape == v.shape
        assert (k.shape[1] == q.shape[1]) == (site.kind == "self")
        return attend(q, k, v)

    plain = loaded.model.predict_noise(x, t, condition)
    with loaded.model.attention(rule):
        ruled = loaded.model.predict_noise(x, t, condition)
    assert tuple(met) == loaded.model.sites()
    torch.testing.assert_close(ruled, plain, rtol=0, atol=2e-5)


def test_a_rule_changes_attention_while_it_is_open_and_not_after(
    loaded: Loaded, x: Tensor, t: Tensor, condition: Condition
) -> None:
    def share(site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        if site.kind == "cross":
            return attend(q, k, v)
        # All samples look at all samples' keys: [B, M, C] -> [1, B M, C] -> [B, B M, C].
        k, v = (z.flatten(0, 1)[None].expand(len(z), -1, -1) for z in (k, v))
        return attend(q, k, v)

    plain = loaded.model.predict_noise(x, t, condition)
    with loaded.model.attention(share):
        shared = loaded.model.predict_noise(x, t, condition)
    after = loaded.model.predict_noise(x, t, condition)
    assert (shared - plain).abs().max() > 1e-3
    torch.testing.assert_close(after, plain, rtol=0, atol=0)


def test_an_error_in_a_rule_leaves_the_model_as_it_was(
    loaded: Loaded, x: Tensor, t: Tensor, condition: Condition
) -> None:
    def broken(*_: object) -> Tensor:
        raise KeyError("mine")

    plain = loaded.model.predict_noise(x, t, condition)
    with pytest.raises(KeyError, match="mine"), loaded.model.attention(broken):
        loaded.model.predict_noise(x, t, condition)
    torch.testing.assert_close(loaded.model.predict_noise(x, t, condition), plain, rtol=0, atol=0)


@pytest.mark.parametrize("inference", [False, True], ids=["plain", "inference mode"])
def test_gradients_are_those_of_finite_differences(
    loaded: Loaded, x: Tensor, t: Tensor, condition: Condition, inference: bool
) -> None:
    # Executors run nodes in inference mode; null texts and drags need gradients all the same.
    with torch.inference_mode(inference):
        with loaded.model.differentiable():
            z = x.clone().requires_grad_()
            c = condition.embedding.clone().requires_grad_()
            eps = loaded.model.predict_noise(z, t, condition.with_embedding(c))
            weight = torch.randn(eps.shape, generator=torch.Generator().manual_seed(5))
            grad_z, grad_c = torch.autograd.grad((eps * weight).sum(), [z, c])

        def value(z: Tensor, c: Tensor) -> Tensor:
            return (loaded.model.predict_noise(z, t, condition.with_embedding(c)).double() * weight.double()).sum()

        step = 1e-2
        for grad, variable in ((grad_z, 0), (grad_c, 1)):
            direction = grad / grad.norm()
            ends = []
            for sign in (1, -1):
                at = [x.clone(), condition.embedding.clone()]
                at[variable] = at[variable] + sign * step * direction
                ends.append(value(*at))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert slope.item() == pytest.approx(grad.norm().item(), rel=0.02)


def test_no_parameter_asks_for_a_gradient(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition) -> None:
    with loaded.model.differentiable():
        assert not loaded.model.predict_noise(x, t, condition).requires_grad


def test_features_carry_gradients(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition) -> None:
    with loaded.model.differentiable(), loaded.model.taps("up.0") as features:
        z = x.clone().requires_grad_()
        loaded.model.predict_noise(z, t, condition)
        (grad,) = torch.autograd.grad(features["up.0"].square().sum(), z)
    assert grad.abs().max() > 0


def test_a_lora_makes_a_new_model(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition) -> None:
    plain = loaded.model.predict_noise(x, t, condition)
    half, whole = (loaded.model.with_lora(DELTAS, s).predict_noise(x, t, condition) for s in (0.5, 1.0))
    assert (whole - plain).abs().max() > 1e-3
    assert (half - whole).abs().max() > 1e-4
    torch.testing.assert_close(loaded.model.predict_noise(x, t, condition), plain, rtol=0, atol=0)
    twice = loaded.model.with_lora(DELTAS, 0.5).with_lora(DELTAS, 0.5).predict_noise(x, t, condition)
    torch.testing.assert_close(twice, whole, rtol=0, atol=2e-5)


def test_a_lora_at_strength_zero_is_the_model_itself(
    loaded: Loaded, x: Tensor, t: Tensor, condition: Condition
) -> None:
    plain = loaded.model.predict_noise(x, t, condition)
    torch.testing.assert_close(loaded.model.with_lora(DELTAS, 0.0).predict_noise(x, t, condition), plain)


def test_a_lora_for_another_network_is_refused(loaded: Loaded) -> None:
    strange = LowRankDeltas({Target("unet", "double_blocks_0_img_attn_qkv"): DELTAS.entries[Q]})
    with pytest.raises(ValueError, match="LoRA"):
        loaded.model.with_lora(strange)


def test_gradients_pass_through_a_lora_model(loaded: Loaded, x: Tensor, t: Tensor, condition: Condition) -> None:
    model = loaded.model.with_lora(DELTAS)
    with model.differentiable():
        z = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model.predict_noise(z, t, condition).square().sum(), z)
    assert grad.isfinite().all()
