"""Inversions in a world known in closed form. A failure means pictures are not found again, or at another cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from velatura.core.ddim import ddim_sample, ddim_timesteps, ddim_transfer
from velatura.core.ddim_inversion import ddim_invert
from velatura.core.inversion import METHODS, Inversion, Settings, check_same_model, gaussianity, invert
from velatura.core.inversion_file import from_tensors, to_tensors
from velatura.core.null_text import Step, _gauss_newton, null_text
from velatura.core.protocols import Condition
from velatura.core.reconstruct import between, reconstruct
from velatura.core.schedule import NoiseSchedule

from .worded import WORDS, WordedModel, pictures, prompt

MODEL = WordedModel()
TIMES = ddim_timesteps(1000, 12)
SOURCE, EMPTY = prompt(1), prompt(2)


def rms(value: torch.Tensor) -> float:
    return float(value.square().mean().sqrt())


def inverted(method: str, rows: int = 1, *, null: Condition | None = EMPTY, model: Any = MODEL, **options: Any):
    settings = Settings(TIMES, method, **options)  # pyright: ignore[reportArgumentType]
    return invert(model, pictures(rows), SOURCE, null, settings, noise=pictures(rows, seed=9))


def round_trip(steps: int, corrected: bool) -> float:
    """How far sampling ends from where inversion began."""
    times = ddim_timesteps(1000, steps)
    pivots = ddim_invert(MODEL, pictures(2), SOURCE, timesteps=times, corrected=corrected)
    return rms(ddim_sample(MODEL, pivots[-1], SOURCE, timesteps=times) - pictures(2))


def test_inversion_follows_the_ode() -> None:
    errors = []
    for steps in (50, 200):
        times = ddim_timesteps(1000, steps)
        x = ddim_invert(MODEL, pictures(1), SOURCE, timesteps=times)[-1]
        errors.append(rms(x - MODEL.solution(pictures(1), SOURCE, times[0])))
    assert errors[1] < 0.1 and errors[1] < errors[0] / 2


def test_the_correction_comes_back_an_order_closer() -> None:
    plain, corrected = round_trip(40, False), round_trip(40, True)
    assert corrected < plain / 20
    assert round_trip(80, False) > plain / 3  # first order
    assert round_trip(80, True) < corrected / 2.5


def test_uncorrected_it_is_equation_4() -> None:
    x = pictures(1)
    pivots = ddim_invert(MODEL, x, SOURCE, timesteps=TIMES, corrected=False)
    for at, (s, t) in enumerate(zip([torch.tensor(-1), *TIMES.flip(0)[:-1]], TIMES.flip(0), strict=True)):
        x = ddim_transfer(MODEL.schedule, x, MODEL.predict_noise(x, t.reshape(1), SOURCE), s, t)
        torch.testing.assert_close(pivots[at + 1], x)


def test_a_correction_costs_four_evaluations_in_all() -> None:
    model = WordedModel()
    ddim_invert(model, pictures(1), SOURCE, timesteps=TIMES)
    assert len(model.calls) == len(TIMES) + 4


def test_noised_steps_are_the_forward_process() -> None:
    eps = pictures(1, seed=9)
    pivots = ddim_invert(MODEL, pictures(1), SOURCE, timesteps=TIMES, noised_steps=3, noise=eps)
    for at, t in enumerate(TIMES.flip(0)[:3]):
        torch.testing.assert_close(pivots[at + 1], MODEL.schedule.add_noise(pictures(1), eps, t))
    assert pivots.shape == (13, *pictures(1).shape)


@pytest.mark.parametrize("guidance", [1.0, 3.0, 7.5])
@pytest.mark.parametrize("method", ["direct", "exact"])
def test_what_is_exact_is_exact(method: str, guidance: float) -> None:
    found = inverted(method, 2, guidance=guidance)
    assert rms(reconstruct(MODEL, found) - pictures(2)) < 1e-6


def test_null_text_finds_the_picture_where_ddim_loses_it() -> None:
    lost = rms(reconstruct(MODEL, inverted("ddim")) - pictures(1))
    for null in (None, EMPTY):
        found = inverted("null_text", null=null, tolerance=1e-3, iterations=20)
        assert rms(reconstruct(MODEL, found) - pictures(1)) < min(0.02, lost / 10)


def test_null_text_samples_as_it_said() -> None:
    """What it measured on its way must be what sampling from what it kept gives."""
    found = inverted("null_text", 2, tolerance=1e-3)
    assert found.reconstructed is not None and found.pivots is not None and found.nulls is not None
    again = reconstruct(MODEL, found)
    torch.testing.assert_close(again, found.reconstructed, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.losses[-1], (again - pictures(2)).flatten(1).square().mean(1).sqrt().float(),
                               rtol=1e-2, atol=1e-4)  # fmt: skip


def test_the_misses_are_told_as_they_are_known() -> None:
    told = []
    settings = Settings(TIMES, "null_text", 7.5)
    found = invert(MODEL, pictures(2), SOURCE, EMPTY, settings, watch=lambda *each: told.append(each))
    assert [step for step, _ in told] == list(range(len(TIMES)))
    assert torch.equal(torch.stack([miss for _, miss in told]).float(), found.losses)
    again = []
    reconstruct(MODEL, found, watch=lambda _, miss: again.append(miss))
    torch.testing.assert_close(torch.stack(again).float(), found.losses, rtol=1e-3, atol=1e-5)


def test_the_prompt_as_a_start_is_free() -> None:
    """One evaluation a step, since both conditions say the same; and the result is that of negative-prompt."""
    free = inverted("null_text", null=None, tolerance=10.0)
    assert free.evaluations == 2 * len(TIMES) + 4 + 1  # inversion, its corrections, sampling, fingerprint
    other = inverted("negative_prompt")
    torch.testing.assert_close(reconstruct(MODEL, free), reconstruct(MODEL, other), rtol=1e-5, atol=1e-5)


def test_a_tighter_tolerance_is_kept() -> None:
    loose, tight = (inverted("null_text", null=None, corrected=False, tolerance=each) for each in (1.0, 1e-4))
    assert float(tight.losses.max()) < float(loose.losses.max()) / 5


def step(model: WordedModel, embedding: torch.Tensor) -> Step:
    t = torch.tensor([500])
    x = pictures(1)
    wanted = model.predict_noise(x, t, Condition(embedding))
    return Step(model, EMPTY, x, t, wanted, 1.0)  # pyright: ignore[reportArgumentType]


def test_the_objective_has_the_right_gradient() -> None:
    problem = step(MODEL, prompt(3).embedding)
    null = prompt(4).embedding.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda e: problem.error(problem.predict(e)), (null,))


def test_gauss_newton_solves_a_linear_problem_in_one_step() -> None:
    problem = step(WordedModel(bend=0.0), prompt(3).embedding)
    start = prompt(4).embedding
    found = _gauss_newton(problem, start, WORDS[0] * WORDS[1], 0.0, lambda: None)
    before, after = (rms(problem.predict(each) - problem.wanted) for each in (start, found))
    assert after < 1e-5 * before


def test_a_shared_series_of_equal_pictures_is_the_single_one() -> None:
    settings = Settings(TIMES, tolerance=1e-3, shared=True)
    single = invert(MODEL, pictures(1), SOURCE, EMPTY, settings)
    pair = invert(MODEL, pictures(1).repeat(2, 1, 1, 1), SOURCE, EMPTY, settings)
    assert single.nulls is not None and pair.nulls is not None and pair.nulls.shape[1] == 1
    torch.testing.assert_close(pair.nulls, single.nulls, rtol=1e-3, atol=1e-4)


def test_a_shared_series_lowers_the_sum_of_both_losses() -> None:
    pivots = ddim_invert(MODEL, pictures(2), prompt(1, 2), timesteps=TIMES)
    losses = [
        null_text(MODEL, pivots, prompt(1, 2), EMPTY, timesteps=TIMES, w=3.0, shared=True, iterations=each).losses
        for each in (1, 10)
    ]
    untouched = null_text(MODEL, pivots, prompt(1, 2), EMPTY, timesteps=TIMES, w=3.0, shared=True, tolerance=99.0)
    assert all(each.square().sum() < untouched.losses.square().sum() for each in losses)


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_inverts_the_same_alone_and_in_a_batch(method: str) -> None:
    options = {"tolerance": 1e-3} if method == "null_text" else {}
    together = reconstruct(MODEL, inverted(method, 2, **options))
    settings = Settings(TIMES, method, **options)  # pyright: ignore[reportArgumentType]
    for k in range(2):
        alone = invert(MODEL, pictures(2)[k : k + 1], SOURCE, EMPTY, settings)
        torch.testing.assert_close(reconstruct(MODEL, alone), together[k : k + 1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_the_prompt_switches_where_equation_15_says(method: str) -> None:
    found = inverted(method, null=None)
    target = prompt(8)
    assert torch.equal(reconstruct(MODEL, found, target=target, ratio=0.0), reconstruct(MODEL, found))
    whole = reconstruct(MODEL, replace(found, condition=target))
    torch.testing.assert_close(reconstruct(MODEL, found, target=target, ratio=1.0), whole)
    said = list[tuple[bool, float]]()

    class Listening(WordedModel):
        def predict_noise(self, x: Any, t: Any, condition: Condition, **options: Any):
            said.append((condition is target, float(t[0])))
            return super().predict_noise(x, t, condition, **options)

    reconstruct(Listening(), found, target=target, ratio=0.5)
    first_target = max(t for is_target, t in said if is_target)
    assert first_target == max(float(t) for t in TIMES if t <= 500)


@pytest.mark.parametrize("method", METHODS)
def test_between_begins_and_ends_at_the_two_pictures(method: str) -> None:
    prompts = prompt(1, 2)
    pair = invert(MODEL, pictures(2), prompts, None, Settings(TIMES, method))
    frames = reconstruct(MODEL, between(pair, torch.tensor([0.0, 0.5, 1.0])))
    ends = reconstruct(MODEL, pair)
    torch.testing.assert_close(frames[[0, 2]], ends, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(frames[1:2], reconstruct(MODEL, between(pair, torch.tensor([0.5]))))
    with pytest.raises(ValueError, match="two images"):
        between(inverted(method), torch.tensor([0.5]))


def test_another_model_or_schedule_is_refused() -> None:
    found = inverted("ddim")
    check_same_model(MODEL, found)
    with pytest.raises(ValueError, match="inversion: it was made with another model"):
        check_same_model(WordedModel(std=0.45), found)
    other = WordedModel()
    other.schedule = NoiseSchedule.linear()
    with pytest.raises(ValueError, match="another noise schedule"):
        check_same_model(other, found)
    wider = WordedModel()
    wider.latent_channels = 4
    with pytest.raises(ValueError, match="2 channels"):
        check_same_model(wider, found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance": 0.0}, "guidance: expected above 0"),
        ({"method": "exact", "noised_steps": 1}, "noised_steps"),
        ({"noised_steps": 12}, r"noised_steps: expected 0 \.\. 11"),
        ({"method": "guess"}, "method: expected one of null_text"),
    ],
)
def test_settings_that_cannot_work_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inverted(**{"method": "ddim", **change})


def test_inputs_that_cannot_work_are_named() -> None:
    with pytest.raises(ValueError, match="latent: it has NaN"):
        invert(MODEL, pictures(1) * float("nan"), SOURCE, None, Settings(TIMES))
    with pytest.raises(ValueError, match="latent: expected"):
        invert(MODEL, torch.zeros(1, 4, 4, 4), SOURCE, None, Settings(TIMES))
    with pytest.raises(ValueError, match="conditioning: expected 1 prompt or 2"):
        invert(MODEL, pictures(2), prompt(1, 3), None, Settings(TIMES))
    with pytest.raises(ValueError, match="ratio"):
        reconstruct(MODEL, inverted("ddim"), target=SOURCE, ratio=1.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_file_keeps_all_of_it(method: str) -> None:
    found = inverted(method, 2)
    found = replace(
        found, condition=Condition(SOURCE.embedding, torch.ones(1, 3), {"width": 64, "hint": torch.ones(2)})
    )
    back = from_tensors(*to_tensors(found))
    assert (back.method, back.guidance, back.evaluations) == (found.method, found.guidance, found.evaluations)
    assert back.condition.extras["width"] == 64 and torch.equal(back.condition.extras["hint"], torch.ones(2))
    plain = replace(back, condition=SOURCE, null=SOURCE if back.null is back.condition else back.null)
    assert torch.equal(reconstruct(MODEL, plain), reconstruct(MODEL, replace(found, condition=SOURCE)))


def test_what_is_no_inversion_is_not_read() -> None:
    tensors, metadata = to_tensors(inverted("null_text"))
    with pytest.raises(ValueError, match="not an inversion"):
        from_tensors(tensors, {})
    with pytest.raises(ValueError, match="lacks a part"):
        from_tensors({name: each for name, each in tensors.items() if name != "noise"}, metadata)
    with pytest.raises(ValueError, match="do not fit together"):
        from_tensors({**tensors, "nulls": tensors["nulls"][:3]}, metadata)
    carrying = replace(inverted("ddim"), null=Condition(EMPTY.embedding, None, {"control": object()}))
    with pytest.raises(ValueError, match="“control”, which cannot be saved"):
        to_tensors(carrying)


@pytest.mark.parametrize("method", METHODS)
def test_cancel_takes_effect_within_a_step(method: str) -> None:
    class Cancelled(Exception):
        pass

    for last in (1, 13):
        model, seen = WordedModel(), list[int]()

        def progress(
            step: int, total: int, preview: Any, last: int = last, seen: Any = seen, model: Any = model
        ) -> None:
            if seen:
                raise AssertionError("it went on after the user cancelled")
            if step >= last:
                seen.append(len(model.calls))
                raise Cancelled

        settings = Settings(TIMES, method, tolerance=1e-4)
        run = lambda: invert(model, pictures(1), SOURCE, EMPTY, settings, progress=progress)  # noqa: B023, E731
        if last == 13 and method not in ("null_text", "direct"):
            continue
        with pytest.raises(Cancelled):
            run()
        assert seen == [len(model.calls)]


def test_gaussianity_tells_noise_from_pictures() -> None:
    white = torch.randn(4, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    values = gaussianity(white)
    assert values["std"] == pytest.approx(1, abs=0.02)
    assert abs(values["kurtosis"]) < 0.1 and abs(values["neighbours"]) < 0.02
    smooth = gaussianity(torch.nn.functional.avg_pool2d(white, 3, 1))
    assert smooth["neighbours"] > 0.5 and smooth["std"] < 0.5
    assert gaussianity(white**3)["kurtosis"] > 5


def test_an_inversion_has_a_batch() -> None:
    found = inverted("ddim", 2)
    assert isinstance(found, Inversion) and found.batch == 2
