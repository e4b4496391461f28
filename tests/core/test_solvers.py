"""A solver step is what it claims: right on data whose flow is known, of its order, by its number of evaluations."""

import itertools

import pytest
import torch

from velatura.core import solvers
from velatura.core.ddim import ddim_transfer
from velatura.core.schedule import NoiseSchedule

from .gaussian import GaussianModel

SCHEDULE = NoiseSchedule.scaled_linear()
ORDERS = {"ddim": 1, "dpm_solver": 2, "dpm_solver_pp": 2}


def solve(name: str, model: GaussianModel, x, start: float, end: float, steps: int):
    """x along the flow in `steps` equal steps of lambda."""
    sigmas = torch.linspace(
        float(SCHEDULE.sigma(torch.tensor(start)).log()), float(SCHEDULE.sigma(torch.tensor(end)).log()), steps + 1,
        dtype=torch.float64,
    ).exp()  # fmt: skip
    times = SCHEDULE.timestep(sigmas)
    for t, s in itertools.pairwise(times):
        at, to = t.expand(len(x)), s.expand(len(x))
        x = solvers.SOLVERS[name](SCHEDULE, model.predict_noise, x, at, to)
    return x


@pytest.fixture
def x():
    return torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_with_the_solvers_order(name, x):
    model = GaussianModel(SCHEDULE)
    start, end = 900.0, 100.0
    exact = model.solution(x, torch.tensor(start), torch.tensor(end))
    errors = [float((solve(name, model, x, start, end, n) - exact).abs().max()) for n in (16, 32, 64)]
    for coarse, fine in itertools.pairwise(errors):
        order = torch.tensor(coarse / fine).log2()
        assert order == pytest.approx(ORDERS[name], abs=0.25), errors


@pytest.mark.parametrize("name", ORDERS)
def test_one_step_is_exact_where_its_model_is(name, x):
    """Pure noise (x_0 = 0) has eps constant along the flow; a single point has x_0 constant. One of them is what each
    solver holds fixed, and DDIM holds both."""
    t, s = torch.full((6,), 800), torch.full((6,), 300)
    point = GaussianModel(SCHEDULE, mean=0.3, std=0.0)

    def toward_point(at, time):
        return SCHEDULE.epsilon_from_x0(at, torch.full_like(at, point.mean), time)

    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x_t = SCHEDULE.add_noise(torch.full_like(x, point.mean), eps, t)
    exact = SCHEDULE.add_noise(torch.full_like(x, point.mean), eps, s)
    assert torch.allclose(solvers.SOLVERS[name](SCHEDULE, toward_point, x_t, t, s), exact, atol=1e-12)
    x_0 = torch.full_like(x, -0.4)
    x_t, exact = SCHEDULE.add_noise(x_0, eps, t), SCHEDULE.add_noise(x_0, eps, s)
    assert torch.allclose(solvers.SOLVERS[name](SCHEDULE, lambda *_: eps, x_t, t, s), exact, atol=1e-12)


def test_ddim_is_the_transfer_of_core(x):
    model = GaussianModel(SCHEDULE)
    t, s = torch.full((6,), 500), torch.full((6,), 480)
    expected = ddim_transfer(SCHEDULE, x, model.predict_noise(x, t), t, s)
    assert torch.equal(solvers.ddim(SCHEDULE, model.predict_noise, x, t, s), expected)


@pytest.mark.parametrize(("name", "calls"), [("ddim", 1), ("dpm_solver", 2), ("dpm_solver_pp", 2)])
def test_evaluations_are_counted_and_samples_keep_their_own_times(name, calls, x):
    model = GaussianModel(SCHEDULE)
    seen = []

    def evaluate(at, time):
        seen.append(time)
        return model.predict_noise(at, time)

    t = torch.tensor([999, 799, 599, 399, 199, 19])
    s = (t - 20).clamp(min=0)
    together = solvers.SOLVERS[name](SCHEDULE, evaluate, x, t, s)
    assert len(seen) == calls and torch.equal(seen[0], t)
    alone = [
        solvers.SOLVERS[name](SCHEDULE, model.predict_noise, x[i : i + 1], t[i : i + 1], s[i : i + 1]) for i in range(6)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-12)


@pytest.mark.parametrize("name", ["dpm_solver", "dpm_solver_pp"])
def test_second_order_refuses_clean_data(name, x):
    with pytest.raises(ValueError, match="at least 0, got -1"):
        solvers.SOLVERS[name](SCHEDULE, lambda *_: x, x, torch.full((6,), 19), torch.full((6,), -1))
