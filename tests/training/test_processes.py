"""Two processes train one model: each sees its own examples, both end with the same weights."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from velatura.training.checkpoint import read_tensors

SCRIPT = """
import sys, torch
from torch import nn
from velatura.training import loop, supervised
seen = []
def loss(model, first, count, generator):
    seen.append(first)
    x = torch.linspace(-1, 1, 3 * count).view(count, 3) + first
    return (model(x) - x.sum(1, keepdim=True)).square().mean()
torch.manual_seed(0)
network = nn.Linear(3, 1)
done = supervised.train(network, loss, loop.Settings(steps=3, batch=2, rate=1e-2, clip=0.0), sys.argv[1])
import os
from velatura.training.checkpoint import write_tensors
rank = os.environ["RANK"]
write_tensors(f"{sys.argv[1]}/rank{rank}.safetensors", {"w": done.modules["network"].weight}, {"seen": seen})
"""


def two_processes(folder: Path, code: str, *arguments: str) -> list[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """What the script writes as rank0 and rank1 into the folder, its first argument."""
    script = folder / "script.py"
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*command, str(script), str(folder), *arguments],
        check=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    return [read_tensors(folder / f"rank{rank}.safetensors") for rank in (0, 1)]


SMOOTH = """
import os, sys, torch
sys.path.insert(0, sys.argv[2])
import test_smooth
from velatura.training.checkpoint import write_tensors
seen = []
real = test_smooth.data
test_smooth.data = lambda first, count: (seen.append(first), real(first, count))[1]
done = test_smooth.train(sys.argv[1], steps=3, batch=2, accumulate=2)
tensors = {"a": done.modules["running"].a.reshape(1), **test_smooth.weights(done)}
rank = os.environ["RANK"]
write_tensors(f"{sys.argv[1]}/rank{rank}.safetensors", tensors, {"seen": seen, "norm": done.history["norm"]})
"""


@pytest.mark.slow
def test_two_processes_share_a_smooth_lora_and_its_running_mean(tmp_path):
    (one, first), (two, second) = two_processes(tmp_path, SMOOTH, str(Path(__file__).parent))
    assert torch.equal(one["a"], two["a"]) and float(one["a"]) > 0
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert (first["seen"], second["seen"]) == ([0, 4, 8, 12, 16, 20], [2, 6, 10, 14, 18, 22])
    assert first["norm"] == second["norm"]


@pytest.mark.slow
def test_two_processes_share_the_work_and_the_weights(tmp_path):
    (one, first), (two, second) = two_processes(tmp_path, SCRIPT)
    assert torch.equal(one["w"], two["w"])
    assert (first["seen"], second["seen"]) == ([0, 4, 8], [2, 6, 10])
