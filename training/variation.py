"""What the step-wise variation regulariser is made of (Smooth Diffusion, Guo et al. 2023, Eq. 9 and 10): the size of
the change of a predicted picture, where it is taken, and what guards the colours meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..core.guidance import guide
from ..core.protocols import Condition
from ..core.schedule import NoiseSchedule
from .diffusion import stratified
from .examples import join, take

Network = Callable[[Tensor, Tensor, Condition], Tensor]
"""`network(x_t, t, condition)` is eps_theta."""
Predict = Callable[[Tensor, Tensor], Tensor]
"""`predict(x_t, t)` is eps_theta, of conditions of its own."""


class RunningMean(nn.Module):
    """The papers' `a`: starts at 0, `a <- a + memory (mean - a)`. A module, so that checkpoints hold it."""

    a: Tensor

    def __init__(self, memory: float) -> None:
        super().__init__()
        self.memory = memory
        self.register_buffer("a", torch.zeros(()))

    @torch.no_grad()
    def renew(self, mean: Tensor) -> Tensor:
        """Take in the mean of a step, and give the new `a`."""
        self.a.lerp_(mean.to(self.a), self.memory)
        return self.a.clone()


def variation(
    schedule: NoiseSchedule,
    predict: Callable[[Tensor, Tensor], Tensor],
    z_0: Tensor,
    eps: Tensor,
    u: Tensor,
    t: Tensor,
    power: int = 0,
    relative: bool = False,
) -> tuple[Tensor, Tensor]:
    """`sqrt(1 - abar_t) ||J_eps^T u||` for each sample, [B], and the network's noise [B, C, h, w], both differentiable.

    J_eps is the Jacobian of x0_hat with respect to the noise that made x_t; one backward pass gives J_eps^T u, as the
    gradient of x0_hat . u (Smooth Diffusion, Eq. 10). `u` [B, C, h, w] is N(0, I) / sqrt(C h w): of length one in
    expectation. `predict(x_t, t)` is eps_theta. With `power`, u is first turned so many times by `u <- J_eps^T u`, to
    length one: towards the direction in which the picture changes most, for J_eps of a denoiser is nearly symmetric.
    `relative` gives the change of x0_hat with y = x_t / sqrt(abar_t) in place of sqrt(1 - abar_t) J_eps: where it is r,
    DDIM's ODE dy / dsigma = (y - x0_hat) / sigma makes a difference along u grow as sigma^(1 - r), so above 1 it grows.
    """
    eps = eps.detach().requires_grad_()
    x_t = schedule.add_noise(z_0, eps, t)
    noise = predict(x_t, t)
    x0_hat = schedule.x0_from_epsilon(x_t, noise, t)
    abar = schedule.alpha_bar(t)
    scale = ((abar / (1 - abar)) if relative else (1 - abar)).sqrt().to(x0_hat).reshape(-1, 1, 1, 1)
    for _ in range(power):
        (u,) = torch.autograd.grad((x0_hat * u).sum(), eps, retain_graph=True)
        u = torch.nn.functional.normalize(u.flatten(1)).view_as(u)
    (gradient,) = torch.autograd.grad((scale * x0_hat * u).sum(), eps, create_graph=True)
    return gradient.flatten(1).norm(dim=1), noise


def colour_drift(schedule: NoiseSchedule, noise: Tensor, original: Tensor, t: Tensor) -> Tensor:
    """The squared difference of two predictions' x0_hat at one x_t, in the mean over the whole picture: its colours,
    without where things are. [B] from noises [B, C, h, w]."""
    return _difference(schedule, noise, original, t).mean((2, 3)).square().mean(1)


def picture_drift(schedule: NoiseSchedule, noise: Tensor, original: Tensor, t: Tensor) -> Tensor:
    """The mean squared difference of two predictions' x0_hat at one x_t. [B] from noises [B, C, h, w]."""
    return _difference(schedule, noise, original, t).square().mean((1, 2, 3))


def picture_weight(schedule: NoiseSchedule, t: Tensor, most: float = 25.0) -> Tensor:
    """What the squared error of the noise is weighed by to be that of x0_hat, 1 / SNR, but at `most` so much: [B]."""
    return (1 / schedule.alpha_bar(t) - 1).clamp(max=most)


def _difference(schedule: NoiseSchedule, noise: Tensor, original: Tensor, t: Tensor) -> Tensor:
    return (1 / schedule.alpha_bar(t) - 1).sqrt().to(noise).reshape(-1, 1, 1, 1) * (noise - original)


@dataclass(frozen=True)
class Drawn:
    """One batch's random numbers: timesteps [B], noise, directions, and whose prompt is dropped [B]."""

    t: Tensor
    eps: Tensor
    u: Tensor
    dropped: Tensor


def drawn(z_0: Tensor, among: range, dropout: float, generator: torch.Generator) -> Drawn:
    """All that is random in a batch, with timesteps `among` those."""
    t = among.start + stratified(len(z_0), len(among), generator)
    eps = torch.randn(z_0.shape, generator=generator)
    u = torch.randn(z_0.shape, generator=generator) / z_0[0].numel() ** 0.5
    return Drawn(t, eps, u, torch.rand(len(z_0), generator=generator) < dropout)


def coarsened(u: Tensor, side: int) -> Tensor:
    """Directions [B, C, h, w], the same over areas of `side` x `side` cells: those of each area's first cell."""
    areas = u[..., ::side, ::side].repeat_interleave(side, -2).repeat_interleave(side, -1)
    return areas[..., : u.shape[-2], : u.shape[-1]]


@torch.no_grad()
def on_path(schedule: NoiseSchedule, predict: Predict, r: Drawn, last: int, steps: int) -> tuple[Tensor, Drawn]:
    """DDIM from pure noise `r.eps` at timestep `last` to each row's own `r.t`, in equal steps: x0_hat and, in place of
    `r.eps`, the noise which make the x_t of there."""
    x, now = r.eps, torch.full_like(r.t, last)
    z_0, eps = x, x
    for k in range(1, steps + 1):
        eps = predict(x, now)
        z_0 = schedule.x0_from_epsilon(x, eps, now)
        now = last + ((r.t - last) * k) // steps
        x = schedule.add_noise(z_0, eps, now)
    return z_0, replace(r, eps=eps)


def prediction(network: Network, condition: Condition, null: Condition | None, w: float, count: int) -> Predict:
    """eps_theta of `count` rows; with `null`, eps_null + w (eps_c - eps_null), both in one call of the network."""
    if null is None:
        return lambda x_t, t: network(x_t, t, condition)
    pair = join([condition, null], [count, 1])
    pair = take(pair, torch.cat([torch.arange(count), torch.full((count,), count)]))

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        with_prompt, without = network(torch.cat([x_t, x_t]), torch.cat([t, t]), pair).chunk(2)
        return guide(without, with_prompt, w)

    return predict


def without_prompts(condition: Condition, null: Condition, dropped: Tensor) -> Condition:
    """The condition with the null text in the rows that are `dropped` [B]."""
    count = len(dropped)
    both = join([condition, null], [count, 1])
    return take(both, torch.where(dropped, count, torch.arange(count)))
