"""ComfyUI's half of the benchmarks: `measured` starts this file with ComfyUI's own interpreter, in ComfyUI's folder.

COMFYUI_PATH names the checkout, COMFYUI_PYTHON the interpreter.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def measured(what: str, job: dict[str, Any]) -> dict[str, Any] | None:
    """The figures of one of the functions below, or None where there is no ComfyUI. RuntimeError if it fails."""
    home = os.environ.get("COMFYUI_PATH")
    if not home:
        return None
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), __file__, what, json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=home, check=False)
    if done.returncode:
        raise RuntimeError(f"ComfyUI in {home} did not run the benchmark:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def load_pack() -> Any:
    """The pack as ComfyUI loads it: by path."""
    spec = importlib.util.spec_from_file_location(
        "velatura", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no pack in {ROOT}")
    pack = importlib.util.module_from_spec(spec)
    sys.modules["velatura"] = pack
    spec.loader.exec_module(pack)
    return pack


def overhead(job: dict[str, Any]) -> dict[str, Any]:
    """Sample as the stock KSampler does, and time it against the bare network; the picture goes to the job's file."""
    import torch
    from comfy import model_management, sample
    from safetensors.torch import save_file

    bench = importlib.import_module("velatura.benchmarks.overhead")
    model, clip, vae = importlib.import_module("velatura.hosts").load("comfyui").load_folder(job["folder"])
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (job["prompt"], ""))
    latent = torch.zeros(1, 4, 16, 16)
    noise = sample.prepare_noise(latent, job["seed"])
    model_management.load_models_gpu([model])
    network = model.model.diffusion_model
    x, t = torch.randn(2, 4, 16, 16), torch.full((2,), 500.0)
    both = torch.cat([positive[0][0], negative[0][0]])

    def steps() -> Any:
        arguments = (job["steps"], job["cfg"], "dpmpp_2m", "karras", positive, negative, latent)
        return sample.sample(model, noise, *arguments, disable_pbar=True, seed=job["seed"])

    ratio = bench.step_over_unet(steps, lambda: network(x, t, context=both))
    save_file({"image": vae.decode(steps()).contiguous()}, job["out"])
    return {"ratio": ratio}


def few_steps(job: dict[str, Any]) -> dict[str, Any]:
    """Four steps of the few-step model by our sampler and by KSampler's `lcm`, against as many bare network calls."""
    import latent_preview
    import torch
    from comfy import model_management, sample

    lcm = importlib.import_module("velatura.benchmarks.lcm")
    nodes = importlib.import_module("velatura.nodes.lcm")
    host = importlib.import_module("velatura.hosts").load("comfyui")
    plain, clip, _ = host.load_folder(job["folder"])
    (model,) = nodes.VelaturaLcmModel.execute(plain, nodes.DEMO, 1.0, -1.0, "from the file").args
    positive = clip.encode_from_tokens_scheduled(clip.tokenize(job["prompt"]))
    latent = torch.zeros(1, 4, 16, 16)
    noise = sample.prepare_noise(latent, 0)
    model_management.load_models_gpu([model])
    network = model.model.diffusion_model
    x, t = torch.randn(1, 4, 16, 16), torch.full((1,), 500.0)
    count = job["steps"]

    def bare() -> None:
        for _ in range(count):
            network(x, t, context=positive[0][0])

    def ours() -> None:
        given = (model, positive, {"samples": latent}, 0, count, 1.0, 50, "paper", "lcm", 0.0, 1.0)
        nodes.VelaturaLcmSample.execute(*given)

    def stock() -> None:
        arguments = (count, 1.0, "lcm", "sgm_uniform", positive, positive, latent)
        callback = latent_preview.prepare_callback(model, count)  # as its node does
        sample.sample(model, noise, *arguments, callback=callback, seed=0)

    return lcm.ratios({"bare": bare, "ours": ours, "ksampler": stock}, job["rounds"])


def main(what: str, job: dict[str, Any]) -> None:
    """Print one line of JSON."""
    sys.path.insert(0, os.getcwd())
    from comfy import options

    options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    import torch

    load_pack()
    with torch.inference_mode():
        figures = {"overhead": overhead, "few_steps": few_steps}[what](job)
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
