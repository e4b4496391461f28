"""diffusers' own few-step samplers, beside which ours are measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.consistency import consistency_sample, lcm_timesteps
from ..core.guidance import guide
from ..core.protocols import Condition, LatentModel
from ..core.schedule import NoiseSchedule
from ..demo import measure

_SCHEDULE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


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


def pipeline(unet: Any, embedding: Tensor, noise: Tensor, steps: int, guidance: float) -> Callable[[], None]:
    """diffusers' LCM pipeline on this UNet, from a prompt's embedding to a latent."""
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    scheduler: Any = LCMScheduler(**_SCHEDULE)
    pipeline_class: Any = LatentConsistencyModelPipeline
    pipe = pipeline_class(None, None, None, unet, scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)

    def run() -> None:
        pipe(
            prompt_embeds=embedding,
            num_inference_steps=steps,
            output_type="latent",
            latents=noise,
            guidance_scale=guidance,
        )

    return run
