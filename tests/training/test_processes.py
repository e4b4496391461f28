"""Two processes train one model: each sees its own examples, both end with the same weights."""

import os
import subprocess
import sys

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


@pytest.mark.slow
def test_two_processes_share_the_work_and_the_weights(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*command, str(script), str(tmp_path)],
        check=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    (one, first), (two, second) = (read_tensors(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    assert torch.equal(one["w"], two["w"])
    assert (first["seen"], second["seen"]) == ([0, 4, 8], [2, 6, 10])
