"""Recomputing a unit changes what is kept in memory, and not one gradient, first or second."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from velatura.core.recompute import recomputed, recomputing


def seeded(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Block(nn.Module):
    """A unit with parameters of its own, an argument by name, and a dict that it writes into."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.double()
        with torch.no_grad():
            for k, parameter in enumerate(self.parameters()):
                parameter.copy_(seeded(*parameter.shape, seed=100 * seed + k) / 4)

    def forward(self, x: Tensor, context: Tensor | None = None, options: dict[str, int] | None = None) -> Tensor:
        scale = 1.0
        if options is not None:
            options["calls"] = options.get("calls", 0) + 1
            scale = float(options["calls"])
        y = torch.tanh(self.one(x if context is None else x + context))
        return x + scale * torch.tanh(self.two(y * y))


class Network(nn.Module):
    def __init__(self, depth: int = 3, width: int = 4) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, seed) for seed in range(depth))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        options: dict[str, int] = {}
        for block in self.blocks:
            x = block(x, context=context, options=options)
        return x


def gradients(network: Network, units: list[nn.Module]) -> list[Tensor]:
    """Of the penalty on a gradient's norm, with a first-order loss beside it, as in the smoothing of latents."""
    x, context = seeded(2, 4).requires_grad_(), seeded(2, 4, seed=1).requires_grad_()
    with recomputing(units):
        out = network(x, context)
    (gradient,) = torch.autograd.grad((out * seeded(2, 4, seed=2)).sum(), x, create_graph=True)
    loss = out.square().mean() + (gradient.norm(dim=1) - 1).square().sum()
    return [loss, *torch.autograd.grad(loss, [x, context, *network.parameters()])]


def test_first_and_second_derivatives_are_those_of_the_plain_graph():
    network = Network()
    plain, saved = gradients(network, []), gradients(network, list(network.blocks))
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(plain, saved, strict=True))
    assert all("forward" not in vars(block) for block in network.blocks)


def test_it_is_its_own_derivative_by_finite_differences():
    block = Block(3, 0)
    x = seeded(2, 3).requires_grad_()
    weight = block.one.weight

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return recomputed(lambda given: block(given[0]), [x])

    assert torch.autograd.gradcheck(run, (x, weight))
    assert torch.autograd.gradgradcheck(run, (x, weight))


def test_it_is_recomputed_as_it_was_when_it_was_called():
    """The backward pass comes after hooks are gone; without them it would be another network's."""

    def with_hook(units: bool) -> list[Tensor]:
        network, factor = Network(), torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        x = seeded(2, 4).requires_grad_()
        hook = network.blocks[1].one.register_forward_hook(lambda _m, _i, out: out * factor)
        with recomputing(network.blocks if units else ()):
            out = network(x, seeded(2, 4, seed=1))
        hook.remove()
        network.blocks[1].one = nn.Linear(4, 16).double()
        (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return [gradient, *torch.autograd.grad(gradient.norm(), [x, factor])]

    for a, b in zip(with_hook(False), with_hook(True), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)


def test_hooks_on_a_unit_see_it_once_and_attached():
    network, x, seen = Network(), seeded(2, 4).requires_grad_(), list[Tensor]()
    hook = network.blocks[0].register_forward_hook(lambda _m, _i, out: seen.append(out))
    with recomputing(network.blocks):
        network(x, seeded(2, 4, seed=1))
    hook.remove()
    (gradient,) = torch.autograd.grad(seen[0].sum(), x)
    assert len(seen) == 1 and bool(gradient.abs().sum() > 0)


def test_a_parameter_changed_before_the_backward_pass_is_noticed():
    network, x = Network(), seeded(2, 4).requires_grad_()
    with recomputing(network.blocks):
        out = network(x, seeded(2, 4, seed=1))
    with torch.no_grad():
        network.blocks[0].one.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """A count of the numbers that graphs keep alive, made while this is open."""
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Kept:
        held = _Kept(tensor.detach())
        kept.add(held)
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        yield lambda: sum({h.tensor.untyped_storage().data_ptr(): h.tensor.numel() for h in kept}.values())


class _Kept:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept(units: bool) -> tuple[int, int]:
    """Numbers kept for the backward pass, and for the one of a recorded backward pass."""
    network = Network(depth=6, width=8).requires_grad_(False)
    x = seeded(64, 8).requires_grad_()
    with counted() as count:
        with recomputing(network.blocks if units else ()):
            out = network(x, seeded(64, 8, seed=1))
        first = count()
        (gradient,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        second = count()
        assert gradient.requires_grad
    return first, second


def test_it_keeps_less_also_for_second_derivatives():
    (plain_first, plain_second), (first, second) = kept(False), kept(True)
    assert first < plain_first / 3 and second < plain_second / 4


def test_without_gradients_it_is_the_call_itself():
    network, x = Network(), seeded(2, 4)
    with recomputing(network.blocks), torch.no_grad():
        out = network(x, x)
    assert not out.requires_grad and torch.equal(out, network(x, x))
    frozen = Network().requires_grad_(False)
    with recomputing(frozen.blocks):
        assert not frozen(x, x).requires_grad


def test_autocast_is_that_of_the_call():
    block, x = Block(4, 0).float(), seeded(2, 4).float().requires_grad_()

    def gradient(units: list[nn.Module]) -> Tensor:
        with recomputing(units), torch.autocast("cpu", torch.bfloat16):
            out = block(x)
        return torch.autograd.grad(out.float().sum(), x)[0]

    assert torch.equal(gradient([]), gradient([block]))


def test_a_replaced_forward_and_an_outer_context_are_left_alone():
    network, x = Network(), seeded(2, 4).requires_grad_()
    replaced = network.blocks[0]
    replaced.forward = lambda x, **_: x
    with recomputing(network.blocks):
        with recomputing(network.blocks):
            network(x, x)
        assert "forward" in vars(network.blocks[1])
        network(x, x).sum().backward()
    assert "forward" in vars(replaced) and "forward" not in vars(network.blocks[1])


def test_an_error_inside_leaves_the_modules_as_they_were():
    network = Network()
    with pytest.raises(RuntimeError), recomputing(network.blocks):
        network(seeded(2, 5).requires_grad_(), seeded(2, 5))
    assert all("forward" not in vars(block) for block in network.blocks)
