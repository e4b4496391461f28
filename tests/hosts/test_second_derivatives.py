"""Gradients of gradients in every host, with and without recomputation: what the training of Smooth-LoRAs stands on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from velatura.core.protocols import Attend, Condition, Site
from velatura.training import adapters, smooth, students

from .conftest import Loaded

U = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(6)) / 16
EPS = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def z() -> Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(8))


def new_student(loaded: Loaded) -> students.Student:
    lora = adapters.LowRankLayers(loaded.model.layers(), 2, which="attention")
    with torch.no_grad():
        for name in sorted(lora.up):
            generator = torch.Generator().manual_seed(len(name))
            lora.up[name].copy_(torch.randn(lora.up[name].shape, generator=generator) / 20)
    return students.Student(lora=lora)


def regularised(loaded: Loaded, z: Tensor, t: Tensor, condition: Condition, low_memory: bool) -> list[Tensor]:
    """The norms, the network's noise, and the gradients of a Smooth-LoRA's whole loss."""
    model, student = loaded.model, new_student(loaded)
    with torch.inference_mode(), model.differentiable(low_memory=low_memory), sdpa_kernel(SDPBackend.MATH):

        def predict(x_t: Tensor, t: Tensor) -> Tensor:
            return student(model, x_t, t, condition, t)

        norms, noise = smooth.variation(model.schedule, predict, z.clone(), EPS.clone(), U.clone(), t)
        loss = (noise - EPS.clone()).square().mean() + (norms - 0.1).square().mean()
        gradients = torch.autograd.grad(loss, list(student.parameters()))
    return [norms.detach(), noise.detach(), *gradients]


def test_the_variation_is_its_finite_difference(loaded: Loaded, z: Tensor, t: Tensor, condition: Condition) -> None:
    """||J^T u|| times the step is what x0_hat . u changes by when the noise moves along J^T u."""
    model, t = loaded.model, t.clamp(max=900)
    with model.differentiable(), sdpa_kernel(SDPBackend.MATH):
        eps = EPS.clone().requires_grad_()
        x_t = model.schedule.add_noise(z, eps, t)
        x0 = model.schedule.x0_from_epsilon(x_t, model.predict_noise(x_t, t, condition), t)
        (gradient,) = torch.autograd.grad((x0 * U).sum(), eps)
        norms, _ = smooth.variation(model.schedule, lambda x, t: model.predict_noise(x, t, condition), z, EPS, U, t)

    def moved(sign: int) -> Tensor:
        x = model.schedule.add_noise(z, EPS + sign * 0.05 * gradient / column(gradient), t)
        x0 = model.schedule.x0_from_epsilon(x, model.predict_noise(x, t, condition), t)
        return (x0.double() * U.double()).flatten(1).sum(1)

    sigma = (1 - model.schedule.alpha_bar(t)).sqrt()
    slope = sigma * (moved(1) - moved(-1)) / 0.1
    torch.testing.assert_close(norms.double(), slope, rtol=0.03, atol=1e-4)


def column(gradient: Tensor) -> Tensor:
    return gradient.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)


def test_low_memory_gives_the_same_first_and_second_derivatives(
    loaded: Loaded, z: Tensor, t: Tensor, condition: Condition
) -> None:
    """The recomputation comes after the trainer's hooks are gone: without them the gradients would be another
    network's."""
    before = forwards(loaded)
    plain = regularised(loaded, z, t, condition, False)
    saving = regularised(loaded, z, t, condition, True)
    assert all(bool(gradient.abs().max() > 0) for gradient in plain[2:])
    for a, b in zip(plain, saving, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-6 * max(1.0, float(a.abs().max())))
    assert forwards(loaded) == before == []


def forwards(loaded: Loaded) -> list[str]:
    """The modules whose forward is not their class's."""
    native: Any = loaded.model
    network = native.unet if loaded.host.name == "diffusers" else native.native.model.diffusion_model
    return [name for name, module in network.named_modules() if "forward" in vars(module)]


def test_low_memory_recomputes_the_network(loaded: Loaded, z: Tensor, t: Tensor, condition: Condition) -> None:
    """Else it would be a promise of less memory and no more."""

    def recomputed(low_memory: bool) -> int:
        calls = list[Any]()
        hooks = [layer.register_forward_hook(lambda *_: calls.append(0)) for layer in loaded.model.layers().values()]
        with loaded.model.differentiable(low_memory=low_memory):
            x = z.clone().requires_grad_()
            out = loaded.model.predict_noise(x, t, condition)
            forward = len(calls)
            torch.autograd.grad(out.sum(), x)
        for hook in hooks:
            hook.remove()
        return len(calls) - forward

    assert recomputed(False) == 0 and recomputed(True) > 50


def test_taps_and_rules_work_in_low_memory(loaded: Loaded, z: Tensor, t: Tensor, condition: Condition) -> None:
    def rule(site: Site, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        return attend(q, k * 0.5, v * 2) if site.kind == "self" else attend(q, k, v)

    def gradient(low_memory: bool) -> list[Tensor]:
        model, x = loaded.model, z.clone().requires_grad_()
        c = condition.embedding.clone().requires_grad_()
        with model.differentiable(low_memory=low_memory):
            with model.taps("up.0.1", "mid") as features, model.attention(rule):
                model.predict_noise(x, t, condition.with_embedding(c))
            loss = features["up.0.1"].square().mean() + features["mid"].mean()
            return list(torch.autograd.grad(loss, [x, c]))

    for a, b in zip(gradient(False), gradient(True), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-7)
