"""Smooth latents: the LoRA that makes a model's latent space smooth, and the measure of how smooth it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import smoothness
from ..core.ddim import ddim_sample, ddim_timesteps
from ..core.lora import read_lora
from ..core.protocols import Condition
from ..hosts import host
from ..hosts.weights import read_weights
from . import load
from ._api import io, schema
from ._plot import curves

DEMO = "sprites-smooth (demo)"
DEMO_FILE = "sprites-smooth.safetensors"
NOT_MEASURED = -1.0
SHOWN = 8
"""Walks whose frames are given out; all are measured."""


class VelaturaSmoothLora(io.ComfyNode):
    """A Smooth-LoRA, or any other, put on a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaSmoothLora",
            display_name="Apply Smooth-LoRA (Velatura)",
            category="Velatura/load",
            description="Makes a model's latent space smooth: walks between noises and morphs flicker less. Reads the "
            "released Smooth Diffusion file, and LoRAs of every other layout. The original stays as it is.",
            search_aliases=["smooth diffusion", "lora loader", "smooth lora", "interpolation", "flicker"],
            inputs=[
                io.Model.Input("model", tooltip="The model to change, of the family that the file was made for."),
                io.Combo.Input(
                    "file",
                    options=[DEMO, *host().models("loras")],
                    default=DEMO,
                    tooltip="A Smooth-LoRA: the released one, or Train Smooth-LoRA's. The first entry ships with the "
                    "pack, for the demo model.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="How strongly it changes the model: 1 is what it was trained for, 0 changes nothing, below "
                    "0 makes the model rougher.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The smooth model, for any sampler and every inversion node.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> float:
        path = _path(file)
        return path.stat().st_mtime if path.exists() else 0.0

    @classmethod
    def execute(cls, model: Any, file: str, strength: float) -> io.NodeOutput:
        path = _path(file)
        if not path.exists():
            raise FileNotFoundError(f"file: {path} is not there; install the pack again, or choose another file")
        try:
            deltas = read_lora(read_weights(path))
            if not deltas.of("unet"):
                raise ValueError("this LoRA changes text encoders only, nothing of the model")
            return io.NodeOutput(host().with_lora(model, None, deltas, strength, 0.0)[0])
        except ValueError as error:
            raise error if str(path) in str(error) else ValueError(f"file: {path}: {error}") from error


def _path(file: str) -> Path:
    return load.DEMO_MODELS / DEMO_FILE if file == DEMO else host().model_file("loras", file)


class VelaturaSmoothnessMeter(io.ComfyNode):
    """Interpolation standard deviation, of one model or of two."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaSmoothnessMeter",
            display_name="Smoothness Meter (Velatura)",
            category="Velatura/measure",
            description="How smooth a model's latent space is: draws the pictures between two noises of a prompt and "
            "tells how evenly they follow one another (ISTD, lower is smoother). With a second model, both draw from "
            "the same noises.",
            search_aliases=["istd", "interpolation standard deviation", "smooth diffusion", "latent walk", "flicker"],
            inputs=[
                io.Model.Input("model", tooltip="The model to measure."),
                io.Conditioning.Input(
                    "positive", tooltip="A prompt to walk in, or several by Conditioning Combine. The paper takes 500."
                ),
                io.Conditioning.Input("negative", tooltip="What guidance leads away from: usually the empty prompt."),
                io.Vae.Input("vae", tooltip="Decodes the pictures: distances are between pictures, not latents."),
                io.Latent.Input(
                    "latent_image", tooltip="An empty latent of the pictures' size; what is in it does not matter."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="The noises between which is walked, the same for both models.",
                ),
                io.Int.Input(
                    "steps", default=50, min=1, max=1000, tooltip="DDIM steps of each picture; the paper's 50."
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Classifier-free guidance: the paper's 7.5; 5 for the demo model.",
                ),
                io.Int.Input(
                    "frames", default=11, min=3, max=101, tooltip="Pictures on each walk, both ends included: 11."
                ),
                io.Int.Input(
                    "pairs",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Walks for each prompt, each between noises of its own.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=11,
                    min=1,
                    max=256,
                    tooltip="Pictures made at once: more is quicker and takes more memory.",
                ),
                io.Model.Input(
                    "model_b",
                    optional=True,
                    tooltip="A second model, to compare: the first one with a Smooth-LoRA, say.",
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="istd",
                    tooltip="The first model's: the standard deviation of the distances between neighbours (of values "
                    "in 0 to 1), a mean over all walks. Compare at one size only.",
                ),
                io.Float.Output(display_name="istd_b", tooltip="The second model's; -1 without one."),
                io.Image.Output(display_name="plot", tooltip="Each walk's distances from picture to picture."),
                io.Image.Output(
                    display_name="frames",
                    tooltip=f"The walks, a picture each: the first model's in the first row, the second one's below. "
                    f"At most {SHOWN}.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Any,
        negative: Any,
        vae: Any,
        latent_image: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        frames: int,
        pairs: int,
        batch_size: int,
        model_b: Any = None,
    ) -> io.NodeOutput:
        models = [model] if model_b is None else [model, model_b]
        prompts = [
            (_single("positive", [entry]), _single("negative", negative, [entry]))
            for entry in positive
            for _ in range(pairs)
        ]
        size = latent_image["samples"].shape[-2:]
        parts = -(-frames // batch_size)
        bar = host().progress(len(models) * len(prompts) * parts * steps)
        measured = []
        with torch.no_grad():
            for number, each in enumerate(models):
                walker = _Walker(each, vae, steps, cfg, batch_size)
                report = _share(bar, number * len(prompts) * parts * steps, len(models) * len(prompts) * parts * steps)
                measured.append(_measured(walker, prompts, size, seed, frames, report))
        figures = [float(smoothness.istd(each.distances).mean()) for each in measured]
        strips = torch.cat([each.strips for each in measured], 1)
        return io.NodeOutput(*figures, *[NOT_MEASURED] * (2 - len(models)), _plot(measured, figures), strips)


_Prompt = tuple[Condition, Condition]


class _Walker(NamedTuple):
    """What draws the pictures of a walk."""

    native: Any
    vae: Any
    steps: int
    cfg: float
    batch: int

    def render(self, prompt: _Prompt, noises: Tensor, report: Callable[[int, Any], None]) -> Tensor:
        """Pictures [N, 3, H, W] in 0 .. 1. `report(step, preview)` counts network steps."""
        engine, codec = host().engine(self.native), host().codec(self.vae, self.native)
        times = ddim_timesteps(len(engine.schedule), self.steps)
        pictures = list[Tensor]()
        for number, part in enumerate(noises.split(self.batch)):
            x = ddim_sample(
                engine,
                part.to(engine.device),
                *prompt,
                w=self.cfg,
                timesteps=times,
                progress=lambda step, _total, _, done=number: report(done * self.steps + step, None),
            )
            pictures.append(((codec.decode(x.float()) + 1) / 2).clamp(0, 1).float().cpu())
            report((number + 1) * self.steps, torch.cat(list(torch.cat(pictures)), 2))
        return torch.cat(pictures)


class _Measured(NamedTuple):
    """Distances [walks, frames - 1], and the first walks as strips [walks, H, frames W, 3]."""

    distances: Tensor
    strips: Tensor


def _measured(
    walker: _Walker,
    prompts: list[_Prompt],
    size: torch.Size,
    seed: int,
    frames: int,
    report: Callable[[int, Any], None],
) -> _Measured:
    channels, strips = host().model(walker.native).latent_channels, list[Tensor]()
    each = -(-frames // walker.batch) * walker.steps

    def noise(walk: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed((seed + walk) % 2**64)
        start, end = torch.randn(2, channels, *size, generator=generator)
        return start, end

    def render(walk: int, noises: Tensor) -> Tensor:
        images = walker.render(prompts[walk], noises, lambda step, shown: report(walk * each + step, shown))
        if len(strips) < SHOWN:
            strips.append(torch.cat(list(images), 2).movedim(0, -1))
        return images

    distances = smoothness.measure(render, len(prompts), noise, frames=frames)
    return _Measured(distances, torch.stack(strips))


def _share(bar: Any, before: int, total: int) -> Callable[[int, Any], None]:
    return lambda step, shown: bar(before + step, total, shown)


def _plot(measured: list[_Measured], figures: list[float]) -> Tensor:
    series, names, colours = list[list[float]](), list[str](), list[int]()
    for number, (each, figure) in enumerate(zip(measured, figures, strict=True)):
        label = f"{'model' if number == 0 else 'model_b'}: ISTD {figure:.3f}"
        for walk, distances in enumerate(each.distances.tolist()):
            series.append(distances)
            names.append(label if walk == 0 else "")
            colours.append(number)
    return curves(
        series, names, "distance of each picture from the one before", "step of the walk", "L2", linear=True,
        colours=colours,
    )  # fmt: skip


def _single(name: str, native: Any, positive: Any = None) -> Condition:
    """One prompt's condition; the negative one where `positive` is given."""
    rows = native[0][0].shape[0] if len(native) == 1 else len(native)
    if rows != 1:
        raise ValueError(
            f"{name}: expected single prompts, got {rows} in one; connect a text encoder's, or several joined by "
            "Conditioning Combine for positive"
        )
    return host().condition(native) if positive is None else host().negative(native, positive)
