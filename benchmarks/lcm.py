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
from ..core.guidance import guide
from ..core.lcm_file import read_lcm
from ..core.protocols import Condition, LatentModel, Progress, no_progress
from ..core.schedule import NoiseSchedule
from ..demo import classifier, measure, release, sprites

STEPS = (1, 2, 4, 8)
GUIDANCE = 5.0  # classifier-free guidance w; a guidance-distilled network is told omega = w - 1
LCM = release.MODEL.parent / "sprites-lcm.safetensors"
IMAGES, QUICK_IMAGES = 500, 64


def run(
    progress: Progress = no_progress,
    *,
    quick: bool = False,
    folder: str | Path = release.MODEL,
    file: str | Path = LCM,
    images: int | None = None,
) -> dict[str, Any]:
    """The figures of `velatura bench lcm`. An accuracy is the mean over kind, colour and background.

    FileNotFoundError if the model is not there.
    """
    from ..hosts import load

    count = images or (QUICK_IMAGES if quick else IMAGES)
    model, text, codec = load("diffusers").load_folder(folder)
    few = few_step(model, file)
    samplers: dict[str, Callable[[int], measure.Sample]] = {
        "ddim": lambda steps: measure.by_ddim(model, steps, GUIDANCE, "trailing"),
        "dpmpp": lambda steps: by_dpmpp(model, steps, GUIDANCE),
        "lcm": lambda steps: by_lcm(few, steps),
    }
    judge = Judge(Path(folder), count)
    figures: dict[str, Any] = {"images": count}
    total, done = count * (len(samplers) * len(STEPS) + 1), 0

    def judged(sample: measure.Sample) -> tuple[float, float]:
        nonlocal done
        before = done
        made = measure.pictures(
            model, text, codec, judge.prompts, sample, seed=0, progress=lambda n, _, p: progress(before + n, total, p)
        )
        done += count
        return judge(made)

    for name, by in samplers.items():
        table = {str(steps): judged(by(steps)) for steps in STEPS}
        figures[f"fid_{name}"] = {steps: fid for steps, (fid, _) in table.items()}
        figures[f"accuracy_{name}"] = {steps: accuracy for steps, (_, accuracy) in table.items()}
    figures["fid_ddim_50"], figures["accuracy_ddim_50"] = judged(measure.by_ddim(model, 50, GUIDANCE))
    figures["fid_real"] = judge.fid_real
    figures["scheduler_max_error"] = scheduler_max_error()
    figures |= speed(few, text, codec)
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


def few_step(model: Any, file: str | Path = LCM, guidance: float = GUIDANCE) -> Any:
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


def by_dpmpp(model: LatentModel, steps: int, guidance: float) -> measure.Sample:
    """diffusers' DPM-Solver++(2M) with classifier-free guidance."""
    from diffusers import DPMSolverMultistepScheduler

    def sample(noise: Tensor, condition: Condition, null: Condition, first: int) -> Tensor:
        scheduler: Any = DPMSolverMultistepScheduler(**_SCHEDULE, timestep_spacing="trailing")
        scheduler.set_timesteps(steps)
        x = noise
        for t in scheduler.timesteps:
            at = t.expand(len(x))
            eps = guide(model.predict_noise(x, at, null), model.predict_noise(x, at, condition), guidance)
            x = scheduler.step(eps, t, x).prev_sample
        return x

    return sample


_SCHEDULE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def scheduler_max_error() -> float:
    """The largest difference to diffusers' LCMScheduler, in any x_0 of 1 to 8 steps, for the three kinds of network."""
    from diffusers import LCMScheduler

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    worst = 0.0
    for prediction in ("epsilon", "v_prediction", "sample"):
        network: Any = _Smooth(prediction)
        for steps in range(1, 9):
            theirs: Any = LCMScheduler(**_SCHEDULE, prediction_type=prediction)
            theirs.set_timesteps(steps)
            x, generator = noise, torch.Generator().manual_seed(5)
            expected = []
            for t in theirs.timesteps:
                x, x_0 = theirs.step(network.output(x, t), t, x, generator=generator, return_dict=False)
                expected.append(x_0)
            generator = torch.Generator().manual_seed(5)
            seen: list[Tensor] = []
            consistency_sample(
                network,
                noise,
                Condition(noise),
                lcm_timesteps(steps, grid="diffusers"),
                lambda generator=generator: torch.randn(noise.shape, generator=generator),
                progress=lambda step, total, x_0, seen=seen: seen.append(x_0),
            )
            worst = max(worst, float((torch.stack(seen) - torch.stack(expected)).abs().max()))
    return worst


class _Smooth:
    """A network of any kind of prediction whose x_0 is a smooth function of x and t."""

    schedule = NoiseSchedule.scaled_linear()

    def __init__(self, prediction: Any) -> None:
        self.prediction = prediction

    def output(self, x: Tensor, t: Tensor) -> Tensor:
        x_0 = torch.tanh(0.7 * x + t.reshape(-1, 1, 1, 1) / 1000)
        eps = self.schedule.epsilon_from_x0(x, x_0, t)
        velocity = self.schedule.velocity(x_0, eps, t)
        return {"sample": x_0, "epsilon": eps, "v_prediction": velocity}[self.prediction]

    def predict_noise(self, x: Tensor, t: Tensor, condition: Any, *, guidance_embedding: Any = None) -> Tensor:
        return self.schedule.to_epsilon(self.output(x, t), x, t, self.prediction)


@torch.no_grad()
def speed(few: Any, text: Any, codec: Any, steps: int = 4, rounds: int = 15) -> dict[str, float]:
    """Seconds of a sampling step over those of a bare UNet call, ours and diffusers' pipeline, by turns."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    condition = text.encode(["a red glass ball, warm sunset from the left"])
    shape = (1, few.latent_channels, 16, 16)
    noise, generator = torch.randn(shape), torch.Generator()
    width = few.unet.config.time_cond_proj_dim
    omega = None if width is None else torch.zeros(1, width)
    scheduler: Any = LCMScheduler(**_SCHEDULE)
    pipeline_class: Any = LatentConsistencyModelPipeline
    parts = (codec.vae, None, None, few.unet, scheduler, None, None)  # neither prompts nor safety are its business here
    pipeline = pipeline_class(*parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)

    def bare() -> None:
        for _ in range(steps):
            few.unet(noise, 999, encoder_hidden_states=condition.embedding, timestep_cond=omega, return_dict=False)

    def ours() -> None:
        draw = lambda: torch.randn(shape, generator=generator)  # noqa: E731
        consistency_sample(few, noise, condition, lcm_timesteps(steps), draw)

    def theirs() -> None:
        pipeline(
            prompt_embeds=condition.embedding, num_inference_steps=steps, output_type="latent", latents=noise,
            guidance_scale=GUIDANCE,
        )  # fmt: skip

    runs: dict[str, list[float]] = {"bare": [], "ours": [], "theirs": []}
    for turn in range(rounds + 1):
        for name, function in (("bare", bare), ("ours", ours), ("theirs", theirs)):
            began = time.perf_counter()
            function()
            if turn:  # the first warms up
                runs[name].append(time.perf_counter() - began)
    over = {name: median(a / b for a, b in zip(runs[name], runs["bare"], strict=True)) for name in ("ours", "theirs")}
    return {"step_over_unet": over["ours"], "step_over_unet_diffusers": over["theirs"]}
