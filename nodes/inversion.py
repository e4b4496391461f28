"""Inversion: the noise, and what else it takes, from which a model makes a given picture again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core import inversion as core
from ..core.conditions import check_one_batch
from ..core.ddim import ddim_timesteps
from ..core.ddim_inversion import Preview
from ..core.interpolation import mix_conditions
from ..core.inversion import Inversion, Settings
from ..core.protocols import Condition, LatentModel
from ..core.reconstruct import reconstruct
from ..hosts import host
from ._api import io, schema
from ._live import Curves
from ._plot import curves

InversionType = io.Custom("VELATURA_INVERSION")
Latent = dict[str, Any]
METHODS = {
    "null text": "null_text",
    "negative prompt": "negative_prompt",
    "direct": "direct",
    "exact (EDICT)": "exact",
    "DDIM": "ddim",
}
_METHOD_TIP = (
    "null text: a null embedding for each step, where one is needed. negative prompt: the prompt itself stands in for "
    "the null text; quickest. direct: keeps what each step lacks; reconstructs to rounding. exact: two coupled chains, "
    "exact by algebra, twice the work. DDIM: the noise alone; guidance above 1 leads it astray."
)


def _settings_inputs() -> list[io.Input]:
    return [
        io.Combo.Input("method", options=list(METHODS), default="null text", tooltip=_METHOD_TIP),
        io.Int.Input(
            "steps", default=30, min=2, max=1000, tooltip="Steps of the inversion, and of what is made of it."
        ),
        io.Float.Input(
            "guidance",
            default=7.5,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="The guidance (cfg) of reconstructions and edits; above 0. More follows an edit's prompt further.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="The noise of the noised steps is drawn from this number; without any it changes nothing.",
        ),
        io.Int.Input(
            "noised_steps",
            default=0,
            min=0,
            max=999,
            tooltip="How many of the first steps take real noise instead of predicting it: makes the result as "
            "Gaussian as samplers expect, at some cost in likeness. 0 to 3 is usual; not for “exact”.",
        ),
        io.Float.Input(
            "tolerance",
            default=0.005,
            min=0.0,
            max=1.0,
            step=0.001,
            round=0.0001,
            tooltip="Null text: a step is optimised where it would miss its target by more than this (RMS, in latents "
            "of unit size).",
        ),
        io.Int.Input(
            "iterations", default=3, min=1, max=50, tooltip="Null text: conjugate gradients at a step, at most."
        ),
        io.Boolean.Input(
            "corrected",
            default=True,
            tooltip="Follow the sampler's path back a whole order closer, at the same number of steps. Off: the plain "
            "DDIM inversion of the papers.",
        ),
    ]


def _negative() -> io.Input:
    return io.Conditioning.Input(
        "negative",
        optional=True,
        tooltip="What guidance leads away from, and where null texts start: usually an empty prompt. Not connected, "
        "the positive prompt stands in, which is closer to the answer and quicker.",
    )


def vae_for_previews() -> io.Input:
    """An optional VAE."""
    return io.Vae.Input("vae", optional=True, tooltip="For previews while it runs, and to show before and after.")


def inversion_outputs() -> list[io.Output]:
    """What both inverting nodes give."""
    return [
        InversionType.Output(display_name="inversion", tooltip="For Reconstruct, Prompt-Switch Edit, Morph and Save."),
        io.Latent.Output(display_name="reconstructed", tooltip="What the model makes of the inversion: to be decoded."),
        io.Image.Output(display_name="plot", tooltip="How far each step of the reconstruction ends from its target."),
        io.String.Output(display_name="report", tooltip="Cost, error in latents, and how Gaussian the noise is."),
    ]


class VelaturaInvert(io.ComfyNode):
    """A picture to an inversion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaInvert",
            display_name="Invert (Velatura)",
            category="Velatura/inversion",
            description="Finds the noise, and what else it takes, from which the model makes this very picture again, "
            "guided by a prompt that describes it: then edit it, or morph it into another.",
            search_aliases=["null text inversion", "ddim inversion", "unsampler", "edict", "direct inversion", "nti"],
            inputs=[
                io.Model.Input("model", tooltip="A variance-preserving UNet model: Stable Diffusion 1, 2, XL."),
                io.Conditioning.Input("positive", tooltip="A prompt that describes the picture."),
                *_settings_inputs(),
                io.Image.Input("image", optional=True, tooltip="The pictures; needs the VAE. Or connect a latent."),
                io.Latent.Input("latent", optional=True, tooltip="The pictures as latents, in place of images."),
                io.Vae.Input("vae", optional=True, tooltip="Encodes the image, and shows previews."),
                _negative(),
            ],
            outputs=inversion_outputs(),
        )

    @classmethod
    def execute(
        cls, model: Any, positive: Any, method: str, steps: int, guidance: float, seed: int, noised_steps: int,
        tolerance: float, iterations: int, corrected: bool, image: Tensor | None = None, latent: Latent | None = None,
        vae: Any = None, negative: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        here, engine = host(), host().engine(model)
        x_0 = start_latent(engine, model, vae, image, latent, "")
        settings = _settings(engine, method, steps, guidance, noised_steps, tolerance, iterations, corrected)
        null = None if negative is None else here.negative(negative, positive)
        return _inverted(engine, model, vae, x_0, here.condition(positive), null, settings, seed)


class VelaturaInvertPair(io.ComfyNode):
    """Two pictures to one inversion."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaInvertPair",
            display_name="Invert Pair (Velatura)",
            category="Velatura/inversion",
            description="Inverts two pictures of one size together, for Morph to pass from the first to the second.",
            search_aliases=["null text inversion", "morph", "image interpolation", "paired inversion"],
            inputs=[
                io.Model.Input("model", tooltip="A variance-preserving UNet model: Stable Diffusion 1, 2, XL."),
                io.Conditioning.Input("positive_a", tooltip="A prompt that describes the first picture."),
                io.Conditioning.Input("positive_b", tooltip="A prompt that describes the second picture."),
                *_settings_inputs(),
                io.Boolean.Input(
                    "shared_null",
                    default=False,
                    tooltip="Null text: one series for both pictures, as in the paper on Smooth Diffusion. Right for "
                    "one prompt; with two that differ much, both pictures are missed. Off: a series each, mixed "
                    "between.",
                ),
                io.Image.Input("image_a", optional=True, tooltip="The first picture; needs the VAE."),
                io.Image.Input("image_b", optional=True, tooltip="The second picture, of the same size."),
                io.Latent.Input("latent_a", optional=True, tooltip="The first as a latent, in place of an image."),
                io.Latent.Input("latent_b", optional=True, tooltip="The second as a latent."),
                io.Vae.Input("vae", optional=True, tooltip="Encodes the images, and shows previews."),
                _negative(),
            ],
            outputs=inversion_outputs(),
        )

    @classmethod
    def execute(
        cls, model: Any, positive_a: Any, positive_b: Any, method: str, steps: int, guidance: float, seed: int,
        noised_steps: int, tolerance: float, iterations: int, corrected: bool, shared_null: bool,
        image_a: Tensor | None = None, image_b: Tensor | None = None, latent_a: Latent | None = None,
        latent_b: Latent | None = None, vae: Any = None, negative: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        here, engine = host(), host().engine(model)
        ends = [
            start_latent(engine, model, vae, image, latent, name)[:1]
            for image, latent, name in ((image_a, latent_a, "_a"), (image_b, latent_b, "_b"))
        ]
        if ends[0].shape != ends[1].shape:
            raise ValueError(
                f"image_b: expected a picture of image_a's size (latent {tuple(ends[0].shape[2:])}), got "
                f"{tuple(ends[1].shape[2:])}; resize or crop one of them"
            )
        a, b = here.condition(positive_a), here.condition(positive_b)
        check_one_batch(a, b)
        both = mix_conditions(a, b, torch.tensor([0.0, 1.0]))
        settings = _settings(
            engine, method, steps, guidance, noised_steps, tolerance, iterations, corrected, shared_null
        )
        null = None if negative is None else here.negative(negative, positive_a)
        return _inverted(engine, model, vae, torch.cat(ends), both, null, settings, seed)


def start_latent(
    engine: LatentModel, model: Any, vae: Any, image: Tensor | None, latent: Latent | None, name: str
) -> Tensor:
    """The scaled latents of an image or of a LATENT. ValueError unless exactly one of them is there."""
    if (image is None) == (latent is None):
        raise ValueError(f"image{name}: connect either image{name} or latent{name}, and not both")
    if latent is not None:
        return engine.scale(latent["samples"].float())
    if vae is None:
        raise ValueError(f"vae: image{name} needs one to be encoded; connect the model's own")
    codec, pixels = host().codec(vae, model), image[..., :3].movedim(-1, 1)  # pyright: ignore[reportOptionalSubscript]
    height, width = (side // codec.factor * codec.factor for side in pixels.shape[2:])
    if not height or not width:
        raise ValueError(f"image{name}: expected at least {codec.factor} pixels a side, got {tuple(pixels.shape[2:])}")
    top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
    with torch.no_grad():
        return codec.encode(pixels[..., top : top + height, left : left + width].float() * 2 - 1)


def _settings(
    engine: LatentModel, method: str, steps: int, guidance: float, noised_steps: int, tolerance: float,
    iterations: int, corrected: bool, shared: bool = False,
) -> Settings:  # fmt: skip
    return Settings(
        ddim_timesteps(len(engine.schedule), steps),
        METHODS[method],  # pyright: ignore[reportArgumentType]
        guidance,
        shared,
        corrected,
        tolerance,
        iterations,
        noised_steps,
    )


def preview_of(vae: Any, model: Any) -> Preview | None:
    """A decoder of the first sample for progress bars, where there is a VAE."""
    if vae is None:
        return None
    codec = host().codec(vae, model)

    def preview(x: Tensor) -> Tensor:
        with torch.no_grad():
            return (codec.decode(x[:1].float())[0] + 1) / 2

    return preview


def _inverted(
    engine: LatentModel, model: Any, vae: Any, x_0: Tensor, condition: Condition, null: Condition | None,
    settings: Settings, seed: int,
) -> io.NodeOutput:  # fmt: skip
    # Each sample's noise is its own: a picture inverts the same alone and in a batch.
    noise = torch.stack(
        [
            torch.randn(x_0.shape[1:], generator=torch.Generator().manual_seed((seed + k) % 2**64))
            for k in range(len(x_0))
        ]
    ).to(x_0)
    total, live = len(settings.timesteps), Curves("step of the reconstruction")
    misses: list[Tensor] = []

    def watch(step: int, miss: Tensor) -> None:
        misses.append(miss)
        live.add(step + 1, {f"picture {k + 1}": value for k, value in enumerate(miss.tolist())})

    with torch.no_grad():
        found = core.invert(
            engine,
            x_0,
            condition,
            null,
            settings,
            noise=noise.to(engine.device),
            progress=host().progress(2 * total if settings.method in ("null_text", "direct") else total),
            preview=preview_of(vae, model),
            watch=watch,
        )
        again = found.reconstructed
        if again is None:
            again = reconstruct(engine, found, progress=_cancel_only(total), watch=watch)
    again = again.cpu()
    # The exact method has no path to miss.
    lines = (torch.stack(misses) if misses else found.losses).T.tolist()
    plot = curves(
        lines, [f"picture {k + 1}" for k in range(found.batch)], f"{settings.method}: distance from the path",
        "step of the reconstruction", "RMS",
    )  # fmt: skip
    latent = {"samples": engine.unscale(again)}
    return io.NodeOutput(found, latent, plot, report(found, again), ui=live.shown() if misses else None)


def _cancel_only(total: int) -> Any:
    """A second phase's progress: the bar is full, but cancel still works."""
    bar = host().progress(total)
    return lambda step, whole, picture: bar(whole, whole, None)


def report(found: Inversion, again: Tensor) -> str:
    """The inversion's figures as lines of text."""
    error = (again - found.x_0).flatten(1).square().mean(1).sqrt()
    white = core.gaussianity(found.noise)
    return "\n".join(
        [
            f"method: {found.method}, {len(found.timesteps)} steps, guidance {found.guidance:g}",
            f"network evaluations for each picture: {found.evaluations / found.batch:.1f}",
            "error in latents (RMS): " + ", ".join(f"{each:.2e}" for each in error.tolist()),
            f"noise: standard deviation {white['std']:.3f} (1), excess kurtosis {white['kurtosis']:.2f} (0), "
            f"neighbours' correlation {white['neighbours']:.3f} (0)",
        ]
    )
