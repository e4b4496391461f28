"""Sweeps on a Ray cluster: one on this machine, whose actor is killed; one that is not there."""

import socket

import pytest

from velatura.benchmarks import scale
from velatura.runtime.cli import main
from velatura.runtime.sweep import run as sweeps

pytest.importorskip("ray", reason='Ray is not installed: pip install -e ".[ray]"')


@pytest.mark.slow
def test_a_killed_actor_loses_nothing_and_the_sweep_is_not_done_twice(tmp_path, capsys):
    path = scale.write_sweep(tmp_path, '[cluster]\nray = "local"\nworkers = 2', 8)
    told = []
    figures = sweeps.run(path, watch=scale.killing(), told=told.append)
    assert figures["done"] == 8 and any("its task is done again" in line for line in told)
    assert len({row["key"] for row in scale.rows(path)}) == 8
    assert {row["worker"].rpartition(":")[2] for row in scale.rows(path)} != set()
    assert sweeps.run(path)["done"] == 0
    assert capsys.readouterr().out == ""  # which is for --json


@pytest.mark.slow
def test_a_cluster_without_room_is_said(tmp_path, capsys):
    assert main(["sweep", str(scale.write_sweep(tmp_path, '[cluster]\nray = "local"\ngpus = 64', 2))]) == 2
    assert "[cluster] gpus: a worker asks for 64, the cluster has " in capsys.readouterr().err


@pytest.mark.parametrize("where", ["closed", "auto"])
def test_a_cluster_that_is_not_there_is_one_clear_error(where, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "auto" if where == "auto" else f"127.0.0.1:{free.getsockname()[1]}"
        assert main(["sweep", str(scale.write_sweep(tmp_path, f'[cluster]\nray = "{address}"', 2))]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert f'[cluster] ray = "{address}": there is no Ray cluster' in said and "ray start --head" in said
