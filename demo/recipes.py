"""Recipes: small TOML files that say what to train and how. `run` reads one, checks it, and trains."""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.protocols import Progress, no_progress
from ..core.schedule import NoiseSchedule
from ..training import autoencoder as autoencoding
from ..training import diffusion, report, supervised
from ..training.checkpoint import CheckpointError
from ..training.loop import CHECKPOINT, Settings
from ..training.share import Draw
from . import architecture, classifier, conditions, data, drawn, layers, smoothing, sprites, transparency
from .distil import ConsistencyRecipe, train_recipe
from .runs import SHIPPED, finish, new_autoencoder, shipped, this_process, trained_autoencoder

FOLDER = Path(__file__).parent / "recipes"


class RecipeError(ValueError):
    """A recipe that cannot be run: the message names the file, the field and what was expected."""


@dataclass(frozen=True)
class AutoencoderRecipe(autoencoding.AutoencoderSettings):
    """`drawn_scenes` captions give the latents of the `drawn` rows, half of them with the Smooth-LoRA of the run
    `smooth`, or the shipped one."""

    factor: int = 8
    regulariser: str = "kl"
    scenes_seed: int = 1
    bare: float = 0.125
    start_from: str = ""
    drawn_scenes: int = 1024
    smooth: str = SHIPPED

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drawn and self.start_from != SHIPPED:
            raise ValueError(f"start_from: expected {SHIPPED!r} with drawn, whose latents the shipped model draws")
        if self.drawn_scenes < 1:
            raise ValueError(f"drawn_scenes: expected at least 1, got {self.drawn_scenes}")
        if self.decoder_only and not self.start_from:
            raise ValueError("decoder_only: expected start_from to name the run whose encoder is kept")
        architecture.autoencoder(self.factor, self.regulariser)  # pyright: ignore[reportArgumentType]
        _share("bare", self.bare)


@dataclass(frozen=True)
class DiffusionRecipe(diffusion.DiffusionSettings):
    autoencoder: str = "autoencoder"
    start_from: str = ""
    scenes: int = 16384
    scenes_seed: int = 1
    bare: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _share("bare", self.bare)
        if self.start_from not in ("", SHIPPED):
            raise ValueError(f"start_from: expected {SHIPPED!r} or nothing, got {self.start_from!r}")
        if self.scenes < 1:
            raise ValueError(f"scenes: expected at least 1, got {self.scenes}")


@dataclass(frozen=True)
class ClassifierRecipe(Settings):
    scenes_seed: int = 900
    bare: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _share("bare", self.bare)


Recipe = (
    AutoencoderRecipe
    | DiffusionRecipe
    | ClassifierRecipe
    | ConsistencyRecipe
    | smoothing.SmoothRecipe
    | transparency.TransparencyRecipe
    | layers.LayerRecipe
    | conditions.ConcatRecipe
)
KINDS: dict[str, type[Recipe]] = {
    "autoencoder": AutoencoderRecipe,
    "diffusion": DiffusionRecipe,
    "classifier": ClassifierRecipe,
    "consistency": ConsistencyRecipe,
    "smooth": smoothing.SmoothRecipe,
    "transparency": transparency.TransparencyRecipe,
    "layers": layers.LayerRecipe,
    "concat": conditions.ConcatRecipe,
}


def run(
    recipe: str | os.PathLike[str],
    *,
    progress: Progress = no_progress,
    resume: bool | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Train what a recipe says: a file, or the name of one in `demo/recipes/`.

    The run lives in `folder`, `runs/NAME` by default: checkpoint, result.safetensors (the averaged weights), loss
    curve and samples. `resume` None goes on where a checkpoint is and starts where none is; True requires one, False
    forbids it. Returns the figures of the run. RecipeError and CheckpointError come before any work.
    """
    path = find(recipe)
    settings = load(path)
    folder = Path(folder) if folder is not None else Path("runs", path.stem)
    if resume is None:
        resume = Path(folder, CHECKPOINT).exists()
    elif resume and not Path(folder, CHECKPOINT).exists():
        raise CheckpointError(f"{folder}: no checkpoint to resume; run the recipe without resuming")
    start = time.perf_counter()
    figures = _TRAINERS[type(settings)](settings, folder, progress, resume)
    return {"folder": str(folder), "steps": settings.steps, "seconds": time.perf_counter() - start, **figures}


def find(recipe: str | os.PathLike[str]) -> Path:
    """The file of a recipe. RecipeError offers the nearest name."""
    path = Path(recipe)
    if path.suffix == ".toml" and path.is_file():
        return path
    own = FOLDER / f"{path.name}.toml"
    if own.is_file():
        return own
    names = sorted(p.stem for p in FOLDER.glob("*.toml"))
    raise RecipeError(f"there is no recipe {str(recipe)!r}.{_nearest(path.stem, names)} There are: {', '.join(names)}.")


def load(path: str | os.PathLike[str]) -> Recipe:
    """Read and check a recipe. RecipeError for an unknown field or an impossible value."""
    values = _toml(Path(path))
    kind = values.pop("kind", None)
    if kind not in KINDS:
        raise RecipeError(f"{path}: kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    known = {f.name: f.default for f in fields(KINDS[kind])}
    for name, value in values.items():
        if name not in known:
            raise RecipeError(
                f"{path}: there is no field {name!r} in a recipe of kind {kind!r}.{_nearest(name, known)}"
            )
        expected: Any = type(known[name])
        if expected is float and type(value) is int:
            values[name] = float(value)
        elif type(value) is not expected:
            raise RecipeError(f"{path}: {name}: expected {expected.__name__}, got {value!r}")
    try:
        return KINDS[kind](**values)
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from error


def _train_autoencoder(r: AutoencoderRecipe, folder: Path, progress: Progress, resume: bool) -> dict[str, Any]:
    if r.start_from:
        vae, kept_scale = trained_autoencoder(folder.parent / r.start_from)
        vae.train().requires_grad_(True)
    else:
        vae, kept_scale = new_autoencoder(r.factor, r.regulariser, r.seed), 0.0
    images = data.pictures(r.scenes_seed, r.bare)
    rows = drawn.drawn(vae, r, folder / "drawn", progress) if r.drawn else None
    done = autoencoding.train(vae, images, r, folder, drawn=rows, progress=progress, resume=resume)
    best = done.modules["vae"].eval()
    seen = torch.cat([images(n, 16) for n in range(0, 128, 16)])

    def encoded() -> torch.Tensor:
        return torch.cat([autoencoding.encode_mean(best, part) for part in seen.split(16)])

    if r.regulariser == "kl" and not r.decoder_only:
        autoencoding.standardise(best, encoded())
    latents = encoded()
    with torch.no_grad():
        out = best.decode(latents[:16]).sample  # pyright: ignore[reportCallIssue]
    scale = kept_scale if r.decoder_only else autoencoding.scaling_factor(latents)
    note = {"scaling_factor": scale, "factor": r.factor, "regulariser": r.regulariser, "steps": done.steps}
    finish(folder, done, best, note)
    report.save_picture(report.sheet((torch.cat([seen[:16], out.cpu()]) + 1) / 2, 8), folder / "samples.png")
    return {"scaling_factor": scale}


def _train_diffusion(r: DiffusionRecipe, folder: Path, progress: Progress, resume: bool) -> dict[str, Any]:
    vae, scale = trained_autoencoder(folder.parent / r.autoencoder)
    modules = shipped()[0] if r.start_from else architecture.new_modules(r.seed)
    for name in ("unet", "text_encoder"):
        modules[name].train().requires_grad_(True)
    share = this_process()
    scenes = {"seed": r.scenes_seed, "count": r.scenes, "bare": r.bare}
    data.encode_blocks(vae, folder / "latents", **scenes, process=share[:2], progress=progress)
    share[2]()
    latents, ids = data.read_blocks(folder / "latents", **scenes)
    done = diffusion.train(
        modules["unet"],
        modules["text_encoder"],
        data.shuffled(latents, ids, scale, r.seed),
        architecture.tokenize([""])[0],
        NoiseSchedule.scaled_linear(),
        r,
        folder,
        progress=progress,
        resume=resume,
        recipe={"scaling_factor": scale},
    )
    finish(folder, done, nn.ModuleDict(done.modules), {"scaling_factor": scale, "steps": done.steps})
    return {"loss": done.history["loss"][-1]}


def _train_classifier(r: ClassifierRecipe, folder: Path, progress: Progress, resume: bool) -> dict[str, Any]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(r.seed)
        network = classifier.Classifier()

    rank, of, _ = this_process()

    def loss(model: nn.Module, first: int, count: int, draw: Draw) -> torch.Tensor:
        indices = torch.arange(first, first + count)
        scenes = sprites.draw(r.scenes_seed, indices)
        bare = data.is_bare(r.scenes_seed, indices, r.bare)
        image = torch.where(bare[:, None, None, None], scenes.background, scenes.blend)
        image = classifier.blur_and_noise(image, draw).contiguous(memory_format=torch.channels_last)
        device = next(model.parameters()).device
        everywhere = torch.arange(first - rank * count, first + (of - rank) * count)
        coloured = int((~data.is_bare(r.scenes_seed, everywhere, r.bare)).sum()) / of
        kind, colour, place = (t.to(device) for t in classifier.targets(scenes, bare))
        return classifier.loss(model(image.to(device)), kind, colour, place, coloured)

    done = supervised.train(network, loss, r, folder, progress=progress, resume=resume)
    finish(folder, done, done.modules["network"], {"steps": done.steps})
    return {"loss": done.history["loss"][-1]}


_TRAINERS: dict[type, Callable[..., dict[str, Any]]] = {
    AutoencoderRecipe: _train_autoencoder,
    DiffusionRecipe: _train_diffusion,
    ClassifierRecipe: _train_classifier,
    ConsistencyRecipe: train_recipe,
    smoothing.SmoothRecipe: smoothing.train_recipe,
    transparency.TransparencyRecipe: transparency.train_recipe,
    layers.LayerRecipe: layers.train_recipe,
    conditions.ConcatRecipe: conditions.train_recipe,
}


def _toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not TOML: {error}") from error


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected 0 .. 1, got {value}")
