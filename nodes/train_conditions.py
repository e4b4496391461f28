"""Teaching a model a condition that lies on the picture: the training of maps and of enlarging, in the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.enlarge import bicubic, given_of
from ..core.layer_patch import FIRST, LayerPatch
from ..core.palette import classes_from, classes_of, colours_of, painted
from ..core.protocols import Condition, LatentCodec, LatentModel
from ..core.spatial import class_cells
from ..core.spatial_file import KINDS, SpatialPatch
from ..hosts import host
from ..training import concat, report
from ..training.checkpoint import fingerprint
from ..training.concat import ConcatSettings, ToldLayers, train, write_told
from ..training.degrade import NUMBERS, damaged
from ..training.examples import shuffled_rows
from . import _training as inputs
from ._api import io, schema
from ._live import Curves
from .conditions import FACTOR, told_model

SCALE = 4
CLASSES = """sky=66bbff
ground=55aa33
thing=ff3300"""


class VelaturaTrainSpatial(io.ComfyNode):
    """A map, or a small picture, beside the noise (Latent Diffusion, section 3.3), as a file for our own nodes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaTrainSpatial",
            display_name="Train Spatial Condition (Velatura)",
            category="Velatura/training",
            description="Teaches a model to follow painted maps, or to enlarge pictures four times, from pictures of "
            "yours. The file is for Semantic Map and Paint Map, or for Super-Resolution.",
            search_aliases=["segmentation training", "layout to image", "upscaler training", "train lora", "ldm"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to teach. It stays as it is."),
                io.Vae.Input("vae", tooltip="Its autoencoder."),
                io.Image.Input(
                    "images",
                    tooltip="Pictures to learn on, as a batch of one size with sides in multiples of 8: some dozens or "
                    "more.",
                ),
                io.Conditioning.Input(
                    "positive",
                    tooltip="Their prompts: one for all, or several by Conditioning Combine, each for an equal share "
                    "of the pictures in order.",
                ),
                io.Combo.Input(
                    "told",
                    options=list(KINDS),
                    tooltip="What the model will be told. classes: a painted map. small picture: one of a quarter of "
                    "the side, to be enlarged.",
                ),
                io.String.Input(
                    "classes",
                    default=CLASSES,
                    multiline=True,
                    tooltip="For maps: a line NAME=RRGGBB for each class, its colour in given. The file remembers "
                    "them.",
                ),
                inputs.steps(1000),
                inputs.batch(),
                inputs.learning_rate(1e-4),
                inputs.rank(24, "24 does for the demo model; larger ones take more."),
                io.Float.Input(
                    "prompt_dropout",
                    default=0.3,
                    min=0.0,
                    max=0.95,
                    step=0.05,
                    tooltip="The share of samples that are trained without their prompts, where negative is connected: "
                    "more of it, and what is given counts more beside the prompt.",
                ),
                inputs.low_memory(),
                inputs.seed(),
                inputs.name("my-condition"),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The empty prompt, for prompt_dropout. Without it every sample keeps its prompt.",
                ),
                io.Image.Input(
                    "given",
                    optional=True,
                    tooltip="What the model is told of each picture, in their order. For classes: the painted maps, "
                    "of the pictures' size. For a small picture: pictures of a quarter of the side; without any they "
                    "are made, with blur, noise and JPEG.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="file", tooltip="The new file's name in the folder of LoRAs."),
                io.Image.Output(display_name="given", tooltip="What the model was told of each picture."),
                io.Image.Output(display_name="loss", tooltip="The loss over the steps."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, vae: Any, images: Tensor, positive: Any, told: str, classes: str, steps: int, batch: int,
        learning_rate: float, rank: int, prompt_dropout: float, low_memory: bool, seed: int, name: str,
        negative: Any = None, given: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        inputs.needed("accelerate", "matplotlib")
        inputs.places(name)
        settings = ConcatSettings(
            steps=steps, batch=batch, rate=learning_rate, seed=seed, weight_decay=1e-4, ema=0.99, warmup=10,
            min_snr=5.0, prompt_dropout=0.0 if negative is None else prompt_dropout,
            save_every=max(25, steps // 20), precision=inputs.precision(model),
        )  # fmt: skip
        with torch.inference_mode(False):
            pictures, codec = _pictures(images, "images"), host().codec(vae, model)
            _check_sides(pictures, codec.factor)
            lesson = (
                _of_maps(pictures, given, classes) if told == "classes" else _of_small(pictures, given, seed, codec)
            )
            latents = {"samples": codec.unscale(_encoded(codec, pictures))}
        with inputs.prepared(model, latents, positive, negative, seed, name) as run:
            layers, curves = _layers(model, run.model, lesson, rank, seed), Curves("step", mean=inputs.MEAN)
            done = train(
                run.model, layers, _examples(run, lesson, seed), run.null, settings, run.folder,
                progress=host().progress(steps), resume=run.resume, watch=curves.add, low_memory=low_memory,
                recipe={"rank": rank, "classes": lesson.about.classes, "given": lesson.data, **run.recipe},
                sample=lambda _, losses: report.loss_picture(losses),
            )  # fmt: skip
            best: Any = done.modules["layers"]
            write_told(run.path, best, lesson.about)
            pictured = (lesson.shown, report.loss_picture(done.history)[None])
            return io.NodeOutput(run.path.name, *(each.movedim(1, -1) for each in pictured), ui=curves.shown())


class Lesson(NamedTuple):
    """What is told of the pictures. `shown` [N, 3, h, w] are what people see of it; `tell(rows)` [B, C', h, w] is what
    the model gets; `about` is what the file says, and `data` a name for all this."""

    shown: Tensor
    tell: Callable[[Tensor], Tensor]
    about: SpatialPatch
    data: str


def _pictures(images: Tensor, name: str) -> Tensor:
    """An IMAGE as [N, 3, H, W]. ValueError if it holds what is no number."""
    if not bool(images.isfinite().all()):
        raise ValueError(f"{name}: there are NaN or infinite values in it; look at what made it")
    return images[..., :3].float().cpu().clone().movedim(-1, 1).clamp(0, 1)


def _size(pictures: Tensor) -> str:
    return f"{pictures.shape[3]}x{pictures.shape[2]}"


def _check_sides(pictures: Tensor, factor: int) -> None:
    if factor != FACTOR:
        raise ValueError(f"vae: expected one that makes latents of an eighth of the side, got a {factor}th")
    if any(side % FACTOR for side in pictures.shape[2:]):
        raise ValueError(
            f"images: expected sides in multiples of {FACTOR}, got {_size(pictures)}; crop or scale them (and given)"
        )


def _given(pictures: Tensor, given: Tensor, part: int) -> Tensor:
    """What is given, of as many rows as the pictures and their sides divided by `part`."""
    told = _pictures(given, "given")
    if len(told) != len(pictures):
        raise ValueError(f"given: expected {len(pictures)}, one for each of the images, got {len(told)}")
    wanted = tuple(side // part for side in pictures.shape[2:])
    if told.shape[2:] != wanted:
        what = "the images' size" if part == 1 else "a quarter of the images' sides"
        raise ValueError(f"given: expected {wanted[1]}x{wanted[0]}, {what}, got {_size(told)}; scale them alike")
    return told


def _of_maps(pictures: Tensor, given: Tensor | None, classes: str) -> Lesson:
    if given is None:
        raise ValueError("given: expected the painted maps, one for each of the images; connect them")
    named = classes_from(classes)
    colours = colours_of(list(named.values()))
    maps = [
        classes_of(each, colours, list(named), name=f"given: picture {n}")
        for n, each in enumerate(_given(pictures, given, 1).split(1), 1)
    ]
    numbers = torch.cat(maps)
    about = SpatialPatch(LayerPatch(), "classes", named, min(pictures.shape[2:]))
    tell = lambda rows: class_cells(numbers[rows], len(named), FACTOR)  # noqa: E731
    return Lesson(painted(numbers, colours), tell, about, fingerprint([numbers]))


def _of_small(pictures: Tensor, given: Tensor | None, seed: int, codec: LatentCodec) -> Lesson:
    small = _smaller(pictures, seed) if given is None else _given(pictures, given, SCALE)
    near = _encoded(codec, bicubic(small, SCALE))
    about = SpatialPatch(LayerPatch(), "small picture", size=min(pictures.shape[2:]), scale=SCALE)
    tell = lambda rows: given_of(small[rows], near[rows])  # noqa: E731
    return Lesson(small, tell, about, fingerprint([small]))


def _smaller(pictures: Tensor, seed: int) -> Tensor:
    """Each picture at a quarter of its sides, with its own damage."""
    u = torch.rand(len(pictures), NUMBERS, generator=torch.Generator().manual_seed(seed))
    rows = zip(pictures.split(1), u, strict=True)
    return torch.cat([damaged(each, numbers, SCALE, seed + n) for n, (each, numbers) in enumerate(rows)])


def _encoded(codec: LatentCodec, pictures: Tensor) -> Tensor:
    """Scaled latents, one picture after the other, so that cancelling is heard."""
    report, rows = host().progress(len(pictures)), []
    for number, picture in enumerate(pictures.split(1), 1):
        rows.append(codec.encode(picture * 2 - 1).float().cpu())
        report(number, len(pictures), None)
    return torch.cat(rows)


def _layers(native: Any, model: LatentModel, lesson: Lesson, rank: int, seed: int) -> ToldLayers:
    """What is trained. ValueError if the host could not put its file on this MODEL, as on one that is told something
    already."""
    tell = lesson.tell(torch.tensor([0]))
    made = ToldLayers(model.layers(), tell.shape[1], rank, seed=seed)
    told_model(native, replace(lesson.about, patch=LayerPatch({}, {FIRST: made.diff()})), 1.0, tell, 0, 0)
    return made


def _examples(run: inputs.Run, lesson: Lesson, seed: int) -> concat.Examples:
    """The run's examples with what is given; both draw the same rows."""
    rows = shuffled_rows(len(lesson.shown), seed)

    def examples(first: int, count: int) -> tuple[Tensor, Condition, Tensor]:
        latents, condition = run.examples(first, count)
        return latents, condition, lesson.tell(rows(first, count))

    return examples
