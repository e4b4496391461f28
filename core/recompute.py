"""Gradient checkpointing (Chen et al. 2016) that also saves memory under second derivatives.

torch's own checkpoints forget what a unit computed on the way forward, and compute it again on the way back; but a way
back that is itself recorded (`create_graph`) keeps all of it after all. Here a unit's way back is forgotten and
recomputed too: what stays of a unit is its inputs and, once differentiated, the gradient of its output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Run = Callable[[Sequence[Tensor]], Tensor]


@contextmanager
def recomputing(units: Iterable[nn.Module]) -> Iterator[None]:
    """While open, each unit's call, where gradients are recorded, is `recomputed`. Nothing of the modules is changed
    for good.

    A unit takes tensors as arguments of its own (not inside containers) and returns one tensor. It is recomputed as it
    was when it was called: with the hooks, processors and parameters of then, whatever is done to it meanwhile. Hooks
    inside it run once more for each recomputation; hooks on it do not. A unit whose `forward` somebody else has
    replaced is left alone.
    """
    with ExitStack() as stack:
        for unit in units:
            if "forward" not in vars(unit):
                unit.forward = partial(_called, unit)
                stack.callback(delattr, unit, "forward")
        yield


def _called(unit: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward: Any = type(unit).forward
    if not torch.is_grad_enabled():
        return forward(unit, *args, **kwargs)
    twin = _as_it_is(unit)
    given = {**dict(enumerate(args)), **kwargs}
    places = [place for place, value in given.items() if isinstance(value, Tensor)]
    before = {place: _own(value) for place, value in given.items() if place not in places}
    positional = len(args)
    first = [given]  # the call itself has the caller's own arguments, and may write into them

    def run(tensors: Sequence[Tensor]) -> Tensor:
        values = dict(first.pop()) if first else {place: _own(value) for place, value in before.items()}
        values |= dict(zip(places, tensors, strict=True))
        return forward(twin, *(values.pop(place) for place in range(positional)), **values)

    return recomputed(run, [given[place] for place in places])


def _own(value: Any) -> Any:
    """Hosts pass one dict through a whole network and write into it."""
    return dict(value) if type(value) is dict else value


def _as_it_is(module: nn.Module) -> nn.Module:
    """A copy of the modules, around the same parameters, that later hooks and replaced parts do not reach."""
    twin = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict) and name.startswith("_"):  # parameters, children, hooks
            vars(twin)[name] = value.copy()
    vars(twin)["_modules"] = {
        name: None if child is None else _as_it_is(child) for name, child in module._modules.items()
    }
    return twin


class _Unit(NamedTuple):
    """A computation, and the parameters that it uses beside its `count` inputs."""

    run: Run
    leaves: list[Tensor]
    needed: list[bool]

    def again(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """What gradients are wanted of, inputs then leaves, and the output, with a graph of their own."""
        inputs = _cut(tensors[: len(self.needed)])
        output = self.run(inputs)
        return [each for each, needed in zip(inputs, self.needed, strict=True) if needed] + self.leaves, output

    def spread(self, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Gradients of what is needed -> of all inputs and leaves."""
        left = iter(gradients)
        return [next(left) if needed else None for needed in self.needed] + list(left)


def recomputed(run: Run, tensors: Sequence[Tensor]) -> Tensor:
    """`run(tensors)`, of whose graph nothing but `tensors` is kept: a backward pass, and that pass's own, run it again.

    Other leaves that `run` uses (parameters) get their gradients too. `run` must compute the same each time. Autocast
    is that of now. Third derivatives are refused.
    """
    if not torch.is_grad_enabled():
        return run(tensors)
    run = _autocast_as_now(run, tensors[0].device.type)
    inputs = _cut(tensors)
    output = run(inputs)
    if not output.requires_grad:
        return output
    leaves = _leaves(output, inputs)
    unit = _Unit(run, leaves, [each.requires_grad for each in inputs])
    return _Forward.apply(unit, [output.detach()], *tensors, *leaves)


class _Forward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, unit: _Unit, output: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.unit = unit
        ctx.save_for_backward(*tensors)
        return output[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        found = _Backward.apply(ctx.unit, gradients[0], *ctx.saved_tensors)
        return None, None, *ctx.unit.spread(found)


class _Backward(torch.autograd.Function):
    """A unit's gradients, as a function of its inputs, its leaves and its output's gradient."""

    @staticmethod
    def forward(ctx: Any, unit: _Unit, gradient: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.unit = unit
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, *tensors)
        with torch.enable_grad():
            wanted, output = unit.again(tensors)
        found = torch.autograd.grad(output, wanted, gradient, allow_unused=True)
        return tuple(torch.zeros_like(of) if g is None else g for of, g in zip(wanted, found, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor | None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        unit: _Unit = ctx.unit
        gradient, *tensors = ctx.saved_tensors
        with torch.enable_grad():
            gradient = gradient.detach().requires_grad_()
            wanted, output = unit.again(tensors)
            first = torch.autograd.grad(output, wanted, gradient, create_graph=True, allow_unused=True)
        pairs = [(f, o) for f, o in zip(first, outer, strict=True) if f is not None and o is not None]
        pairs = [(f, o) for f, o in pairs if f.requires_grad]
        if not pairs:
            return None, None, *(None for _ in tensors)
        of_gradient, *found = torch.autograd.grad(
            [f for f, _ in pairs], [gradient, *wanted], [o for _, o in pairs], allow_unused=True
        )
        return None, of_gradient, *unit.spread(found)


def _cut(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [each.detach().requires_grad_(each.requires_grad) for each in tensors]


def _leaves(output: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The leaves of the output's graph that are no inputs."""
    known = {id(each) for each in inputs}
    found: dict[int, Tensor] = {}
    seen, ahead = set[Any](), [output.grad_fn]
    while ahead:
        node: Any = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor) and id(leaf) not in known:
            found[id(leaf)] = leaf
        ahead.extend(following for following, _ in node.next_functions)
    return list(found.values())


def _autocast_as_now(run: Run, device: str) -> Run:
    """A backward pass runs outside the context in which the network was called."""
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)

    def again(tensors: Sequence[Tensor]) -> Tensor:
        # Its cache of cast weights would outlive the graph that made them.
        with torch.autocast(device, dtype, enabled, cache_enabled=False):
            return run(tensors)

    return again
