"""The losses are the paper's, and a killed run goes on as if it had not been."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from velatura.core.protocols import Condition
from velatura.hosts.diffusers.model import DiffusersModel
from velatura.training import adapters, smooth, students, variation
from velatura.training.checkpoint import read_tensors
from velatura.training.groupnorm import quicken
from velatura.training.loop import CHECKPOINT, generator_at
from velatura.training.smooth import SmoothSettings

from .twice import NULL, SCHEDULE, data, new_model, new_student


@pytest.fixture(autouse=True)
def twice_differentiable():
    with sdpa_kernel(SDPBackend.MATH):
        yield


def settings(**options: Any) -> SmoothSettings:
    usual = {"steps": 8, "batch": 3, "rate": 1e-2, "warmup": 1, "save_every": 3, "memory": 0.1, "prompt_dropout": 0.2}
    return SmoothSettings(**usual | options)


class Killed(Exception):
    pass


def train(folder: Any, *, kill: int | None = None, resume=False, model=None, low_memory=False, student=None, **options):
    model = model or new_model()
    chosen = settings(**options)

    def progress(done: int, total: int, preview: object = None) -> None:
        if done == kill:
            raise Killed

    return smooth.train(
        model, student or new_student(model), data, NULL, chosen, folder, progress=progress, resume=resume,
        low_memory=low_memory,
    )  # fmt: skip


def weights(trained: Any) -> dict[str, Tensor]:
    return trained.modules["student"].state_dict()


def test_killed_and_resumed_is_bit_for_bit_the_whole_run(tmp_path):
    model = new_model()
    before = copy.deepcopy(model.unet.state_dict())
    whole = train(tmp_path / "whole", model=model)
    with pytest.raises(Killed):
        train(tmp_path / "broken", kill=5)
    kept = read_tensors(tmp_path / "broken" / CHECKPOINT)[0]["model.running.a"]
    assert float(kept) > 0  # else the mean would start anew
    resumed = train(tmp_path / "broken", resume=True)
    assert torch.equal(whole.modules["running"].a, resumed.modules["running"].a)
    assert all(torch.equal(value, weights(resumed)[key]) for key, value in weights(whole).items())
    assert all(torch.equal(value, before[key]) for key, value in model.unet.state_dict().items())
    assert set(whole.history) == {"base", "regulariser", "norm"}


def test_the_running_mean_is_the_papers(tmp_path):
    """From zero, a share of the way to each step's mean; the penalty takes the mean of after the step."""
    done = train(tmp_path, steps=1)
    (norm,), (regulariser,) = done.history["norm"], done.history["regulariser"]
    a = float(done.modules["running"].a)
    assert a == pytest.approx(0.1 * norm, rel=1e-6)
    assert regulariser >= (norm - a) ** 2 * (1 - 1e-6)  # the mean of squares is at least the square of the mean


def first_gradient(folder: Any, **options: Any) -> list[Tensor]:
    """Adam's first moment after one step is a tenth of its gradient."""
    train(folder, steps=1, clip=0.0, **options)
    found = read_tensors(folder / CHECKPOINT)[0]
    return [value for key, value in sorted(found.items()) if key.endswith("exp_avg")]


def test_lambda_weighs_the_regulariser(tmp_path):
    none, one, two = (first_gradient(tmp_path / str(weight), weight=weight) for weight in (0.0, 1.0, 2.0))
    for g0, g1, g2 in zip(none, one, two, strict=True):
        torch.testing.assert_close(g2 - g0, 2 * (g1 - g0), rtol=1e-3, atol=1e-7)
    assert any(not torch.allclose(g0, g1, rtol=1e-2) for g0, g1 in zip(none, one, strict=True))


def test_accumulated_batches_are_one_update_with_their_mean_gradient(tmp_path):
    """Without the regulariser (whose mean moves on with each batch) and with dropout off, the gradients add up."""
    model, student = new_model(), new_student(new_model())
    options = {"batch": 2, "accumulate": 2, "weight": 0.0, "prompt_dropout": 0.0, "seed": 5}
    together = first_gradient(tmp_path / "two", **options)
    generator, expected = generator_at(5, 0), [torch.zeros_like(p) for p in student.parameters()]
    for part in range(2):
        z_0, condition = data(2 * part, 2)
        r = variation.drawn(z_0, range(1000), 0.0, generator)
        x_t = SCHEDULE.add_noise(z_0, r.eps, r.t)
        with model.differentiable():
            loss = (student(model, x_t, r.t, condition, r.t) - r.eps).square().mean()
            for total, g in zip(expected, torch.autograd.grad(loss, list(student.parameters())), strict=True):
                total += g / 2
    for mine, reference in zip(sorted_like(together), sorted_like([g / 10 for g in expected]), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-7)


def sorted_like(gradients: list[Tensor]) -> list[Tensor]:
    return sorted(gradients, key=lambda g: (tuple(g.shape), float(g.abs().sum())))


def test_prompts_are_dropped_as_often_as_asked(tmp_path):
    model, seen = new_model(), list[Tensor]()
    real = model.predict_noise
    model.predict_noise = lambda x, t, c, **more: (seen.append(c.embedding), real(x, t, c, **more))[1]  # type: ignore
    train(tmp_path, model=model, steps=20, prompt_dropout=0.5)
    share = torch.cat(seen).abs().amax((1, 2)).eq(0).float().mean()
    assert 0.3 < float(share) < 0.7
    with pytest.raises(ValueError, match="null: prompt_dropout and guidance need"):
        smooth.train(model, new_student(model), data, None, settings(), tmp_path / "other")
    guided = settings(prompt_dropout=0.0, guidance=2.0, plain=1)
    with pytest.raises(ValueError, match="null: prompt_dropout and guidance need"):
        smooth.train(model, new_student(model), data, None, guided, tmp_path / "other")


BEYOND = {
    "guidance": 5.0,
    "lowest": 0.3,
    "highest": 0.8,
    "plain": 2,
    "one_sided": True,
    "min_snr": 5.0,
    "sampled": 2,
    "guard": 0.5,
    "coarse": 2,
    "power": 1,
    "ceiling": 0.5,
    "distilled": True,
    "hold": 0.5,
}


def test_rows_of_l_base_alone_leave_it_the_papers(tmp_path):
    """With lambda 0 only they count: the update is that of a batch of them."""
    alone = first_gradient(tmp_path / "some", weight=0.0, batch=1, prompt_dropout=0.0, plain=2)
    model, student = new_model(), new_student(new_model())
    generator = generator_at(0, 0)
    variation.drawn(data(0, 1)[0], range(1000), 0.0, generator)
    z_0, condition = data(1, 2)
    r = variation.drawn(z_0, range(1000), 0.0, generator)
    with model.differentiable():
        loss = (student(model, SCHEDULE.add_noise(z_0, r.eps, r.t), r.t, condition, r.t) - r.eps).square().mean()
        expected = torch.autograd.grad(loss, list(student.parameters()))
    for mine, reference in zip(sorted_like(alone), sorted_like([g / 10 for g in expected]), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("name", "seen"), [("guard", "drift"), ("hold", "held")])
def test_guards_hold_the_student_to_what_it_was(name, seen, tmp_path):
    """Untrained, it has no drift; moved, it has one, from the model without it or from its start, and the guard's
    gradient alone lowers it."""
    model = new_model()
    lora = adapters.LowRankLayers(model.layers(), 2, which="attention")
    calm = {"ceiling": 1e6}
    chosen = settings(steps=1, **calm, **{name: 1.0})
    still = smooth.train(model, students.Student(lora=lora), data, NULL, chosen, tmp_path / "a")
    assert still.history[seen] == [0.0]
    kept = {"weight": 0.0, "rate": 0.02, "plain": 1, "steps": 12, "prompt_dropout": 0.0} | calm
    free, held = (train(tmp_path / f"{g}", **kept, **{name: g}).history[seen] for g in (1e-9, 100.0))
    assert held[-1] < 0.5 * free[-1] and (free[0] > 0) is (name == "guard")


def test_one_sided_leaves_what_is_below_the_mean(tmp_path):
    """With a memory of one the mean is the batch's: of a batch of one nothing is above it."""
    done = train(tmp_path / "one", steps=1, batch=1, memory=1.0, one_sided=True)
    assert done.history["regulariser"] == [0.0]
    both = train(tmp_path / "both", steps=1, batch=8).history["regulariser"][0]
    above = train(tmp_path / "above", steps=1, batch=8, memory=1.0, one_sided=True).history["regulariser"][0]
    assert 0 < above < both


def test_a_ceiling_leaves_calm_states_alone(tmp_path):
    """Nothing is above a high one; the excess over a low one is the norm itself, whatever the running mean."""
    high = train(tmp_path / "high", steps=1, batch=1, ceiling=1e6)
    assert high.history["regulariser"] == [0.0] and high.history["norm"][0] > 0
    low = train(tmp_path / "low", steps=1, batch=1, ceiling=1e-9, hold=1.0).history
    assert low["regulariser"][0] == pytest.approx(low["norm"][0] ** 2, rel=1e-5)
    assert low["held"] == [0.0]  # only calm states are held to the original model's pictures


@pytest.mark.parametrize("distilled", [True, False])
def test_distilled_rows_ask_for_what_the_student_was(distilled: bool, tmp_path):
    """It has nothing to learn from them at its start, where the true noise always leaves an error."""
    model, student = new_model(), new_student(new_model())
    options: dict[str, Any] = {"plain": 2, "distilled": distilled, "prompt_dropout": 0.0, "weight": 0.0}
    done = train(tmp_path, model=model, student=student, steps=1, **options)
    assert (done.history["base"] == [0.0]) is distilled
    if distilled:
        start = read_tensors(tmp_path / CHECKPOINT)[0]
        assert all(
            torch.equal(start[f"model.start.{key}"], value) for key, value in new_student(model).state_dict().items()
        )


def test_what_goes_beyond_the_papers_is_resumed_bit_for_bit(tmp_path):
    whole = train(tmp_path / "whole", **BEYOND)
    with pytest.raises(Killed):
        train(tmp_path / "broken", kill=5, **BEYOND)
    resumed = train(tmp_path / "broken", resume=True, **BEYOND)
    assert all(torch.equal(value, weights(resumed)[key]) for key, value in weights(whole).items())


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_low_memory_is_the_same_training(precision: str, tmp_path):
    """It may also be chosen in the middle of a run."""
    plain = train(tmp_path / "plain", precision=precision, steps=4)
    with pytest.raises(Killed):
        train(tmp_path / "saving", precision=precision, steps=4, kill=2)
    saving = train(tmp_path / "saving", precision=precision, steps=4, resume=True, low_memory=True)
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if precision == "no" else {"rtol": 0.1, "atol": 1e-2}
    for key, value in weights(plain).items():
        torch.testing.assert_close(weights(saving)[key], value, **tolerance)


def test_whole_networks_are_trained_too(tmp_path):
    model = new_model()
    network = copy.deepcopy(model.unet).requires_grad_(True)

    def around(unet: Any) -> DiffusersModel:
        other = copy.copy(model)
        other.unet = unet
        return other

    student = students.Student(network=network, around=around)
    done = train(tmp_path, model=model, student=student, steps=2)
    assert float(done.modules["running"].a) > 0


class Linear(nn.Module):
    """eps = c_t x: x0_hat's Jacobian is (1 - sigma_t c_t) sigma_t / alpha_t times the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.zeros(10))

    def forward(self, model: Any, x: Tensor, t: Tensor, condition: Condition, omega: Tensor) -> Tensor:
        return self.c[t // 100].reshape(-1, 1, 1, 1) * x

    def norms(self) -> Tensor:
        """The regularised norm at the middle of each hundred of timesteps, for a direction of length one."""
        signal, noise = SCHEDULE.signal_and_noise(torch.arange(50, 1000, 100), torch.zeros(10))
        return (noise**2 * (1 - noise * self.c).abs() / signal).detach()


class Nothing:
    schedule, device = SCHEDULE, torch.device("cpu")

    def differentiable(self, *, low_memory: bool = False):
        return nullcontext()


def test_it_learns_what_it_is_for(tmp_path):
    """Through the whole trainer, all timesteps' norms come to lie at the running mean, which they set."""
    student: Any = Linear()
    before = student.norms()
    assert float(before.max() / before.min()) > 200
    chosen = settings(steps=600, batch=10, rate=0.05, weight=10.0, prompt_dropout=0.0, memory=0.05, clip=0.0)
    done = smooth.train(Nothing(), student, data, None, chosen, tmp_path)  # type: ignore[arg-type]
    learned: Any = done.modules["student"]
    ratio = learned.norms()[1:] / float(done.modules["running"].a)  # in the first, hardly noised, there is little to do
    assert float(ratio.min()) > 0.6 and float(ratio.max()) < 1.6


def test_a_schedule_that_ends_in_pure_noise_trains(tmp_path):
    """At abar = 0 x_t holds nothing of the picture, and x0_hat would be 0 / 0."""
    schedule = SCHEDULE.rescaled_to_zero_snr()
    done = train(tmp_path, model=new_model("v_prediction", schedule), steps=3, batch=64)
    assert all(value == value for values in done.history.values() for value in values)


def test_a_network_without_second_derivative_is_refused(tmp_path):
    model = new_model()
    quicken(model.unet)
    with pytest.raises(ValueError, match="model: a part of this network has no second derivative"):
        train(tmp_path, model=model)


@pytest.mark.parametrize(
    "bad",
    [
        {"weight": -1.0},
        {"memory": 0.0},
        {"memory": 1.5},
        {"accumulate": 0},
        {"prompt_dropout": 1.0},
        {"lowest": 1.0},
        {"highest": 0.0},
        {"plain": 0, "highest": 0.5},
        {"plain": -1},
        {"plain": 0, "guidance": 5.0},
        {"min_snr": -1.0},
        {"coarse": 0},
        {"power": -1},
        {"ceiling": -1.0},
        {"hold": -1.0},
        {"plain": 0, "distilled": True},
    ],
)
def test_impossible_settings_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        SmoothSettings(**bad)
