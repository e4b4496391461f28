"""ComfyUI's half of `velatura bench overhead`: a script that ComfyUI's own interpreter runs in ComfyUI's folder.

Prints one line of JSON, `{"ratio": ...}`, and writes the picture to the file the job names.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


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


def main(job: dict[str, Any]) -> None:
    """Sample as the stock KSampler does, and time it against the bare network."""
    sys.path.insert(0, os.getcwd())
    from comfy import options

    options.enable_args_parsing(False)
    from comfy.cli_args import args

    args.cpu = True
    import torch
    from comfy import model_management, sample
    from safetensors.torch import save_file

    load_pack()
    hosts = importlib.import_module("velatura.hosts")
    overhead = importlib.import_module("velatura.benchmarks.overhead")

    with torch.inference_mode():
        model, clip, vae = hosts.load("comfyui").load_folder(job["folder"])
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

        ratio = overhead.step_over_unet(steps, lambda: network(x, t, context=both))
        save_file({"image": vae.decode(steps()).contiguous()}, job["out"])
    sys.stdout.write(json.dumps({"ratio": ratio}) + "\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
