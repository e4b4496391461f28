"""The decoder of transparency at its released size, beside the published method: diffusers' blocks, 8 passes one by
one. Each runs in a process of its own, so that its memory can be told from the other's."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..core.transparency import DECODER_WIDTHS, TransparencyDecoder
from ..core.transparency_decode import decode
from ._diffusers import PublishedDecoder

SIZE, QUICK_SIZE, LARGE, TILE = 512, 192, 2048, 512


def figures(quick: bool = False, rounds: int = 1, large: int = LARGE) -> dict[str, float]:
    """Largest difference of colour and alpha at 8 passes; how many times faster ours is; its share of the published
    method's memory above the weights; and ours in MB for a picture of side `large`, in tiles, one pass (0: none).

    The contenders alternate. Memory is told on Linux only, NaN elsewhere.
    """
    size = QUICK_SIZE if quick else SIZE
    with tempfile.TemporaryDirectory() as folder:
        seen: dict[str, list[dict[str, float]]] = {"published": [], "ours": []}
        for turn in range(rounds):
            for who in reversed(seen) if turn % 2 else seen:
                seen[who].append(_contend(who, size, Path(folder, who)))
        results = [load_file(Path(folder, who))["result"] for who in seen]
        more = {} if quick or not large else {"decode_large_mb": _contend("large", large, None)["memory"] / 1e6}

    def best(who: str, what: str) -> float:
        return min(each[what] for each in seen[who])

    return {
        "decode_max_difference": float((results[0] - results[1]).abs().max()),
        "decode_speed_ratio": best("published", "seconds") / best("ours", "seconds"),
        "decode_memory_ratio": best("ours", "memory") / best("published", "memory"),
        "decode_seconds": best("ours", "seconds"),
        "decode_memory_mb": best("ours", "memory") / 1e6,
        **more,
    }


def _contend(who: str, size: int, path: Path | None) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, who, str(size), *([] if path is None else [str(path)])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def published_decode(network: nn.Module, image: Tensor, latent: Tensor) -> Tensor:
    """Identity and mirror image, each by four quarter turns, clipped, turned back, and the lower median of the 8."""
    passes = []
    for mirrored in (False, True):
        for turns in range(4):
            turned = [torch.rot90(x.flip(3) if mirrored else x, turns, (2, 3)) for x in (image, latent)]
            out = torch.rot90(network(*turned).clip(0, 1), -turns, (2, 3))
            passes.append(out.flip(3) if mirrored else out)
    return torch.stack(passes).median(0).values


def _network(widths: Sequence[int] = DECODER_WIDTHS) -> TransparencyDecoder:
    """Seeded random weights whose output fills 0 .. 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = TransparencyDecoder(widths).eval().requires_grad_(False)
    nn.init.constant_(network.conv_out.bias, 0.5)  # type: ignore[arg-type]
    return network


def _resident(what: str) -> float:
    """Bytes of this process by /proc: "VmRSS" now, "VmHWM" at most so far."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(what))


@torch.no_grad()
def _measured(who: str, size: int) -> tuple[Tensor, dict[str, float]]:
    network: Any = _network()
    if who == "published":
        state, network = network.state_dict(), PublishedDecoder().eval().requires_grad_(False)
        network.load_state_dict(state)
        del state
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, size, size, generator=generator)
    latent = torch.randn(1, 4, size // 8, size // 8, generator=generator)
    network(image[..., :64, :64], latent[..., :8, :8])  # what is made once is made now
    before = _resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    except OSError:
        before = float("nan")
    start = time.perf_counter()
    if who == "published":
        result = published_decode(network, image, latent)
    else:
        options: Any = {"passes": 1, "tile": TILE} if who == "large" else {"passes": 8}
        found = decode(network, image, latent, **options)
        result = torch.cat([found.alpha, found.colour], 1)
    seconds = time.perf_counter() - start
    return result, {"seconds": seconds, "memory": _resident("VmHWM") - before}


if __name__ == "__main__":
    made, costs = _measured(sys.argv[1], int(sys.argv[2]))
    if len(sys.argv) > 3:
        save_file({"result": made.contiguous()}, sys.argv[3])
    sys.stdout.write(json.dumps(costs) + "\n")
