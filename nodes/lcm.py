"""Few-step sampling: latent consistency models (LCM, TCD), with the timesteps and the guidance of their authors."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.consistency import consistency_steps, lcm_timesteps
from ..core.lcm_file import PROJECTION, LcmWeights, read_lcm
from ..hosts import host
from ..hosts.weights import open_weights
from . import load
from ._api import io, schema

DEMO = "sprites-lcm (demo)"
DEMO_FILE = "sprites-lcm.safetensors"
KINDS = ("loras", "checkpoints", "diffusion_models")
DEFAULT_GUIDANCE = 7.5
CONVENTIONS = {"from the file": None, "omega = guidance - 1": "omega", "omega = guidance": "scale"}


class VelaturaLcmModel(io.ComfyNode):
    """An LCM-LoRA, or the guidance embedding of a full LCM, put on a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        files = [f"{kind}/{name}" for kind in KINDS for name in host().models(kind)]
        return schema(
            "VelaturaLcmModel",
            display_name="Apply LCM (Velatura)",
            category="Velatura/load",
            description="Makes a model a few-step one: adds an LCM-LoRA, and gives the network the guidance embedding "
            "that a full LCM was distilled with and that ComfyUI leaves out. The original stays as it is.",
            search_aliases=["lcm lora", "latent consistency", "guidance embedding", "cond_proj", "turbo", "tcd"],
            inputs=[
                io.Model.Input("model", tooltip="The model to change. For a full LCM checkpoint: that checkpoint."),
                io.Combo.Input(
                    "file",
                    options=[DEMO, *files],
                    default=DEMO,
                    tooltip="An LCM-LoRA, or the full LCM checkpoint that was loaded, whose guidance embedding is "
                    "read. The first entry ships with the pack, for the demo model.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    tooltip="How strongly a LoRA changes the model. LCM-LoRAs are made for 1.",
                ),
                io.Float.Input(
                    "guidance",
                    default=-1.0,
                    min=-1.0,
                    max=30.0,
                    step=0.1,
                    tooltip="The guidance scale that the network is told, in place of a sampler's cfg, which stays at "
                    "1. −1: the file's own, else 7.5; and for a file without guidance embedding, none.",
                ),
                io.Combo.Input(
                    "convention",
                    options=list(CONVENTIONS),
                    default="from the file",
                    tooltip="What the network calls guidance: omega = guidance − 1 in the paper and diffusers, which "
                    "is taken where the file says nothing.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The few-step model, for the LCM nodes and for any sampler.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> float:
        path = _path(file)
        return path.stat().st_mtime if path.exists() else 0.0

    @classmethod
    def execute(cls, model: Any, file: str, strength: float, guidance: float, convention: str) -> io.NodeOutput:
        path = _path(file)
        if not path.exists():
            raise FileNotFoundError(f"file: {path} is not there; install the pack again, or choose another file")
        try:
            with open_weights(path) as (tensors, metadata):
                weights = read_lcm(tensors, metadata)
            return io.NodeOutput(_applied(model, weights, strength, guidance, CONVENTIONS[convention]))
        except ValueError as error:
            raise error if str(path) in str(error) else ValueError(f"{path}: {error}") from error


def _path(file: str) -> Path:
    if file == DEMO:
        return load.DEMO_MODELS / DEMO_FILE
    kind, _, name = file.partition("/")
    return host().model_file(kind, name)


def _applied(model: Any, weights: LcmWeights, strength: float, guidance: float, convention: str | None) -> Any:
    """The MODEL with what the file holds."""
    if guidance >= 0 and weights.projection is None:
        raise ValueError(
            f"guidance: expected -1, got {guidance:g}: the file has no guidance embedding ({PROJECTION}) to tell it "
            "to; use the sampler's cfg, from 1 to 2"
        )
    if weights.deltas is not None:
        if not weights.deltas.of("unet"):
            raise ValueError("this LoRA changes text encoders only, nothing of the model")
        model, _ = host().with_lora(model, None, weights.deltas, strength, 0.0)
    if weights.projection is not None:
        if guidance < 0:
            guidance = DEFAULT_GUIDANCE if weights.default is None else weights.default
        less = 1 if (convention or weights.convention) == "omega" else 0
        model = host().with_guidance(model, weights.projection, guidance - less)
    return model


def _steps() -> io.Input:
    return io.Int.Input("steps", default=4, min=1, max=1000, tooltip="Model evaluations: 1 to 8, of which 4 is usual.")


def _denoise() -> io.Input:
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.01,
        max=1.0,
        step=0.01,
        tooltip="1 starts from noise. Less keeps more of the latent: the steps then come from this share of the "
        "original steps, the papers' strength.",
    )


def _original_steps() -> io.Input:
    return io.Int.Input(
        "original_steps",
        default=50,
        min=1,
        max=1000,
        tooltip="How many timesteps the model was distilled on; the steps are chosen from these. It divides the "
        "model's 1000.",
    )


def _grid() -> io.Input:
    return io.Combo.Input(
        "grid",
        options=["paper", "diffusers"],
        default="paper",
        tooltip="Which of them four steps visit: “paper” 999, 759, 519, 279, “diffusers” 999, 759, 499, 259.",
    )


def _method() -> io.Input:
    return io.Combo.Input(
        "method",
        options=["lcm", "tcd"],
        default="lcm",
        tooltip="“lcm” jumps to the clean picture and noises it afresh. “tcd” (trajectory consistency) follows the "
        "trajectory part of the way; it also suits LCMs with more steps.",
    )


def _gamma() -> io.Input:
    return io.Float.Input(
        "gamma",
        default=0.3,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="For tcd alone, there also called eta: 0 adds no noise between steps, 1 as much as lcm.",
    )


def _sigmas(model: Any, steps: int, denoise: float, original_steps: int, grid: Any) -> Tensor:
    """The model's own levels at whole timesteps, and 0 at the end: float32 [steps + 1]."""
    schedule = host().model(model).schedule
    times = lcm_timesteps(steps, original_steps=original_steps, strength=denoise, count=len(schedule), grid=grid)
    return torch.cat([schedule.sigma(times), torch.zeros(1)]).float()


def _sampler(method: str, gamma: float) -> Any:
    return host().sampler(method, partial(consistency_steps, gamma=gamma if method == "tcd" else None))


class VelaturaLcmSchedule(io.ComfyNode):
    """Noise levels for SamplerCustom."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaLcmSchedule",
            display_name="LCM Schedule (Velatura)",
            category="Velatura/sampling",
            description="The noise levels of few-step sampling, each exactly that of a timestep the model was "
            "distilled on. Stock schedulers fall between them.",
            search_aliases=["lcm scheduler", "sigmas", "few steps"],
            inputs=[
                io.Model.Input("model", tooltip="The model whose noise levels these are."),
                _steps(),
                _denoise(),
                _original_steps(),
                _grid(),
            ],
            outputs=[io.Sigmas.Output(tooltip="The levels, falling, the last one 0; for SamplerCustom.")],
        )

    @classmethod
    def execute(cls, model: Any, steps: int, denoise: float, original_steps: int, grid: str) -> io.NodeOutput:
        return io.NodeOutput(_sigmas(model, steps, denoise, original_steps, grid))


class VelaturaLcmSampler(io.ComfyNode):
    """The sampler for SamplerCustom."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaLcmSampler",
            display_name="LCM Sampler (Velatura)",
            category="Velatura/sampling",
            description="Multistep consistency sampling, with the boundary scalings of the paper and fresh noise at "
            "every step: one model evaluation each.",
            search_aliases=["lcm", "tcd", "few steps", "consistency sampler"],
            inputs=[_method(), _gamma()],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom, with the levels of LCM Schedule.")],
        )

    @classmethod
    def execute(cls, method: str, gamma: float) -> io.NodeOutput:
        return io.NodeOutput(_sampler(method, gamma))


class VelaturaLcmSample(io.ComfyNode):
    """Schedule, sampler and noise in one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaLcmSample",
            display_name="LCM Sample (Velatura)",
            category="Velatura/sampling",
            description="Draws with a few-step model: schedule, sampler and noise in one node. From an empty latent "
            "with denoise 1, from a picture's with less; a latent's noise mask is painted in.",
            search_aliases=["ksampler", "lcm", "tcd", "few steps", "image to image", "inpaint"],
            inputs=[
                io.Model.Input("model", tooltip="A few-step model: Apply LCM's, or any that needs few steps."),
                io.Conditioning.Input("positive", tooltip="What the picture shall show."),
                io.Latent.Input("latent_image", tooltip="Where to start: an empty latent, or a picture's."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="The noise, at the start and between steps: the same seed, the same picture.",
                ),
                _steps(),
                _denoise(),
                _original_steps(),
                _grid(),
                _method(),
                _gamma(),
                io.Float.Input(
                    "cfg",
                    default=1.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Classifier-free guidance on top of the model's own. 1 needs one evaluation a step; more, "
                    "up to 2 for an LCM-LoRA, needs two, and a negative prompt.",
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="What the picture shall not show. Used where cfg is not 1."
                ),
            ],
            outputs=[io.Latent.Output(tooltip="The finished latent, for VAE Decode.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        latent_image: dict[str, Any],
        seed: int,
        steps: int,
        denoise: float,
        original_steps: int,
        grid: str,
        method: str,
        gamma: float,
        cfg: float,
        negative: Any = None,
    ) -> io.NodeOutput:
        if cfg != 1 and negative is None:
            raise ValueError(
                f"negative: cfg {cfg:g} needs a negative prompt; connect one, empty text will do, or set cfg to 1"
            )
        sigmas = _sigmas(model, steps, denoise, original_steps, grid)
        sampler = _sampler(method, gamma)
        done, _ = host().sample(model, sampler, sigmas, positive, negative, cfg, latent_image, seed)
        return io.NodeOutput(done)
