"""Samplers: noise and prompts into latents."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...hosts import schema as io
from ...hosts.diffusers.samplers import SAMPLERS, SKIPS_PENULTIMATE
from ...hosts.diffusers.samplers import sampler as sampler_named
from ...hosts.diffusers.sampling import sample_latent
from ...hosts.diffusers.sigmas import SCHEDULES, NoiseLevels, sigmas_for
from ._node import StockNode, cfg_input, seed_input, steps_input

Latent = dict[str, Any]


def _sampler_input() -> io.Input:
    return io.Combo.Input("sampler_name", options=list(SAMPLERS), tooltip="How the steps are computed.")


def _scheduler_input() -> io.Input:
    return io.Combo.Input("scheduler", options=list(SCHEDULES), tooltip="Which noise levels the steps visit.")


def _prompts() -> list[io.Input]:
    return [
        io.Conditioning.Input("positive", tooltip="What the picture shall show."),
        io.Conditioning.Input("negative", tooltip="What it shall not show."),
    ]


def _latent_input() -> io.Input:
    return io.Latent.Input("latent_image", tooltip="Where the denoising starts: an empty latent, or a picture's.")


def _denoise_input() -> io.Input:
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="1 starts from noise; less keeps more.",
    )


def _levels(model: Any, sampler_name: str, scheduler: str, steps: int, denoise: float = 1.0) -> Tensor:
    skip = sampler_name in SKIPS_PENULTIMATE
    return sigmas_for(NoiseLevels.of(model.schedule), scheduler, steps, denoise, skip_penultimate=skip)


class KSampler(StockNode):
    """Noise, schedule and sampler in one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSampler",
            display_name="KSampler",
            category="sampling",
            description="Denoises a latent under the guidance of two prompts.",
            inputs=[
                io.Model.Input("model", tooltip="The noise predictor."),
                seed_input("seed"),
                steps_input(),
                cfg_input(),
                _sampler_input(),
                _scheduler_input(),
                *_prompts(),
                _latent_input(),
                _denoise_input(),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Any,
        negative: Any,
        latent_image: Latent,
        denoise: float = 1.0,
    ) -> io.NodeOutput:
        sigmas = _levels(model, sampler_name, scheduler, steps, denoise)
        done, _ = sample_latent(model, sampler_named(sampler_name), sigmas, positive, negative, cfg, latent_image, seed)
        return io.NodeOutput(done)


class KSamplerAdvanced(StockNode):
    """A part of a schedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSamplerAdvanced",
            display_name="KSampler (Advanced)",
            category="sampling",
            description="Denoises over a part of the steps, so that samplers can follow one another.",
            inputs=[
                io.Model.Input("model", tooltip="The noise predictor."),
                io.Combo.Input("add_noise", options=["enable", "disable"], tooltip="Off after another sampler."),
                seed_input("noise_seed"),
                steps_input(),
                cfg_input(),
                _sampler_input(),
                _scheduler_input(),
                *_prompts(),
                _latent_input(),
                io.Int.Input("start_at_step", default=0, min=0, max=10000, tooltip="The first step taken, from 0."),
                io.Int.Input("end_at_step", default=10000, min=0, max=10000, tooltip="The step before which it stops."),
                io.Combo.Input(
                    "return_with_leftover_noise",
                    options=["disable", "enable"],
                    tooltip="On, the noise of the steps not taken stays in; off, the last step removes it all.",
                ),
            ],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        add_noise: str,
        noise_seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Any,
        negative: Any,
        latent_image: Latent,
        start_at_step: int,
        end_at_step: int,
        return_with_leftover_noise: str,
    ) -> io.NodeOutput:
        sigmas = _levels(model, sampler_name, scheduler, steps)
        if end_at_step < len(sigmas) - 1:
            sigmas = sigmas[: end_at_step + 1].clone()
            if return_with_leftover_noise == "disable":
                sigmas[-1] = 0
        if start_at_step >= len(sigmas) - 1:
            return io.NodeOutput(latent_image)
        sigmas, noisy = sigmas[start_at_step:], add_noise == "enable"
        done, _ = sample_latent(
            model, sampler_named(sampler_name), sigmas, positive, negative, cfg, latent_image, noise_seed, noisy
        )
        return io.NodeOutput(done)


class SamplerCustom(StockNode):
    """Any sampler over any levels."""

    RELATIVE_PYTHON_MODULE = "comfy_extras.nodes_custom_sampler"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="SamplerCustom",
            display_name="SamplerCustom",
            category="sampling/custom_sampling",
            description="Denoises with a sampler and noise levels of their own nodes.",
            inputs=[
                io.Model.Input("model", tooltip="The noise predictor."),
                io.Boolean.Input("add_noise", default=True, tooltip="Off where the latent is noisy already."),
                seed_input("noise_seed"),
                cfg_input(),
                *_prompts(),
                io.Sampler.Input("sampler", tooltip="How the steps are computed."),
                io.Sigmas.Input("sigmas", tooltip="The noise levels, falling; a last 0 removes all noise."),
                _latent_input(),
            ],
            outputs=[
                io.Latent.Output(display_name="output", tooltip="The latent at the last level."),
                io.Latent.Output(display_name="denoised_output", tooltip="What the last step saw as clean."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        add_noise: bool,
        noise_seed: int,
        cfg: float,
        positive: Any,
        negative: Any,
        sampler: Any,
        sigmas: Tensor,
        latent_image: Latent,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            *sample_latent(model, sampler, sigmas, positive, negative, cfg, latent_image, noise_seed, add_noise)
        )


class KSamplerSelect(StockNode):
    """A sampler by name."""

    RELATIVE_PYTHON_MODULE = "comfy_extras.nodes_custom_sampler"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="KSamplerSelect",
            display_name="KSamplerSelect",
            category="sampling/custom_sampling/samplers",
            description="A sampler by name, for SamplerCustom.",
            inputs=[_sampler_input()],
            outputs=[io.Sampler.Output()],
        )

    @classmethod
    def execute(cls, sampler_name: str) -> io.NodeOutput:
        return io.NodeOutput(sampler_named(sampler_name))


class BasicScheduler(StockNode):
    """Noise levels by name."""

    RELATIVE_PYTHON_MODULE = "comfy_extras.nodes_custom_sampler"

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="BasicScheduler",
            display_name="BasicScheduler",
            category="sampling/custom_sampling/schedulers",
            description="The noise levels that a number of steps visits, for SamplerCustom.",
            inputs=[
                io.Model.Input("model", tooltip="The model whose levels these are."),
                _scheduler_input(),
                steps_input(),
                _denoise_input(),
            ],
            outputs=[io.Sigmas.Output()],
        )

    @classmethod
    def execute(cls, model: Any, scheduler: str, steps: int, denoise: float) -> io.NodeOutput:
        # Unlike KSampler's, these are never more than steps + 1 levels.
        sigmas = _levels(model, "", scheduler, steps, denoise)
        return io.NodeOutput(sigmas[-(steps + 1) :])


NODES = [KSampler, KSamplerAdvanced, SamplerCustom, KSamplerSelect, BasicScheduler]
