"""The regulariser is the paper's, its gradient is its derivative, and so are the parts that go beyond the paper."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from velatura.core.ddim import ddim_transfer
from velatura.core.protocols import Condition
from velatura.core.schedule import Prediction
from velatura.training import variation
from velatura.training.loop import generator_at

from .twice import NULL, SCHEDULE, new_model, new_student, seeded


@pytest.fixture(autouse=True)
def twice_differentiable():
    with sdpa_kernel(SDPBackend.MATH):
        yield


class Double:
    """One batch in float64: two latents of 4x2x2 and a network with a LoRA."""

    def __init__(self, prediction: Prediction = "epsilon") -> None:
        self.model = new_model(prediction)
        self.model.unet.double()
        self.student = new_student(self.model).double()
        self.z_0, self.eps, self.u = (seeded(2, 4, 2, 2, seed=k).double() for k in (1, 2, 3))
        self.u /= 4
        self.t = torch.tensor([800, 150])
        self.condition = Condition(seeded(2, 3, 16, seed=4).double())

    def predict(self, x_t: Tensor, t: Tensor) -> Tensor:
        return self.student(self.model, x_t, t, self.condition, torch.zeros(len(t)))

    def variation(self) -> Tensor:
        return variation.variation(SCHEDULE, self.predict, self.z_0, self.eps, self.u, self.t)[0]

    def x0_hat(self, eps: Tensor) -> Tensor:
        x_t = SCHEDULE.add_noise(self.z_0, eps, self.t)
        return SCHEDULE.x0_from_epsilon(x_t, self.predict(x_t, self.t), self.t)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_norm_is_that_of_an_explicit_jacobian(prediction: Prediction):
    """sqrt(1 - abar) ||J^T u|| with J written out, entry by entry (Eq. 9); one backward pass finds it (Eq. 10)."""
    batch = Double(prediction)
    jacobian = torch.autograd.functional.jacobian(batch.x0_hat, batch.eps)  # [B, C, h, w, B, C, h, w]
    expected = []
    for k in range(2):
        j = jacobian[k, :, :, :, k].reshape(16, 16)
        sigma = (1 - SCHEDULE.alphas_cumprod[batch.t[k]]).sqrt()
        expected.append(sigma * (j.T @ batch.u[k].flatten()).norm())
    torch.testing.assert_close(batch.variation(), torch.stack(expected), rtol=1e-10, atol=0)


def test_the_noise_it_gives_is_the_networks():
    batch = Double()
    _, noise = variation.variation(SCHEDULE, batch.predict, batch.z_0, batch.eps, batch.u, batch.t)
    x_t = SCHEDULE.add_noise(batch.z_0, batch.eps, batch.t)
    torch.testing.assert_close(noise, batch.predict(x_t, batch.t))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_regularisers_gradient_is_its_finite_difference(prediction: Prediction):
    """Through the double backward, for factors of self and cross attention and both their halves."""
    batch = Double(prediction)
    lora: Any = batch.student.lora
    names = [next(n for n in lora.down if kind in n) for kind in ("attn1_to_q", "attn2_to_v")]
    factors = [part[name] for name in names for part in (lora.down, lora.up)]
    assert torch.autograd.gradcheck(lambda *_: (batch.variation() - 0.3).square(), factors, fast_mode=True)


def test_the_jacobian_product_is_differentiable_in_both_its_inputs():
    batch = Double()
    factor = next(iter(batch.student.lora.up.values()))  # type: ignore[union-attr]
    eps = batch.eps.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda eps, _: (batch.x0_hat(eps) * batch.u).sum((1, 2, 3)), (eps, factor), fast_mode=True
    )


def test_a_turned_direction_is_the_one_that_changes_the_picture_most():
    """Of a symmetric Jacobian, as a denoiser's is, the norm comes to its largest eigenvalue."""
    batch = Double()
    batch.u /= batch.u.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    matrix = torch.linalg.qr(seeded(16, 16, seed=8).double()).Q
    matrix = matrix @ torch.diag(torch.linspace(-0.9, 0.5, 16).double()) @ matrix.T

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        return (x_t.flatten(1) @ matrix).view_as(x_t)

    def norms(power: int) -> Tensor:
        return variation.variation(SCHEDULE, predict, batch.z_0, batch.eps, batch.u, batch.t, power)[0]

    abar = SCHEDULE.alphas_cumprod[batch.t].double()
    jacobian = ((1 - abar) / abar).sqrt()[:, None, None] * (torch.eye(16) - (1 - abar).sqrt()[:, None, None] * matrix)
    largest = (1 - abar).sqrt() * torch.linalg.eigvalsh(jacobian).amax(1)
    torch.testing.assert_close(norms(400), largest, rtol=1e-4, atol=0)
    assert (norms(0) < norms(1)).all() and (norms(1) < norms(3)).all() and (norms(3) < largest).all()


def test_a_relative_norm_above_one_is_a_difference_that_grows():
    """It is x0_hat's with y = x_t / sqrt(abar_t), the Jacobian in DDIM's ODE dy / dsigma = (y - x0_hat) / sigma."""
    batch = Double()

    def x0_hat(y: Tensor) -> Tensor:
        x_t = SCHEDULE.alphas_cumprod[batch.t].double().sqrt().reshape(-1, 1, 1, 1) * y
        return SCHEDULE.x0_from_epsilon(x_t, batch.predict(x_t, batch.t), batch.t)

    sigma = (1 / SCHEDULE.alphas_cumprod[batch.t].double() - 1).sqrt().reshape(-1, 1, 1, 1)
    jacobian = torch.autograd.functional.jacobian(x0_hat, batch.z_0 + sigma * batch.eps)
    expected = [(jacobian[k, :, :, :, k].reshape(16, 16).T @ batch.u[k].flatten()).norm() for k in range(2)]
    got, _ = variation.variation(SCHEDULE, batch.predict, batch.z_0, batch.eps, batch.u, batch.t, relative=True)
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-6, atol=0)


def test_the_guided_prediction_is_both_rows_mixed():
    model, condition = new_model(), Condition(seeded(2, 3, 16))
    x, t = seeded(2, 4, 4, 4, seed=1), torch.tensor([700, 300])

    def network(x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return model.predict_noise(x_t, t, condition)

    with torch.no_grad():
        got = variation.prediction(network, condition, NULL, 3.0, 2)(x, t)
        with_prompt = network(x, t, condition)
        without = network(x, t, Condition(NULL.embedding.expand(2, -1, -1)))
    torch.testing.assert_close(got, 3 * with_prompt - 2 * without, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_coarse_directions_are_the_same_over_areas_and_as_long(side):
    """A direction of the layout: its mean over an area is what it is there. One cell to an area are the papers' own."""
    u = seeded(400, 4, 8, 8) / 256**0.5
    coarse = variation.coarsened(u, side)
    assert coarse.shape == u.shape and (side > 1 or torch.equal(coarse, u))
    for top, left in itertools.product(range(0, 8, side), range(0, 8, side)):
        area = coarse[..., top : top + side, left : left + side]
        assert torch.equal(area, area[..., :1, :1].expand_as(area))
    assert coarse.flatten(1).norm(dim=1).square().mean() == pytest.approx(1, abs=0.1)


def test_a_sampled_state_is_the_samplers():
    """What DDIM comes to at a row's timestep is made again from the x0_hat and the noise that are given."""
    model, condition = new_model(), Condition(seeded(1, 3, 16))
    x, generator = seeded(1, 4, 4, 4, seed=3), generator_at(1, 0)
    r = variation.Drawn(torch.tensor([399]), x, x, torch.tensor([False]))

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        return model.predict_noise(x_t, t, condition)

    z_0, at = variation.on_path(SCHEDULE, predict, r, 999, 3)
    with torch.no_grad():
        for t, s in ((999, 799), (799, 599), (599, 399)):
            x = ddim_transfer(SCHEDULE, x, predict(x, torch.tensor([t])), torch.tensor(t), torch.tensor(s))
    torch.testing.assert_close(SCHEDULE.add_noise(z_0, at.eps, at.t), x, rtol=1e-4, atol=1e-5)
    assert variation.drawn(z_0, range(600, 700), 0.0, generator).t.item() in range(600, 700)


def test_the_guarded_colours_are_those_of_the_whole_picture():
    """What has no mean is no drift; a tint of x0_hat by 0.1 is one of 0.01."""
    t, noise = torch.tensor([300, 700]), seeded(2, 4, 8, 8)
    ripple = torch.tensor([1.0, -1.0]).repeat(4).expand(2, 4, 8, 8)
    torch.testing.assert_close(variation.colour_drift(SCHEDULE, noise + ripple, noise, t), torch.zeros(2))
    tint = 0.1 / (1 / SCHEDULE.alpha_bar(t) - 1).sqrt().float().view(-1, 1, 1, 1)
    drift = variation.colour_drift(SCHEDULE, noise + tint, noise, t)
    torch.testing.assert_close(drift, torch.full((2,), 0.01), rtol=1e-4, atol=1e-6)


def test_what_calm_states_are_held_to_is_the_whole_picture():
    """A ripple without mean is a difference there: of x0_hat by 0.1, one of 0.01."""
    t, noise = torch.tensor([300, 700]), seeded(2, 4, 8, 8)
    ripple = torch.tensor([0.1, -0.1]).repeat(4) / (1 / SCHEDULE.alpha_bar(t) - 1).sqrt().float().view(-1, 1, 1, 1)
    drift = variation.picture_drift(SCHEDULE, noise + ripple, noise, t)
    torch.testing.assert_close(drift, torch.full((2,), 0.01), rtol=1e-4, atol=1e-6)


def test_the_weighed_error_of_the_noise_is_the_pictures():
    """Up to the highest weight, which is that of nearly pure noise."""
    t, noise, other = torch.tensor([300, 700, 990]), seeded(3, 4, 8, 8), seeded(3, 4, 8, 8, seed=1)
    weighed = variation.picture_weight(SCHEDULE, t) * (noise - other).square().mean((1, 2, 3))
    drift = variation.picture_drift(SCHEDULE, noise, other, t)
    torch.testing.assert_close(weighed[:2].float(), drift[:2])
    assert variation.picture_weight(SCHEDULE, t)[2] == 25 and drift[2] > weighed[2]


def test_dropped_prompts_are_the_empty_one():
    condition = Condition(seeded(4, 3, 16), seeded(4, 5), {"note": 1})
    null = Condition(torch.zeros(1, 3, 16), torch.ones(1, 5), {"note": 1})
    got = variation.without_prompts(condition, null, torch.tensor([True, False, False, True]))
    assert torch.equal(got.embedding[[1, 2]], condition.embedding[[1, 2]])
    assert got.embedding[[0, 3]].abs().max() == 0
    assert got.pooled is not None and torch.equal(got.pooled[[0, 3]], torch.ones(2, 5))
    assert got.extras == {"note": 1}
    one = variation.without_prompts(Condition(seeded(1, 2, 16)), NULL, torch.tensor([True, False]))
    assert one.embedding.shape == (2, 6, 16) and one.embedding[0].abs().max() == 0


def test_the_mean_forgets_geometrically():
    running = variation.RunningMean(0.25)
    running.renew(torch.tensor(4.0))
    assert float(running.renew(torch.tensor(2.0))) == pytest.approx(1.0 + 0.25 * 1.0)
