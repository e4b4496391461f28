"""What the hosts add to the network: time per sampling step over one bare UNet call, import time, and whether both draw
the same picture.

ComfyUI's half runs where COMFYUI_PATH names a checkout.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from ..core.protocols import Progress, no_progress
from ._comfyui import measured

PROMPT, SEED, STEPS, CFG = "a red glass ball, warm sunset from the left", 7, 20, 5.0
FOLDER = Path(__file__).resolve().parent.parent / "demo" / "models" / "sprites"


def run(progress: Progress = no_progress) -> dict[str, float | None]:
    """The figures of `velatura bench overhead`."""
    import torch

    progress(0, 4, None)
    imports = import_seconds()
    progress(1, 4, None)
    ratio, image = runtime_half()
    progress(2, 4, None)
    comfy_ratio, comfy_image = comfyui_half()
    progress(3, 4, None)
    psnr = None
    if comfy_image is not None:
        error = (image.double() - comfy_image.double()).square().mean()
        psnr = float(-10 * torch.log10(error.clamp(min=1e-12)))
    progress(4, 4, None)
    return {
        "step_over_unet_runtime": ratio,
        "step_over_unet_comfyui": comfy_ratio,
        "import_seconds": imports,
        "images_psnr_between_hosts": psnr,
    }


def import_seconds(repeats: int = 5) -> float:
    """Median seconds to import the pack and list its nodes, beyond importing torch, each in a new process."""
    code = (
        "import asyncio, time, torch; began = time.perf_counter(); import velatura\n"
        "asyncio.run(asyncio.run(velatura.comfy_entrypoint()).get_node_list())\n"
        "print(time.perf_counter() - began)"
    )
    command = [sys.executable, "-c", code]
    return median(
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(repeats)
    )


def step_over_unet(sample: Callable[[], Any], unet: Callable[[], Any], rounds: int = 9) -> float:
    """Median over rounds of (time of a sampling step) / (time of a bare UNet call on the same batch), taken by turns so
    that whatever else the machine does falls on both."""
    ratios = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        sample()
        between = time.perf_counter()
        for _ in range(STEPS):
            unet()
        ratios.append((between - began) / (time.perf_counter() - between))
    return median(ratios[1:])  # the first round warms up


def runtime_half() -> tuple[float, Any]:
    """The ratio on the embedded runtime, and its picture [1, H, W, 3]."""
    import torch

    from .. import hosts
    from ..hosts.diffusers.samplers import SAMPLERS
    from ..hosts.diffusers.sampling import normal_noise, sample
    from ..hosts.diffusers.sigmas import NoiseLevels, sigmas_for

    host = hosts.load("diffusers")
    model, clip, vae = host.load_folder(FOLDER)
    positive, negative = (host.conditioning(clip.encode([text])) for text in (PROMPT, ""))
    latent = torch.zeros(1, 4, 16, 16)
    sigmas = sigmas_for(NoiseLevels.of(model.schedule), "karras", STEPS)
    network = model.unet
    x, t = torch.randn(2, 4, 16, 16), torch.full((2,), 500)
    both = torch.cat([positive[0][0], negative[0][0]])

    def steps() -> Any:
        noise = normal_noise(latent.shape, SEED)
        return sample(model, SAMPLERS["dpmpp_2m"], sigmas, positive, negative, CFG, latent, noise, seed=SEED)[0]

    def bare() -> Any:
        with torch.no_grad():
            return network(x, t, encoder_hidden_states=both, return_dict=False)

    ratio = step_over_unet(steps, bare)
    image = vae.decode(vae.scale(steps()))
    return ratio, ((image + 1) / 2).movedim(1, -1)


def comfyui_half() -> tuple[float | None, Any]:
    """The same in ComfyUI, or (None, None) where there is none."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "image.safetensors")
        job = {"folder": str(FOLDER), "prompt": PROMPT, "seed": SEED, "steps": STEPS, "cfg": CFG, "out": str(out)}
        figures = measured("overhead", job)
        return (None, None) if figures is None else (figures["ratio"], load_file(out)["image"])
