"""What inversions are for: the picture again, edited by a prompt, or on its way to a second one. And their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.interpolation import eased
from ..core.inversion import Inversion, check_same_model
from ..core.inversion_file import from_tensors, to_tensors
from ..core.protocols import LatentModel
from ..core.reconstruct import between, reconstruct
from ..hosts import host
from ..hosts.files import whole_file
from ._api import io, schema
from ._shown import comparison, film
from .inversion import InversionType, preview_of, vae_for_previews

FOLDER = "inversions"
"""Where inversions are kept, below the output folder."""


def _inversion() -> io.Input:
    return InversionType.Input("inversion", tooltip="From Invert or Load Inversion, made with this very model.")


def _model() -> io.Input:
    return io.Model.Input("model", tooltip="The model that the inversion was made with, with the same LoRAs.")


def _engine(model: Any, inversion: Inversion) -> LatentModel:
    engine = host().engine(model)
    with torch.no_grad():
        check_same_model(engine, inversion)
    return engine


def _beside(vae: Any, model: Any, inversion: Inversion, x: Tensor) -> dict[str, Any] | None:
    """What was inverted and the latents made of it, for the node to show, where there is a VAE to decode them."""
    if vae is None:
        return None
    codec = host().codec(vae, model)
    with torch.no_grad():
        before, after = (codec.decode(each.to(x).float()).movedim(1, -1) for each in (inversion.x_0, x))
    return comparison((before + 1) / 2, (after + 1) / 2, ("before", "after"))


class VelaturaReconstruct(io.ComfyNode):
    """The picture again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaReconstruct",
            display_name="Reconstruct (Velatura)",
            category="Velatura/inversion",
            description="Makes the inverted picture again: what an edit or a morph starts from.",
            search_aliases=["inversion", "null text", "resample"],
            inputs=[_model(), _inversion(), vae_for_previews()],
            outputs=[io.Latent.Output(tooltip="The picture's latent, to be decoded.")],
        )

    @classmethod
    def execute(cls, model: Any, inversion: Inversion, vae: Any = None) -> io.NodeOutput:
        engine = _engine(model, inversion)
        progress = host().progress(len(inversion.timesteps))
        with torch.no_grad():
            x = reconstruct(engine, inversion, progress=progress, preview=preview_of(vae, model))
        return io.NodeOutput({"samples": engine.unscale(x).cpu()}, ui=_beside(vae, model, inversion, x))


class VelaturaPromptSwitchEdit(io.ComfyNode):
    """The picture by another prompt from some step on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaPromptSwitchEdit",
            display_name="Prompt-Switch Edit (Velatura)",
            category="Velatura/inversion",
            description="Edits an inverted picture by changing its prompt: the picture's own prompt lays it out, "
            "the new one finishes it. The ratio can be tried out without inverting again.",
            search_aliases=["edit by prompt", "prompt to prompt", "image editing", "null text"],
            inputs=[
                _model(),
                _inversion(),
                io.Conditioning.Input("target", tooltip="The prompt of the edited picture: the source's, with a word "
                                      "changed."),
                io.Float.Input(
                    "ratio",
                    default=0.8,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.001,
                    display_mode=io.NumberDisplay.slider,
                    tooltip="The target leads this last part of the sampling: 0 changes nothing, 1 changes most and "
                    "keeps least. 0.6 to 0.9 is usual.",
                ),
                vae_for_previews(),
            ],
            outputs=[io.Latent.Output(tooltip="The edited picture's latent, to be decoded.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, model: Any, inversion: Inversion, target: Any, ratio: float, vae: Any = None) -> io.NodeOutput:
        engine = _engine(model, inversion)
        wanted = host().condition(target)
        if wanted.embedding.shape[-1] != inversion.condition.embedding.shape[-1]:
            raise ValueError("target: it comes from another text encoder than the inversion's prompt; use that one")
        progress = host().progress(len(inversion.timesteps))
        with torch.no_grad():
            x = reconstruct(
                engine, inversion, target=wanted, ratio=ratio, progress=progress, preview=preview_of(vae, model)
            )
        return io.NodeOutput({"samples": engine.unscale(x).cpu()}, ui=_beside(vae, model, inversion, x))


class VelaturaMorph(io.ComfyNode):
    """One picture turning into another."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaMorph",
            display_name="Morph (Velatura)",
            category="Velatura/inversion",
            description="The frames from the first picture of an inverted pair to the second. Save Animated WEBP or "
            "PNG makes a film of them.",
            search_aliases=["image interpolation", "transition", "animation", "slerp", "diffmorpher"],
            inputs=[
                _model(),
                InversionType.Input("inversion", tooltip="From Invert Pair, made with this very model."),
                io.Vae.Input("vae", tooltip="Decodes the frames."),
                io.Int.Input("frames", default=16, min=2, max=1024, tooltip="How many frames, both ends included."),
                io.Combo.Input(
                    "easing",
                    options=["linear", "smooth"],
                    default="linear",
                    tooltip="linear moves at one speed; smooth starts and ends slowly.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=4,
                    min=1,
                    max=256,
                    tooltip="Frames made at once: more is quicker and takes more memory. The frames are the same.",
                ),
                io.Int.Input("strip", default=8, min=2, max=64, tooltip="How many of the frames the strip shows."),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="All frames, in order."),
                io.Image.Output(display_name="strip", tooltip="Some of the frames side by side, in one picture."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, inversion: Inversion, vae: Any, frames: int, easing: Any, batch_size: int, strip: int
    ) -> io.NodeOutput:
        engine, codec = _engine(model, inversion), host().codec(vae, model)
        steps = len(inversion.timesteps)
        parts = eased(frames, easing).split(batch_size)
        bar, pictures = host().progress(steps * len(parts)), []
        with torch.no_grad():
            for number, alpha in enumerate(parts):
                x = reconstruct(
                    engine,
                    between(inversion, alpha),
                    progress=lambda step, _, shown, done=number * steps: bar(done + step, steps * len(parts), shown),
                )
                pictures.append(((codec.decode(x.float()) + 1) / 2).clamp(0, 1).movedim(1, -1).float().cpu())
                bar((number + 1) * steps, steps * len(parts), pictures[-1][-1].movedim(-1, 0))
        whole = torch.cat(pictures)
        shown = torch.linspace(0, frames - 1, min(strip, frames)).round().long()
        return io.NodeOutput(whole, torch.cat(list(whole[shown]), 1)[None], ui=film(whole))


class VelaturaSaveInversion(io.ComfyNode):
    """An inversion to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaSaveInversion",
            display_name="Save Inversion (Velatura)",
            category="Velatura/inversion",
            description="Keeps an inversion in one safetensors file below the output folder, for Load Inversion: a "
            "picture is inverted once, and edited ever after.",
            search_aliases=["export inversion"],
            inputs=[
                InversionType.Input("inversion", tooltip="The inversion to keep."),
                io.String.Input(
                    "name",
                    default="inversion",
                    tooltip=f"The file is {FOLDER}/NAME.safetensors in the output folder, replacing one of that name.",
                ),
            ],
            outputs=[InversionType.Output(display_name="inversion", tooltip="The same inversion.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, inversion: Inversion, name: str) -> io.NodeOutput:
        from safetensors.torch import save

        clean = name.strip().removesuffix(".safetensors")
        if not clean or Path(clean).name != clean or clean.startswith("."):
            raise ValueError(f"name: expected a plain file name without folders, got {name!r}")
        tensors, metadata = to_tensors(inversion)
        with whole_file(_folder() / f"{clean}.safetensors") as stream:
            stream.write(save(tensors, metadata))
        return io.NodeOutput(inversion)


class VelaturaLoadInversion(io.ComfyNode):
    """An inversion from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaLoadInversion",
            display_name="Load Inversion (Velatura)",
            category="Velatura/inversion",
            description="Reads an inversion that Save Inversion kept. It works with the model it was made with.",
            search_aliases=["import inversion"],
            inputs=[
                io.Combo.Input("file", options=_files(), tooltip=f"A file in the folder {FOLDER} of the output folder.")
            ],
            outputs=[InversionType.Output(display_name="inversion", tooltip="The inversion.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str) -> Any:
        path = _folder() / file
        return path.stat().st_mtime_ns if path.is_file() else None

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        from safetensors import SafetensorError, safe_open

        path = _folder() / file
        if Path(file).name != file or not path.is_file():
            raise FileNotFoundError(f"file: there is no {file!r} in {_folder()}; choose another, or save one first")
        try:
            with safe_open(path, framework="pt") as stream:
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
                return io.NodeOutput(from_tensors(tensors, stream.metadata() or {}))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"file: {path} cannot be used: {error}") from error


def _folder() -> Path:
    return host().folder("output") / FOLDER


def _files() -> list[str]:
    folder = _folder()
    return sorted(each.name for each in folder.glob("*.safetensors")) if folder.is_dir() else []
