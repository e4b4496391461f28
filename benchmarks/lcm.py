"""Few-step sampling on the Sprites model: the paper's Table 1, agreement with diffusers, and what the sampler costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ..core.consistency import consistency_sample, lcm_timesteps
from ..core.lcm_file import read_lcm
from ..core.protocols import Condition, LatentModel, Progress, no_progress
from ..demo import classifier, distil, measure, release, sprites
from ..demo.half import quick_half
from . import _diffusers
from ._comfyui import measured

STEPS = (1, 2, 4, 8)
GUIDANCE = distil.GUIDANCE  # classifier-free guidance w; a guidance-distilled network is told omega = w - 1
IMAGES, QUICK_IMAGES = 400, 64
PROMPT = "a red glass ball, warm sunset from the left"  # of the timed samples


def run(
    progress: Progress = no_progress,
    *,
    quick: bool = False,
    folder: str | Path = release.MODEL,
    file: str | Path = distil.LCM,
    images: int | None = None,
    half: bool = True,
    rounds: int = 15,
) -> dict[str, Any]:
    """The figures of `velatura bench lcm`. An accuracy is the mean over kind, colour and background. `half`: pictures
    are made under bfloat16 autocast where it is quick.

    FileNotFoundError if the model is not there.
    """
    from ..hosts import load

    count = images or (QUICK_IMAGES if quick else IMAGES)
    model, text, codec = load("diffusers").load_folder(folder)
    few = few_step(model, file)
    samplers: dict[str, Callable[[int], measure.Sample]] = {
        "ddim": lambda steps: measure.by_ddim(model, steps, GUIDANCE, "trailing"),
        "dpmpp": lambda steps: _diffusers.by_dpmpp(model, steps, GUIDANCE),
        "lcm": lambda steps: by_lcm(few, steps),
    }
    judge = Judge(Path(folder), count)
    figures: dict[str, Any] = {"images": count}
    total, done = count * (len(samplers) * len(STEPS) + 1), 0

    def judged(sample: measure.Sample) -> tuple[float, float]:
        nonlocal done
        before = done
        with quick_half(model.device, half):
            made = measure.pictures(
                model,
                text,
                codec,
                judge.prompts,
                sample,
                seed=0,
                progress=lambda n, _, p: progress(before + n, total, p),
            )
        done += count
        return judge(made)

    for name, by in samplers.items():
        table = {str(steps): judged(by(steps)) for steps in STEPS}
        figures[f"fid_{name}"] = {steps: fid for steps, (fid, _) in table.items()}
        figures[f"accuracy_{name}"] = {steps: accuracy for steps, (_, accuracy) in table.items()}
    figures["fid_ddim_50"], figures["accuracy_ddim_50"] = judged(measure.by_ddim(model, 50, GUIDANCE))
    figures["fid_real"] = judge.fid_real
    figures["scheduler_max_error"] = _diffusers.scheduler_max_error()
    figures |= speed(few, text, rounds=rounds)
    figures |= in_comfyui(file, folder, rounds)
    return figures


class Judge:
    """Frechet distance and accuracy of pictures made for held-out captions."""

    def __init__(self, folder: Path, count: int) -> None:
        self.model = classifier.load(folder / "classifier.safetensors")
        real, *self.asked = measure.real(measure.HELD_OUT, count)
        parts = [sprites.draw(measure.HELD_OUT, part, 8).captions for part in torch.arange(count).split(64)]
        self.prompts = [caption for part in parts for caption in part]
        self.truth = measure.judge(self.model, *measure.real(measure.HELD_OUT + 1, count)).features
        self.fid_real = measure.frechet(measure.judge(self.model, real, *self.asked).features, self.truth)

    def __call__(self, images: Tensor) -> tuple[float, float]:
        seen = measure.judge(self.model, images, *self.asked)
        return measure.frechet(seen.features, self.truth), (seen.kind + seen.colour + seen.place) / 3


def few_step(model: Any, file: str | Path = distil.LCM, guidance: float = GUIDANCE) -> Any:
    """The demo model with a few-step file: its LoRA, and its guidance embedding told omega = guidance - 1."""
    from safetensors.torch import load_file

    from ..hosts import load

    host, weights = load("diffusers"), read_lcm(load_file(file))
    if weights.deltas is not None:
        model, _ = host.with_lora(model, None, weights.deltas, 1.0, 0.0)
    if weights.projection is not None:
        model = host.with_guidance(model, weights.projection, guidance - 1)
    return model


def by_lcm(model: LatentModel, steps: int) -> measure.Sample:
    """Multistep consistency sampling on the paper's grid."""
    return consistently(model, lcm_timesteps(steps))


def consistently(model: LatentModel, timesteps: Tensor) -> measure.Sample:
    """Multistep consistency sampling, fresh noise numbered by prompt and step."""

    def sample(noise: Tensor, condition: Condition, null: Condition, first: int) -> Tensor:
        step = 0

        def draw() -> Tensor:
            nonlocal step
            step += 1
            numbers = range(first + 1_000_000 * step, first + 1_000_000 * step + len(noise))
            return torch.stack([measure.numbered_noise(tuple(noise.shape[1:]), n) for n in numbers]).to(noise)

        return consistency_sample(model, noise, condition, timesteps, draw)

    return sample


@torch.no_grad()
def speed(few: Any, text: Any, steps: int = 4, rounds: int = 15) -> dict[str, float]:
    """Seconds of a sampling step over those of a bare UNet call, ours and diffusers' pipeline, by turns."""
    condition = text.encode([PROMPT])
    shape = (1, few.latent_channels, 16, 16)
    noise, generator = torch.randn(shape), torch.Generator()
    width = few.unet.config.time_cond_proj_dim
    omega = None if width is None else torch.zeros(1, width)

    def bare() -> None:
        for _ in range(steps):
            few.unet(noise, 999, encoder_hidden_states=condition.embedding, timestep_cond=omega, return_dict=False)

    def ours() -> None:
        consistency_sample(few, noise, condition, lcm_timesteps(steps), lambda: torch.randn(shape, generator=generator))

    contestants = {"bare": bare, "ours": ours}
    if width is not None:
        contestants["diffusers"] = _diffusers.pipeline(few.unet, condition.embedding, noise, steps, GUIDANCE)
    names = {"ours": "step_over_unet", "diffusers": "step_over_unet_diffusers"}
    return {names[name]: ratio for name, ratio in ratios(contestants, rounds).items()}


def ratios(contestants: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median over rounds of each contestant's seconds over those of "bare", taken by turns so that whatever else the
    machine does falls on all."""
    runs: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, function in contestants.items():
            began = time.perf_counter()
            function()
            if turn:  # the first warms up
                runs[name].append(time.perf_counter() - began)
    bare = runs.pop("bare")
    return {name: median(a / b for a, b in zip(seconds, bare, strict=True)) for name, seconds in runs.items()}


def in_comfyui(file: str | Path, folder: str | Path, rounds: int) -> dict[str, float]:
    """`speed` in ComfyUI, beside its KSampler's `lcm`. Nothing where there is no ComfyUI, or the file is another than
    the shipped one."""
    if Path(file) != distil.LCM:
        return {}
    job = {"folder": str(folder), "prompt": PROMPT, "steps": 4, "rounds": rounds}
    found = measured("few_steps", job)
    names = {"ours": "step_over_unet_comfyui", "ksampler": "step_over_unet_ksampler_lcm"}
    return {} if found is None else {names[name]: ratio for name, ratio in found.items()}
