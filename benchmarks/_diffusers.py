"""diffusers' own parts, beside which ours are measured: few-step samplers, and the blocks of the published decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.consistency import consistency_sample, lcm_timesteps
from ..core.guidance import guide
from ..core.protocols import Condition, LatentModel
from ..core.schedule import NoiseSchedule
from ..core.transparency import DECODER_WIDTHS
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


class PublishedDecoder(nn.Module):
    """LayerDiffuse's decoder, of diffusers' blocks as its own program is. Its parameters are named like ours."""

    def __init__(self, widths: Sequence[int] = DECODER_WIDTHS) -> None:
        super().__init__()
        from diffusers.models.unets import unet_2d_blocks as blocks

        common: dict[str, Any] = {
            "temb_channels": None, "resnet_eps": 1e-5, "resnet_act_fn": "silu", "resnet_groups": 4,
        }  # fmt: skip
        last = len(widths) - 1
        self.conv_in, self.latent_conv_in = nn.Conv2d(3, widths[0], 3, 1, 1), nn.Conv2d(4, widths[2], 1)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            given = {**common, "in_channels": widths[max(0, level - 1)], "out_channels": width, "num_layers": 2}
            if level < 4:
                block: nn.Module = blocks.DownBlock2D(**given, add_downsample=True)
            else:
                sampler: Any = "conv" if level < last else None
                block = blocks.AttnDownBlock2D(**given, attention_head_dim=8, downsample_type=sampler)
            self.down_blocks.append(block)
        self.mid_block = blocks.UNetMidBlock2D(in_channels=widths[-1], attention_head_dim=8, **common)
        for level in range(last, -1, -1):
            above = widths[min(last, level + 1)]
            given = {
                **common, "in_channels": widths[max(0, level - 1)], "prev_output_channel": above,
                "out_channels": widths[level], "num_layers": 3,
            }  # fmt: skip
            if level < 4:
                block = blocks.UpBlock2D(**given, add_upsample=level > 0)
            else:
                block = blocks.AttnUpBlock2D(**given, attention_head_dim=8, upsample_type="conv")
            self.up_blocks.append(block)
        self.conv_norm_out, self.conv_out = nn.GroupNorm(4, widths[0], 1e-5), nn.Conv2d(widths[0], 4, 3, 1, 1)

    def forward(self, image: Tensor, latent: Tensor) -> Tensor:
        h = self.conv_in(image)
        skips: tuple[Tensor, ...] = (h,)
        downs: Any = self.down_blocks
        for level, block in enumerate(downs):
            if level == 3:
                h = h + self.latent_conv_in(latent)
            h, more = block(hidden_states=h, temb=None)
            skips += more
        h = self.mid_block(h, None)
        ups: Any = self.up_blocks
        for block in ups:
            count = len(block.resnets)
            h, skips = block(h, skips[-count:], None), skips[:-count]
        return self.conv_out(nn.functional.silu(self.conv_norm_out(h)))
