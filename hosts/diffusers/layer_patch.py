"""Patches of transparent pictures and layers on diffusers' networks: merged where they hold for all steps, hooks where
they hold for some."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.frame_patch import FramePatch
from ...core.layer_patch import LayerPatch, applied, check_given, check_size
from ...core.schedule import NoiseSchedule
from ...core.tiles import Window
from .merge import grown
from .sigmas import NoiseLevels


@dataclass(frozen=True)
class Stage:
    """A patch that holds while the noise level is within `levels`, from start down to end; `given` is scaled."""

    patch: LayerPatch
    strength: float
    levels: tuple[float, float]
    given: Tensor | None

    @contextmanager
    def at(self, network: nn.Module, level: float, x: Tensor, window: Window | None = None) -> Iterator[None]:
        """While open, the network computes as this stage wants it at the level, for latents like x [B, C, h, w], or for
        a window of them."""
        start, end = self.levels
        if not end <= level <= start:
            yield
            return
        given = self.given
        if given is not None:
            check_size(given, x)
            given = given[torch.arange(len(x)) % len(given)].to(x)
            given = given if window is None else given[(..., *window)]
        with applied(modules_of(network), self.patch, self.strength, given):
            yield


@dataclass(frozen=True)
class FrameStage:
    """The same for the SD 1.5 form; `image` [S, 3, H, W] in -1 .. 1 is the given layer's picture."""

    patch: FramePatch
    strength: float
    levels: tuple[float, float]
    image: Tensor | None

    @contextmanager
    def at(self, network: nn.Module, level: float, x: Tensor, window: Window | None = None) -> Iterator[None]:
        """As Stage's. ValueError for a window: its tokens are those of a whole picture."""
        start, end = self.levels
        if not end <= level <= start:
            yield
            return
        if window is not None:
            raise ValueError("model: layers that are drawn together cannot be computed in tiles; set tile to 0")
        with self.patch.applied(modules_of(network), self.strength, self.patch.signals(self.image, x)):
            yield


def framed(
    network: nn.Module,
    schedule: NoiseSchedule,
    patch: FramePatch,
    strength: float,
    span: tuple[float, float],
    image: Tensor | None,
) -> FrameStage:
    """The stage of an SD 1.5 patch. ValueError if it is for another network."""
    patch.fits(modules_of(network))
    levels = NoiseLevels.of(schedule)
    return FrameStage(patch, strength, (levels.at_percent(span[0]), levels.at_percent(span[1])), image)


def modules_of(network: nn.Module) -> dict[str, Any]:
    """Every module with a weight, by name with dots as underscores."""
    return {
        name.replace(".", "_"): module
        for name, module in network.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor)
    }


def staged(
    network: nn.Module,
    schedule: NoiseSchedule,
    channels: int,
    patch: LayerPatch,
    strength: float,
    span: tuple[float, float],
    given: Tensor | None,
) -> tuple[nn.Module, Stage | None]:
    """The network with as much of the patch as can be merged, and what is left for hooks. ValueError if a name or shape
    does not fit, or `given` is not what the patch takes."""
    fitted = patch.fitted(modules_of(network))
    check_given(fitted, given, channels)
    levels = NoiseLevels.of(schedule)
    limits = levels.at_percent(span[0]), levels.at_percent(span[1])
    if span != (0, 1):
        return network, Stage(fitted, strength, limits, given)
    hooked, rest = fitted.split(channels)
    return grown(network, rest, strength), Stage(hooked, strength, limits, given) if len(hooked) else None


def running(
    stages: tuple[Stage | FrameStage, ...],
    network: nn.Module,
    schedule: NoiseSchedule,
    x: Tensor,
    t: Tensor,
    window: Window | None = None,
) -> ExitStack:
    """All stages at once, for all of x or a window of it. A given layer's row is at timestep 0; what counts is the one
    that is drawn."""
    stack = ExitStack()
    level = float(schedule.sigma(t.max())) if stages else 0.0
    for stage in stages:
        stack.enter_context(stage.at(network, level, x, window))
    return stack
