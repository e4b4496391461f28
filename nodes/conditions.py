"""Spatial conditions beside the noise: a painted map to a picture, and a small picture to a large one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.enlarge import bicubic, ddim_steps, given_of, levels, widened
from ..core.palette import TOLERANCE, classes_of, colours_of, painted
from ..core.spatial import class_cells
from ..core.spatial_file import SpatialPatch, Told, spatial_patch_from
from ..core.tiles import Tiles
from ..hosts import host
from ..hosts.weights import open_weights
from . import load
from ._api import io, schema

DEMO = {
    "classes": ("sprites-semantic (demo)", "sprites-semantic.safetensors"),
    "small picture": ("sprites-superres (demo)", "sprites-superres.safetensors"),
}
FACTOR = 8  # pixels a side in a cell of the latent, in all families that take such patches


def file_input(told: Told, tooltip: str) -> io.Input:
    """The picker of a patch that is told so: the demo's, or a file of the user's."""
    shown, name = DEMO[told]
    demo = [shown] if (load.DEMO_MODELS / name).exists() else []
    return io.Combo.Input(
        "file", options=[*demo, *(f"loras/{each}" for each in host().models("loras"))], tooltip=tooltip
    )


def _path(told: Told, file: str) -> Path:
    shown, name = DEMO[told]
    return load.DEMO_MODELS / name if file == shown else host().model_file(*file.split("/", 1))


def changed(told: Told, file: str) -> float:
    """When the file was last written, for a node's fingerprint."""
    path = _path(told, file)
    return path.stat().st_mtime if path.exists() else 0.0


def patch_of(told: Told, file: str) -> SpatialPatch:
    """The patch of a picked file. FileNotFoundError or ValueError say what is wrong with it."""
    path = _path(told, file)
    if not path.exists():
        raise FileNotFoundError(f"file: {path} is not there; install the pack again, or choose another file")
    try:
        with open_weights(path) as (tensors, header):
            patch = spatial_patch_from(dict(tensors), header)
    except ValueError as error:
        raise ValueError(f"file: {path}: {error}") from error
    if patch.told != told:
        raise ValueError(
            f"file: {path}: it is told {patch.told}, expected one that is told {told}; choose another file"
        )
    return patch


def _strength() -> io.Input:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=0.0,
        max=2.0,
        step=0.01,
        tooltip="How strongly the patch changes the model: 1 is what it was trained for.",
    )


def _tile() -> list[io.Input]:
    return [
        io.Int.Input(
            "tile",
            default=128,
            min=0,
            max=4096,
            step=8,
            tooltip="Pixels a side of the tiles in which larger pictures are computed: what the patch was trained on. "
            "0 computes the whole at once.",
        ),
        io.Int.Input(
            "overlap",
            default=64,
            min=0,
            max=4096,
            step=8,
            tooltip="Pixels that neighbouring tiles share at least. They are blended at every step, so they agree.",
        ),
    ]


def told_model(model: Any, patch: SpatialPatch, strength: float, given: Tensor, tile: int, overlap: int) -> Any:
    """MODEL with the patch, which is told what is `given`; in tiles, if there are any."""
    if tile:
        model = host().with_tiles(model, Tiles(tile // FACTOR, overlap // FACTOR))
    engine = host().model(model)
    channels = engine.latent_channels
    if given.shape[1] + channels != patch.channels():
        raise ValueError(
            f"file: it reads {patch.channels() - channels} channels beside a latent of {channels}, expected "
            f"{given.shape[1]}; its header is not that of its weights"
        )
    # A host takes what is given as latents from a wire: unscaled.
    raw = torch.cat([engine.unscale(part) for part in given.split(channels, 1)], 1)
    return host().with_layer_patch(model, patch.patch, strength, 0.0, 1.0, raw)


class VelaturaSemanticMap(io.ComfyNode):
    """A painted map on a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaSemanticMap",
            display_name="Semantic Map (Velatura)",
            category="Velatura/conditions",
            description="Makes a model draw what a painted map says where: each class has its colour. Works in "
            "KSampler and every other sampler, beside the prompt. The original stays as it is.",
            search_aliases=["segmentation map", "paint with words", "class map", "spade", "layout to image"],
            inputs=[
                io.Model.Input("model", tooltip="The model that the patch was trained on: the demo model."),
                io.Image.Input(
                    "map",
                    tooltip="The map, in the classes' colours (see help), painted with a hard brush. Its sides are the "
                    "picture's, multiples of 8.",
                ),
                file_input("classes", "What was taught to follow a map: the demo's, or a file in models/loras."),
                _strength(),
                *_tile(),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=4096, tooltip="How many pictures the latent has, for each map."
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model that follows the map, for any sampler."),
                io.Latent.Output(tooltip="An empty latent of the map's size, for the sampler."),
                io.Image.Output(
                    display_name="map", tooltip="The map as it was read, each pixel in its class's colour."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> float:
        return changed("classes", file)

    @classmethod
    @torch.no_grad()
    def execute(
        cls, model: Any, map: Tensor, file: str, strength: float, tile: int, overlap: int, batch_size: int
    ) -> io.NodeOutput:
        with torch.inference_mode(False):
            patch = patch_of("classes", file)
            colours = colours_of(list(patch.classes.values()))
            picture = map[..., :3].float().cpu().clone().movedim(-1, 1)
            classes = classes_of(picture, colours, list(patch.classes), TOLERANCE)
            given = class_cells(classes, len(colours), FACTOR).repeat_interleave(batch_size, 0)
            made = told_model(model, patch, strength, given, tile, overlap)
            latent = given.new_zeros(len(given), host().model(model).latent_channels, *given.shape[2:])
        return io.NodeOutput(made, {"samples": latent}, painted(classes, colours).movedim(1, -1))


class VelaturaSuperResolutionModel(io.ComfyNode):
    """A model that enlarges a picture, for stock samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaSuperResolutionModel",
            display_name="Super-Resolution Model (Velatura)",
            category="Velatura/conditions",
            description="Makes a model draw a small picture larger, in KSampler or another sampler of the host. "
            "Super-Resolution does the whole in one node.",
            search_aliases=["upscale model", "ldm super resolution"],
            inputs=[
                *_enlarged(),
                file_input("small picture", "What was taught to enlarge: the demo's, or a file in models/loras."),
                _strength(),
                *_tile(),
            ],
            outputs=[
                io.Model.Output(tooltip="The model that draws the picture larger, for any sampler."),
                io.Latent.Output(
                    tooltip="The latent of the picture enlarged the classic way: at denoise 1 it gives the size, at "
                    "less it is where to start."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> float:
        return changed("small picture", file)

    @classmethod
    @torch.no_grad()
    def execute(
        cls, model: Any, vae: Any, image: Tensor, file: str, strength: float, tile: int, overlap: int
    ) -> io.NodeOutput:
        with torch.inference_mode(False):
            patch = patch_of("small picture", file)
            return io.NodeOutput(*_enlarging(model, vae, image, patch, strength, tile, overlap))


def _enlarged() -> list[io.Input]:
    return [
        io.Model.Input("model", tooltip="The model that the patch was trained on: the demo model."),
        io.Vae.Input("vae", tooltip="Its autoencoder."),
        io.Image.Input("image", tooltip="The small picture, of any size; a batch is enlarged one beside the other."),
    ]


def _enlarging(
    model: Any, vae: Any, image: Tensor, patch: SpatialPatch, strength: float, tile: int, overlap: int
) -> tuple[Any, dict[str, Any]]:
    """MODEL that is told the small picture, and the LATENT to start from. Rows and columns that complete its cells are
    added at the end."""
    small = widened(image[..., :3].float().cpu().clone().movedim(-1, 1), patch.size // patch.scale)
    codec = host().codec(vae, model)
    latent = codec.encode(bicubic(small, patch.scale) * 2 - 1).float().cpu()
    made = told_model(model, patch, strength, given_of(small, latent), tile, overlap)
    return made, {"samples": codec.unscale(latent)}


class VelaturaSuperResolution(io.ComfyNode):
    """A small picture, enlarged."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaSuperResolution",
            display_name="Super-Resolution (Velatura)",
            category="Velatura/conditions",
            description="Draws a picture four times as large: what blur, noise and JPEG took from it is drawn anew, in "
            "overlapping tiles that are joined at every step.",
            search_aliases=["upscale", "enlarge", "4x", "ldm super resolution", "restore"],
            inputs=[
                *_enlarged(),
                io.Conditioning.Input("positive", tooltip="What the picture shows; an empty prompt will do."),
                file_input("small picture", "What was taught to enlarge: the demo's, or a file in models/loras."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="The noise: the same seed, the same picture.",
                ),
                io.Int.Input("steps", default=4, min=1, max=1000, tooltip="Denoising steps, by DDIM."),
                io.Float.Input(
                    "denoise",
                    default=0.5,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="1 draws all anew from noise; less starts from the picture enlarged the classic way and "
                    "keeps more of it.",
                ),
                _strength(),
                *_tile(),
            ],
            outputs=[io.Image.Output(tooltip="The large picture.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> float:
        return changed("small picture", file)

    @classmethod
    @torch.no_grad()
    def execute(
        cls, model: Any, vae: Any, image: Tensor, positive: Any, file: str, seed: int, steps: int, denoise: float,
        strength: float, tile: int, overlap: int,
    ) -> io.NodeOutput:  # fmt: skip
        with torch.inference_mode(False):
            patch = patch_of("small picture", file)
            sigmas = levels(host().model(model).schedule, steps, denoise)
            made, start = _enlarging(model, vae, image, patch, strength, tile, overlap)
            sampler = host().sampler("velatura_ddim", ddim_steps)
            done, _ = host().sample(made, sampler, sigmas, positive, None, 1.0, start, seed)
            codec = host().codec(vae, model)
            large = (codec.decode(codec.scale(done["samples"])).float().cpu() + 1) / 2
        height, width = (patch.scale * side for side in image.shape[1:3])
        return io.NodeOutput(large[..., :height, :width].movedim(1, -1))
