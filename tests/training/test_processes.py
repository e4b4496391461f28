"""Two processes train as one does with the batch of both, and a run goes on after one of them was killed."""

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from velatura.benchmarks._trainers import TRAINERS, loss_difference, processes
from velatura.training import loop
from velatura.training.checkpoint import read_tensors
from velatura.training.share import Share

Ends = list[tuple[dict[str, Tensor], dict[str, list[float]]]]


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[key]) for key, value in one.items())


def compare(folder: Path, names: Iterable[str]) -> dict[str, Ends]:
    """Both ways to train a batch of four; what the two processes ended with."""
    assert not any(name not in TRAINERS for name in names)
    _, alone = processes(1, folder / "one", 4, list(names))
    status, shared = processes(2, folder / "two", 2, list(names))
    assert status == 0 and set(shared) == set(alone) == set(names)
    for name in names:
        ((weights, history),), ((first, losses), (second, others)) = alone[name], shared[name]
        assert loss_difference(history, losses) <= 1e-5, name
        # The averages, and the running mean of the smooth regulariser, are among these.
        assert same(first, second) and losses == others, name
        assert first.keys() == weights.keys()
    return shared


def test_a_share_is_its_rows_of_what_all_draw():
    drawn = torch.arange(12.0).view(6, 2)
    parts = [Share(rank, 3) for rank in range(3)]
    assert torch.equal(torch.cat([each.own(drawn) for each in parts]), drawn)
    assert [each.first(5, 4) for each in parts] == [60, 64, 68]
    assert parts[0].whole(torch.zeros(2, 7)).shape == (6, 7)
    draws = [each.draw(2, loop.generator_at(1, 2))(lambda n, g: torch.rand(n, 3, generator=g)) for each in parts]
    assert torch.equal(torch.cat(draws), torch.rand(6, 3, generator=loop.generator_at(1, 2)))


def test_two_processes_train_as_one_with_the_batch_of_both(tmp_path):
    shared = compare(tmp_path, ["supervised", "smooth"])
    assert float(shared["smooth"][0][0]["running.a"]) > 0


@pytest.mark.slow
def test_every_trainer_trains_in_two_processes_as_in_one(tmp_path):
    compare(tmp_path, TRAINERS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "smooth",
        "smooth_guarded",
        "smooth_sampled",
        "autoencoder_kl",
        "transparency_turned",
        "concat_semantic",
        "concat_superres",
    ],
)
def test_a_run_goes_on_after_one_of_its_processes_was_killed(name, tmp_path):
    _, whole = processes(2, tmp_path / "whole", 2, [name])
    status, found = processes(2, tmp_path / "broken", 2, [name], killed=8)
    assert status != 0 and name not in found
    assert read_tensors(tmp_path / "broken" / name / loop.CHECKPOINT)[1]["step"] == 6
    status, resumed = processes(2, tmp_path / "broken", 2, [name])
    assert status == 0
    for (one, _), (two, _) in zip(whole[name], resumed[name], strict=True):
        assert same(one, two)


@pytest.mark.slow
def test_a_recipe_trains_in_two_processes_as_in_one_and_one_of_them_talks(tmp_path):
    """By the command line, as a user does it: the judge's recipe, whose loss is normalised over the whole batch."""

    def train(count: int, batch: int) -> tuple[list[float], str]:
        recipe = tmp_path / f"{count}.toml"
        recipe.write_text(f'kind = "classifier"\nsteps = 12\nbatch = {batch}\nbare = 0.4\n', encoding="utf-8")
        launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count)] if count > 1 else []
        command = [sys.executable, *launch, "-m", "velatura.runtime", "train", str(recipe)]
        command += ["--out", str(tmp_path / f"run{count}")]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=580)
        tensors, _ = read_tensors(tmp_path / f"run{count}" / loop.CHECKPOINT)
        return tensors["history.loss"].tolist(), done.stdout

    (one, _), (two, said) = train(1, 8), train(2, 4)
    assert len(one) == 2 and max(abs(a - b) for a, b in zip(one, two, strict=True)) <= 1e-5
    assert said.count("loss") == 1
