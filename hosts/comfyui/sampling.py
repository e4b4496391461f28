"""The engine's sampling loops as ComfyUI's SAMPLER, and its SamplerCustom as a function."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...core.consistency import Steps, noise_after_start
from .model import schedule_of


def sampler(name: str, steps: Steps) -> Any:
    """A KSAMPLER that runs `steps`. Its noise is that of `noise_after_start`: ComfyUI's own samplers start the seed's
    generator again, and so add the start noise a second time where it was drawn on the same device."""

    @torch.no_grad()
    def sample(
        model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None
    ) -> Tensor:
        extra = extra_args or {}
        schedule = schedule_of(model.inner_model.inner_model.model_sampling)
        ones = x.new_ones([x.shape[0]])
        with tqdm(total=len(sigmas) - 1, disable=disable) as bar:

            def report(i: int, x_0: Tensor) -> None:
                if callback is not None:
                    level = sigmas[i]
                    callback({"x": x, "i": i, "sigma": level, "sigma_hat": level, "denoised": x_0})
                bar.update()

            def denoise(x: Tensor, sigma: Tensor) -> Tensor:
                return model(x, sigma * ones, **extra)

            return steps(schedule, denoise, x, sigmas, noise_after_start(x, extra.get("seed") or 0), report)

    sample.__name__ = f"sample_{name}"
    return comfy.samplers.KSAMPLER(sample)


def sample(
    model: Any,
    sampler: Any,
    sigmas: Tensor,
    positive: Any,
    negative: Any,
    cfg: float,
    latent: dict[str, Any],
    seed: int,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A LATENT sampled: (the LATENT at the last level, that of the last x_0). `negative` may be None at cfg 1."""
    image = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(image, seed, latent.get("batch_index"))
    seen: dict[str, Tensor] = {}
    done = comfy.sample.sample_custom(
        model,
        noise,
        cfg,
        sampler,
        sigmas,
        positive,
        positive if negative is None else negative,
        image,
        noise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1, seen),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    x_0 = model.model.process_latent_out(seen["x0"].cpu()) if "x0" in seen else done
    return {**latent, "samples": done}, {**latent, "samples": x_0}
