"""Samplers in sigma space, by ComfyUI's names.

A step function is `steps(denoise, x, sigmas, draw, report) -> x`, with x [B, C, h, w] = x_0 + sigma eps, at sigmas[0]
when it starts and at sigmas[-1] when it returns; `denoise(x, sigma) -> x_0`; `draw()` gives fresh normal noise in x's
shape; `report(i, x_0)` is called once at each step. sigmas is a vector; a last value of 0 means all noise is removed.

They are written here because diffusers' schedulers are bound to their own noise levels: in 0.42 only Euler and UniPC
take levels from outside, and none ends at a level above 0, as KSamplerAdvanced does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ...core import consistency

Denoise = Callable[[Tensor, Tensor], Tensor]
Draw = Callable[[], Tensor]
Report = Callable[[int, Tensor], None]
Steps = Callable[[Denoise, Tensor, Tensor, Draw, Report], Tensor]


@dataclass(frozen=True)
class Sampler:
    """What travels on a SAMPLER wire. `fresh_mask_noise`: what a mask protects is noised with noise of its own."""

    name: str
    steps: Steps
    fresh_mask_noise: bool = False


@dataclass(frozen=True)
class EngineSampler:
    """One of the engine's own loops on a SAMPLER wire. Its noise is that of `core.consistency.noise_after_start`."""

    name: str
    steps: consistency.Steps
    fresh_mask_noise: bool = False


def slope(x: Tensor, sigma: Tensor, x0: Tensor) -> Tensor:
    """dx/dsigma of the probability-flow ODE, (x - x_0) / sigma (Karras et al. 2022, Eq. 3 with s(t) = 1)."""
    return (x - x0) / sigma


def ancestral(sigma: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
    """A step from `sigma` to `following` as a step down to a lower level and the noise to add there: (down, up) with
    down^2 + up^2 = following^2 (DDPM's posterior variance; Song et al. 2021, DDIM, Eq. 16 with eta = 1)."""
    ratio = following / sigma  # squares of the levels themselves would lose the smallest ones
    return following * ratio, following * (1 - ratio**2) ** 0.5


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, draw: Draw, report: Report) -> Tensor:
    """First-order steps: Karras et al. 2022, Alg. 1 without the correction. DDIM in these variables."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        report(i, x0)
        x = x + slope(x, sigma, x0) * (following - sigma)
    return x


def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, draw: Draw, report: Report) -> Tensor:
    """Euler steps to the lower level, then noise."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        report(i, x0)
        down, up = ancestral(sigma, following)
        x = x0 if down == 0 else x + slope(x, sigma, x0) * (down - sigma) + draw() * up
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, draw: Draw, report: Report) -> Tensor:
    """The trapezoidal rule: Karras et al. 2022, Alg. 1. The step to 0 is Euler's."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        report(i, x0)
        d, h = slope(x, sigma, x0), following - sigma
        if following > 0:
            ahead = x + d * h
            d = (d + slope(ahead, following, denoise(ahead, following))) / 2
        x = x + d * h
    return x


def _midpoint(denoise: Denoise, x: Tensor, sigma: Tensor, following: Tensor, d: Tensor) -> Tensor:
    """DPM-Solver-2 in sigma: the slope at the geometric mean of the two levels (Lu et al. 2022, Alg. 1, r_1 = 1/2)."""
    middle = sigma.log().lerp(following.log(), 0.5).exp()
    halfway = x + d * (middle - sigma)
    return x + slope(halfway, middle, denoise(halfway, middle)) * (following - sigma)


def dpm_2(denoise: Denoise, x: Tensor, sigmas: Tensor, draw: Draw, report: Report) -> Tensor:
    """Midpoint steps; the step to 0 is Euler's."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        report(i, x0)
        d = slope(x, sigma, x0)
        x = _midpoint(denoise, x, sigma, following, d) if following > 0 else x + d * (following - sigma)
    return x


def dpm_2_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, draw: Draw, report: Report) -> Tensor:
    """Midpoint steps to the lower level, then noise."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        report(i, x0)
        d = slope(x, sigma, x0)
        down, up = ancestral(sigma, following)
        if down == 0:
            x = x + d * (down - sigma)
        else:
            x = _midpoint(denoise, x, sigma, down, d) + draw() * up
    return x


def lms(denoise: Denoise, x: Tensor, sigmas: Tensor, draw: Draw, report: Report, order: int = 4) -> Tensor:
    """Linear multistep (Adams-Bashforth on uneven levels): integrate the polynomial through the last `order` slopes."""
    slopes: list[Tensor] = []
    nodes = sigmas.double().cpu()
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        report(i, x0)
        slopes = [slope(x, sigma, x0), *slopes[: order - 1]]
        if following == 0:
            x = x0
        else:
            visited = nodes[i + 1 - len(slopes) : i + 1].flip(0)
            weights = _integrals(visited, nodes[i], nodes[i + 1])
            x = x + sum(w * d for w, d in zip(weights, slopes, strict=True))
    return x


def _integrals(nodes: Tensor, start: Tensor, end: Tensor) -> list[float]:
    """The integral from start to end of each Lagrange basis polynomial over `nodes`. Gauss-Legendre quadrature is exact
    for them: n points integrate degree 2n - 1."""
    import numpy

    points, weights = (torch.from_numpy(each) for each in numpy.polynomial.legendre.leggauss(len(nodes)))
    tau = (start + end) / 2 + points * (end - start) / 2
    result = []
    for j, node in enumerate(nodes):
        others = torch.cat([nodes[:j], nodes[j + 1 :]])
        basis = ((tau[:, None] - others) / (node - others)).prod(dim=1)
        result.append(float((basis * weights).sum() * (end - start) / 2))
    return result


def dpmpp_2s_ancestral(denoise: Denoise, x: Tensor, sigmas: Tensor, draw: Draw, report: Report) -> Tensor:
    """DPM-Solver++(2S) (Lu et al. 2022b, Alg. 1, r = 1/2) to the lower level, then noise."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        report(i, x0)
        down, up = ancestral(sigma, following)
        if down > 0:
            middle = (sigma.log() + 0.5 * (down.log() - sigma.log())).exp()
            halfway = _towards(x, x0, sigma, middle)
            x0 = denoise(halfway, middle)
        x = _towards(x, x0, sigma, down)
        if following > 0:
            x = x + draw() * up
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, draw: Draw, report: Report) -> Tensor:
    """DPM-Solver++(2M): Lu et al. 2022b, Alg. 2. The first step and the step to 0 are first order."""
    before: Tensor | None = None
    previous = x
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x0 = denoise(x, sigma)
        report(i, x0)
        aim = x0
        if before is not None and following > 0:
            ratio = (before / sigma).log() / (sigma / following).log()
            aim = x0 + (x0 - previous) / (2 * ratio)
        x = _towards(x, aim, sigma, following)
        before, previous = sigma, x0
    return x


def _towards(x: Tensor, x0: Tensor, sigma: Tensor, following: Tensor) -> Tensor:
    """The exact solution for a constant x_0: what is left of the noise shrinks with sigma."""
    return following / sigma * x + (1 - following / sigma) * x0


def lcm(denoise: Denoise, x: Tensor, sigmas: Tensor, draw: Draw, report: Report) -> Tensor:
    """Multistep consistency sampling: jump to x_0, noise it to the next level (Luo et al. 2023, LCM, Alg. 3)."""
    for i, (sigma, following) in enumerate(pairwise(sigmas)):
        x = denoise(x, sigma)
        report(i, x)
        if following > 0:
            x = x + following * draw()
    return x


SAMPLERS: dict[str, Sampler] = {
    each.name: each
    for each in (
        *(Sampler(steps.__name__, steps) for steps in (euler, euler_ancestral, heun, dpm_2, dpm_2_ancestral, lms)),
        *(Sampler(steps.__name__, steps) for steps in (dpmpp_2s_ancestral, dpmpp_2m, lcm)),
        Sampler("ddim", euler, fresh_mask_noise=True),
    )
}
"""In ComfyUI's order."""

SKIPS_PENULTIMATE = frozenset({"dpm_2", "dpm_2_ancestral"})
"""Those for which KSampler leaves the last but one level out."""


def sampler(name: str) -> Sampler:
    """A sampler by name. ValueError lists the names there are."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler_name: this runtime has {', '.join(SAMPLERS)}; it does not have {name!r}")
    return SAMPLERS[name]
