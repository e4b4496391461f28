"""Distillation's fixed point is the exact consistency function; its steps cost what the paper says; a killed run goes
on as if it had not been."""

from __future__ import annotations

import copy
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn

from velatura.core.consistency import boundary_scalings, lcm_timesteps
from velatura.core.protocols import Condition
from velatura.core.schedule import NoiseSchedule
from velatura.hosts.diffusers import build
from velatura.hosts.diffusers.model import DiffusersModel
from velatura.training import adapters, consistency, examples, students
from velatura.training.consistency import ConsistencySettings

SCHEDULE = NoiseSchedule.scaled_linear()
STD = 0.5


class TwoGaussians:
    """A LatentModel of data N(c, STD^2), c the condition's value. Guided noise of two of them is again that of a
    Gaussian, about (1 + omega) c - omega null: the guided flow is known. float64."""

    schedule = SCHEDULE
    device = torch.device("cpu")

    def differentiable(self):
        return nullcontext()

    def predict_noise(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self.noise(x, t, condition.embedding[:, 0, 0])

    def noise(self, x: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        abar = SCHEDULE.alpha_bar(t).reshape(-1, 1, 1, 1)
        return (1 - abar).sqrt() * (x - abar.sqrt() * mean.reshape(-1, 1, 1, 1)) / (abar * STD**2 + 1 - abar)


class Exact(nn.Module):
    """The network whose f is the guided flow's end at t = 0, for a null mean of zero."""

    def forward(self, model: TwoGaussians, x: Tensor, t: Tensor, condition: Condition, omega: Tensor) -> Tensor:
        mean = ((1 + omega) * condition.embedding[:, 0, 0]).reshape(-1, 1, 1, 1)

        def marginal(at: Tensor) -> tuple[Tensor, Tensor]:
            abar = SCHEDULE.alpha_bar(at).reshape(-1, 1, 1, 1)
            return abar.sqrt() * mean, (abar * STD**2 + 1 - abar).sqrt()

        (m, s), (m0, s0) = marginal(t), marginal(torch.zeros_like(t))
        end = m0 + s0 * (x - m) / s
        c_skip, c_out = (c.reshape(-1, 1, 1, 1) for c in boundary_scalings(t.clamp(min=1)))
        return SCHEDULE.epsilon_from_x0(x, (end - c_skip * x) / c_out, t)


class Unguided(nn.Module):
    """The teacher as it is: f is then the posterior mean."""

    def forward(self, model: TwoGaussians, x: Tensor, t: Tensor, condition: Condition, omega: Tensor) -> Tensor:
        return model.predict_noise(x, t, condition)


def gap(network: nn.Module, solver: str, skip: int) -> float:
    """The distillation loss (l2) of a network that is student and target at once."""
    settings = ConsistencySettings(skip=skip, solver=solver, omega_max=6.0)
    generator = torch.Generator().manual_seed(0)
    model, batch = TwoGaussians(), 200
    condition = Condition(torch.full((batch, 1, 1), 0.3, dtype=torch.float64))
    null = Condition(torch.zeros(1, 1, 1, dtype=torch.float64))
    z_0 = 0.3 + STD * torch.randn(batch, 1, 2, 2, generator=generator, dtype=torch.float64)
    r = consistency.drawn(z_0, len(SCHEDULE), settings, generator)
    r = consistency.Drawn(r.t, r.s, r.omega.double(), r.eps.double())
    z_t = SCHEDULE.add_noise(z_0, r.eps, r.t)
    z_s = consistency.neighbour(model, z_0, z_t, condition, null, r, solver)
    wanted = consistency.predicted(SCHEDULE, network.double(), model, z_s, r.s, condition, r.omega)
    found = consistency.predicted(SCHEDULE, network, model, z_t, r.t, condition, r.omega)
    return float(consistency.distance(found, wanted, "l2", 1.0))


def test_the_exact_consistency_function_is_the_fixed_point_of_distillation():
    assert gap(Exact(), "dpm_solver_pp", 1) < 1e-9
    assert gap(Exact(), "ddim", 1) < 1e-4
    assert gap(Unguided(), "dpm_solver_pp", 20) > 100 * gap(Exact(), "dpm_solver_pp", 20)


def test_the_better_solver_and_the_smaller_skip_make_the_smaller_error():
    coarse = {name: gap(Exact(), name, 50) for name in ("ddim", "dpm_solver", "dpm_solver_pp")}
    assert max(coarse["dpm_solver"], coarse["dpm_solver_pp"]) < 0.4 * coarse["ddim"]
    assert gap(Exact(), "ddim", 5) < 0.2 * gap(Exact(), "ddim", 50)


def test_pairs_lie_on_the_grid_that_sampling_walks():
    t, s = consistency.pair_timesteps(50, 1000, 20, torch.Generator().manual_seed(0))
    assert torch.equal(t, torch.arange(50) * 20 + 19)
    assert torch.equal(s[1:], t[:-1]) and s[0] == 0
    assert set(lcm_timesteps(4, original_steps=50).tolist()) <= set(t.tolist())
    with pytest.raises(ValueError, match="skip: expected a divisor of the schedule's 1000"):
        consistency.pair_timesteps(4, 1000, 30, torch.Generator())


def test_the_data_pair_of_fine_tuning_has_one_noise_and_at_zero_nothing_is_asked():
    settings = ConsistencySettings(method="finetune")
    z_0 = torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    r = consistency.drawn(z_0, 1000, settings, torch.Generator().manual_seed(0))
    z_s = consistency.neighbour(TwoGaussians(), z_0, z_0, Condition(torch.zeros(1, 1, 1)), None, r, "ddim")
    assert torch.allclose(SCHEDULE.epsilon_from_x0(z_s, z_0, r.s), r.eps.double(), atol=1e-9)
    end = torch.zeros(8, dtype=torch.long)
    there = consistency.predicted(
        SCHEDULE, Unguided(), TwoGaussians(), z_s, end, Condition(torch.zeros(1, 1, 1, dtype=torch.float64)), r.omega
    )
    assert torch.allclose(there, z_s, atol=1e-6)


def test_the_losses():
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 0.0])
    assert float(consistency.distance(a, b, "l2", 1.0)) == pytest.approx(4.5)
    assert float(consistency.distance(a, b, "huber", 4.0)) == pytest.approx(0.5)
    weighed = consistency.distance(a[:, None], b[:, None], "l2", 1.0, torch.tensor([0.5, 1.0]))
    assert float(weighed) == pytest.approx(2.25)


def test_weighed_by_snr_every_timestep_asks_the_same_precision_of_the_noise():
    t = torch.tensor([299, 599, 999])
    z_0 = torch.zeros(3, 1, 2, 2, dtype=torch.float64)
    found = SCHEDULE.x0_from_epsilon(z_0, z_0 + 0.1, t) - SCHEDULE.x0_from_epsilon(z_0, z_0, t)
    weights = consistency.loss_weight(SCHEDULE, t, "snr")
    assert weights is not None
    each = [float(consistency.distance(found[i, None], z_0[:1], "l2", 1.0, weights[i, None])) for i in range(3)]
    assert each == pytest.approx([0.01] * 3)
    assert float(consistency.loss_weight(SCHEDULE, torch.tensor([0]), "snr")) == 20.0
    assert consistency.loss_weight(SCHEDULE, t, "none") is None


# A small network for the trainer itself.

UNET = {
    "block_out_channels": [8, 8],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
NULL = Condition(torch.zeros(1, 3, 16))


def new_model() -> DiffusersModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DiffusersModel(build.new_unet(UNET), SCHEDULE)


def data(first: int, count: int) -> tuple[Tensor, Condition]:
    generator = torch.Generator().manual_seed(first)
    return torch.randn(count, 4, 8, 8, generator=generator), Condition(torch.randn(count, 3, 16, generator=generator))


def new_student(model: DiffusersModel, kind: str) -> students.Student:
    guidance = students.GuidanceInput(model.layers())
    if kind == "lora":
        return students.Student(lora=adapters.LowRankLayers(model.layers(), 2), guidance=guidance)
    network = copy.deepcopy(model.unet).requires_grad_(True)

    def around(unet: nn.Module) -> DiffusersModel:
        other = copy.copy(model)
        other.unet = unet
        return other

    return students.Student(network=network, around=around, guidance=guidance)


class Killed(Exception):
    pass


def train(folder, kind="lora", *, kill=None, resume=False, model=None, method="distill", **options):
    model = model or new_model()
    settings = ConsistencySettings(
        **{"steps": 8, "batch": 3, "rate": 1e-2, "warmup": 1, "save_every": 3, "method": method, "skip": 50, **options}
    )

    def progress(done: int, total: int, preview: object = None) -> None:
        if done == kill:
            raise Killed

    null = NULL if method == "distill" else None
    return consistency.train(
        model, new_student(model, kind), data, null, settings, folder, progress=progress, resume=resume
    ).modules["student"]


@pytest.mark.parametrize(("kind", "method"), [("lora", "distill"), ("full", "distill"), ("lora", "finetune")])
def test_killed_and_resumed_is_bit_for_bit_the_whole_run(kind, method, tmp_path):
    model = new_model()
    start = new_student(model, kind).state_dict()
    before = {key: value.clone() for key, value in model.unet.state_dict().items()}
    whole = train(tmp_path / "whole", kind, model=model, method=method).state_dict()
    with pytest.raises(Killed):
        train(tmp_path / "broken", kind, kill=5, method=method)
    resumed = train(tmp_path / "broken", kind, resume=True, method=method).state_dict()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert any(not torch.equal(value, start[key]) for key, value in whole.items())
    assert bool(whole["guidance.weight"].abs().sum() > 0)
    assert all(torch.equal(value, before[key]) for key, value in model.unet.state_dict().items())


class Table(nn.Module):
    """x_0 = a_t x + b_t for each t of a grid: all that the flow of a Gaussian needs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(10)), nn.Parameter(torch.zeros(10))

    def forward(self, model: TwoGaussians, x: Tensor, t: Tensor, condition: Condition, omega: Tensor) -> Tensor:
        at = t // 100
        x_0 = self.a[at].reshape(-1, 1, 1, 1) * x + self.b[at].reshape(-1, 1, 1, 1)
        return SCHEDULE.epsilon_from_x0(x, x_0, t)


def test_distillation_arrives_at_the_guided_flow(tmp_path):
    """From nothing, through the whole trainer: the learned jump from pure noise is the flow's end at t = 0."""
    condition, omega = Condition(torch.full((1, 1, 1), 0.3)), 2.0

    def rows(first: int, count: int) -> tuple[Tensor, Condition]:
        noise = torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(first))
        return 0.3 + STD * noise, condition

    settings = ConsistencySettings(
        steps=400, batch=40, rate=0.05, warmup=0, cooldown=0.5, skip=100, solver="dpm_solver_pp", loss="l2",
        omega_min=omega, omega_max=omega, mu=0.5, ema=0.9, clip=0.0, save_every=400,
    )  # fmt: skip
    null = Condition(torch.zeros(1, 1, 1))
    done = consistency.train(TwoGaussians(), Table(), rows, null, settings, tmp_path)
    x, t = torch.linspace(-2, 2, 8).reshape(8, 1, 1, 1), torch.full((8,), 999)
    with torch.no_grad():
        both = [
            consistency.predicted(SCHEDULE, f, TwoGaussians(), x, t, condition, torch.full((8,), omega))
            for f in (done.modules["student"], Exact())
        ]
    assert float((both[0] - both[1]).abs().max()) < 0.1  # ten steps of the solver
    assert done.history["loss"][-1] < 1e-5


class Counting:
    """A model that notes the rows of each call and hands everything on."""

    def __init__(self, model: DiffusersModel) -> None:
        self.model, self.rows, self.inside = model, [], False

    def __getattr__(self, name: str):
        return getattr(self.model, name)

    def predict_noise(self, x: Tensor, *rest, **options) -> Tensor:
        self.rows.append(len(x))
        return self.model.predict_noise(x, *rest, **options)


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"solver": "ddim"}, [6, 3, 3]),  # the teacher with and without the text, the target, the student
        ({"solver": "dpm_solver_pp"}, [6, 6, 3, 3]),
        ({"method": "finetune"}, [3, 3]),
    ],
)
def test_a_step_costs_this_many_network_calls(options, rows, tmp_path):
    counting = Counting(new_model())
    train(tmp_path, model=counting, steps=1, **options)
    assert counting.rows == rows


def test_the_target_follows_slowly_and_needs_no_gradient(tmp_path):
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * a.weight + 0.1 * b.weight
    consistency.follow(a, b, 0.9)
    assert torch.allclose(a.weight, expected)


def test_it_trains_where_the_host_runs_in_inference_mode(tmp_path):
    with torch.inference_mode():
        latents, text = data(0, 4)
        model = new_model()
    with torch.inference_mode():
        rows = examples.from_rows(latents, text, seed=0)
        student = students.Student(lora=adapters.LowRankLayers(model.layers(), 2))
        settings = ConsistencySettings(steps=2, batch=3, rate=1e-2, warmup=0)
        with thawed(model):
            done = consistency.train(model, student, rows, NULL, settings, tmp_path)
    assert done.steps == 2


@contextmanager
def thawed(model: DiffusersModel):
    """ComfyUI's adapter does this by itself; a diffusers network is not made in inference mode."""
    with torch.inference_mode(False):
        model.unet = new_model().unet
        yield


def test_conditions_of_different_lengths_are_one_batch():
    one, two = Condition(torch.ones(1, 2, 4)), Condition(torch.zeros(3, 3, 4))
    both = examples.join([one, two], [2, 3])
    assert both.embedding.shape == (5, 6, 4) and float(both.embedding[:2].min()) == 1
    with pytest.raises(ValueError, match="pooled"):
        examples.join([one, Condition(torch.zeros(1, 2, 4), torch.zeros(1, 5))], [1, 1])


def test_rows_and_latents_must_agree():
    with pytest.raises(ValueError, match="expected 1 row or one for each of 4 latents, got 3"):
        examples.from_rows(torch.zeros(4, 4, 8, 8), Condition(torch.zeros(3, 2, 4)), 0)
    rows = examples.from_rows(torch.arange(4.0).view(4, 1, 1, 1), Condition(torch.arange(4.0).view(4, 1, 1)), 0)
    z, c = rows(0, 8)
    assert sorted(z[:4].flatten().tolist()) == [0, 1, 2, 3]
    assert torch.equal(z.flatten(), c.embedding.flatten())


@pytest.mark.parametrize(
    "bad",
    [
        {"method": "magic"},
        {"solver": "euler"},
        {"loss": "l1"},
        {"skip": 0},
        {"omega_min": 5.0, "omega_max": 4.0},
        {"mu": 1.0},
        {"huber_c": 0.0},
    ],
)
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ConsistencySettings(**bad)


def test_distillation_without_the_empty_prompt_is_refused(tmp_path):
    model = new_model()
    with pytest.raises(ValueError, match="null: distillation needs"):
        consistency.train(model, new_student(model, "lora"), data, None, ConsistencySettings(), tmp_path)
