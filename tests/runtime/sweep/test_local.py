"""Real sweeps of the demo model by processes here: killed, stopped, gone on with, and the pictures that `run` makes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from velatura.benchmarks import scale
from velatura.runtime.cli import main
from velatura.runtime.sweep import run as sweeps
from velatura.runtime.sweep.file import SweepError

parquet = pytest.importorskip("pyarrow.parquet")
ONE = "[workers]\ncount = 1\nthreads = 1"
TWO = "[workers]\ncount = 2\nthreads = 1"


def finished(path):
    return len(list((path.parent / "out" / "parts").glob("*.parquet")))


def test_a_sweep_draws_measures_and_is_not_done_twice(tmp_path, capsys):
    """What it draws is what `velatura run` draws with the same settings, and its pictures carry their workflow."""
    path = scale.write_sweep(tmp_path, ONE, 4)
    assert main(["sweep", str(path), "--plan", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] == 4 and not (tmp_path / "out").exists()
    assert main(["sweep", str(path), "--json"]) == 0
    printed = capsys.readouterr()
    figures = json.loads(printed.out)
    assert (figures["tasks"], figures["done"], figures["failed"], figures["left"]) == (4, 4, 0, 0)
    assert "4/4" in printed.err
    rows = scale.rows(path)
    assert len({row["key"] for row in rows}) == len(rows) == 4
    assert all(0 <= row["accuracy"] <= 1 and row["seconds"] > 0 for row in rows)
    assert {row["VelaturaLcmSample.seed"] for row in rows} == {1, 2}

    assert main(["sweep", str(path), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["had"], again["done"], again["left"]) == (4, 0, 0)

    row = rows[0]
    changes = ["VelaturaLcmSample.steps=1", "EmptyLatentImage.batch_size=1"]
    changes += [f"{name}={row[name]}" for name in ("What to draw.text", "VelaturaLcmSample.seed")]
    words = [word for change in changes for word in ("--set", change)]
    assert main(["run", str(scale.WORKFLOW), "--out", str(tmp_path / "run"), "--json", *words]) == 0
    (made,) = json.loads(capsys.readouterr().out)["files"]
    with Image.open(made) as one, Image.open(tmp_path / "out" / row["file"]) as two:
        difference = max(abs(a - b) for a, b in zip(one.tobytes(), two.tobytes(), strict=True))
        assert one.size == two.size and difference <= 2  # another number of threads
        sampler = next(node for node in json.loads(two.info["workflow"])["nodes"] if node["id"] == 5)
    assert sampler["widgets_values"][0] == row["VelaturaLcmSample.seed"]


@pytest.mark.slow
def test_what_cannot_be_measured_fails_and_is_tried_again(tmp_path, capsys):
    path = scale.write_sweep(tmp_path, ONE, 2)
    text = path.read_text().replace('prompt = "What to draw.text"', 'reference = "r.png"')
    path.write_text(text.replace("[measure.accuracy]", "[measure.psnr]"))
    assert main(["sweep", str(path)]) == 2
    said = capsys.readouterr().err
    assert "2 of 2 tasks failed: psnr: there is no reference" in said and "tries these again" in said
    assert len(json.loads((tmp_path / "out" / "failed.json").read_text())) == 2
    Image.new("RGB", (128, 128)).save(tmp_path / "r.png")
    assert sweeps.run(path)["done"] == 2
    assert all(0 < row["psnr"] < 30 for row in scale.rows(path))


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(tmp_path):
    path = scale.write_sweep(tmp_path, TWO, 8)
    told = []
    figures = sweeps.run(path, watch=scale.killing(), told=told.append)
    assert figures["done"] == 8 and any("signal 9" in line for line in told)
    assert len({row["key"] for row in scale.rows(path)}) == 8


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_stopped_sweep_goes_on_where_it_was(sent, status, tmp_path):
    path = scale.write_sweep(tmp_path, ONE, 8)
    command = [sys.executable, "-m", "velatura.runtime", "sweep", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while finished(path) < 2:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        os.kill(process.pid, sent)
        _, said = process.communicate(timeout=60)
    assert process.returncode == status
    if sent == signal.SIGINT:
        assert "Cancelled." in said and not finished(path)  # it left one table
    before = {row["key"]: row for row in scale.rows(path)} if (path.parent / "out/results.parquet").exists() else {}
    had = len(before) or finished(path)
    figures = sweeps.run(path)
    assert had >= 2 and (figures["had"], figures["done"]) == (had, 8 - had)
    after = {row["key"]: row for row in scale.rows(path)}
    assert len(after) == 8 and all(after[key] == row for key, row in before.items())


@pytest.mark.slow
def test_the_measures_are_those_of_the_core(tmp_path):
    """A walk of pictures in one task has one ISTD; a picture is itself."""
    import torch

    from velatura.core import metrics, smoothness
    from velatura.runtime.sweep.measures import decode

    path = scale.write_sweep(tmp_path, ONE, 2)
    text = path.read_text().replace('batch_size" = 1', 'batch_size" = 4').replace(ONE, f"{ONE}\n[measure.istd]")
    path.write_text(text)
    sweeps.run(path)
    rows = [row for row in scale.rows(path) if row["key"] == scale.rows(path)[0]["key"]]
    pictures = torch.stack([decode((tmp_path / "out" / row["file"]).read_bytes()) for row in rows])
    assert {row["istd"] for row in rows} == {float(smoothness.istd(smoothness.step_distances(pictures)))}
    Path(tmp_path / "r.png").write_bytes((tmp_path / "out" / rows[0]["file"]).read_bytes())
    path.write_text(text + '[measure.psnr]\nreference = "r.png"\n[measure.ssim]\nreference = "r.png"\n')
    sweeps.run(path)
    measured = [row for row in scale.rows(path) if row.get("psnr") is not None]
    values = [row["psnr"] for row in measured if row["key"] == measured[0]["key"]]
    assert max(row["psnr"] for row in measured) == 100 and len(values) == 4
    assert min(row["ssim"] for row in measured) < 0.9 < max(row["ssim"] for row in measured)
    assert float(metrics.psnr(pictures[:1], pictures[:1])) == 100


def test_pyarrow_that_is_not_there_is_said_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SweepError, match=r'pip install -e ".\[sweep\]"'):
        sweeps.run(scale.write_sweep(tmp_path, ONE, 2))


@pytest.mark.slow
def test_the_benchmark_times_one_worker_and_two_on_the_same_tasks():
    figures = scale.efficiency(1, 2)
    assert len(figures["sweep_efficiency_each_round"]) == 1 and figures["sweep_seconds_per_task"] > 0
