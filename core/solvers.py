"""One step Psi of the probability-flow ODE, from timestep t to s: DDIM and two second-order solvers.

With alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t), lambda_t = log(alpha_t / sigma_t) and h = lambda_s - lambda_t.
Which ODE is solved is `evaluate`'s business: with guided noise it is LCM's augmented one (LCM, Eq. 14).
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .ddim import ddim_transfer
from .schedule import NoiseSchedule

Evaluate = Callable[[Tensor, Tensor], Tensor]
"""`evaluate(x, t)`: eps at x [B, ...] and timesteps t [B], whole or fractional."""

Solver = Callable[[NoiseSchedule, Evaluate, Tensor, Tensor, Tensor], Tensor]
"""`solver(schedule, evaluate, x_t, t, s)`: x_s for x_t [B, ...] and timesteps t, s [B] in 0 .. T-1."""


def ddim(schedule: NoiseSchedule, evaluate: Evaluate, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """First order, one evaluation: (alpha_s / alpha_t) x_t - sigma_s (e^h - 1) eps, written as DDIM (LCM, Eq. 18)."""
    return ddim_transfer(schedule, x_t, evaluate(x_t, t), t, s)


def dpm_solver(schedule: NoiseSchedule, evaluate: Evaluate, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """DPM-Solver-2 with the midpoint in lambda, two evaluations (Lu et al. 2022a, Algorithm 1)."""
    m, h = _midpoint(schedule, t, s)
    alpha_t, alpha_m, alpha_s = (schedule.signal_and_noise(at, x_t)[0] for at in (t, m, s))
    sigma_m, sigma_s = (schedule.signal_and_noise(at, x_t)[1] for at in (m, s))
    half, whole = (_column(v.expm1(), x_t) for v in (h / 2, h))
    u = alpha_m / alpha_t * x_t - sigma_m * half * evaluate(x_t, t)
    return alpha_s / alpha_t * x_t - sigma_s * whole * evaluate(u, m)


def dpm_solver_pp(schedule: NoiseSchedule, evaluate: Evaluate, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """DPM-Solver++(2S) with the midpoint in lambda, two evaluations (Lu et al. 2022b, Algorithm 1, r = 1/2): the same
    in terms of x_0, which bears large steps and strong guidance better."""
    m, h = _midpoint(schedule, t, s)
    alpha_m, alpha_s = (schedule.signal_and_noise(at, x_t)[0] for at in (m, s))
    sigma_t, sigma_m, sigma_s = (schedule.signal_and_noise(at, x_t)[1] for at in (t, m, s))
    half, whole = (_column(v.expm1(), x_t) for v in (-h / 2, -h))
    u = sigma_m / sigma_t * x_t - alpha_m * half * schedule.x0_from_epsilon(x_t, evaluate(x_t, t), t)
    return sigma_s / sigma_t * x_t - alpha_s * whole * schedule.x0_from_epsilon(u, evaluate(u, m), m)


SOLVERS: dict[str, Solver] = {"ddim": ddim, "dpm_solver": dpm_solver, "dpm_solver_pp": dpm_solver_pp}


def _midpoint(schedule: NoiseSchedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """The timestep halfway from t to s in lambda, and h."""
    if bool((s < 0).any()):
        raise ValueError(f"s: expected timesteps of at least 0, got {s.min():g}; lambda is infinite at clean data")
    # lambda = -log of the variance-exploding noise level.
    low, high = schedule.sigma(s), schedule.sigma(t)
    return schedule.timestep((low * high).sqrt()), high.log() - low.log()


def _column(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like).reshape((-1,) + (1,) * (like.ndim - 1))
