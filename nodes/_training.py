"""What the training nodes share: their inputs, and what they make of them before the first step."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.protocols import Condition, LatentModel
from ..hosts import host
from ..training.checkpoint import CheckpointError, fingerprint
from ..training.examples import Examples, from_rows, join, take
from ..training.loop import CHECKPOINT
from ._api import io

MEAN = 20
"""Steps of the running mean that is drawn over a loss."""
PROMPTS = (
    "Their prompts: one for all, or several by Conditioning Combine, each for an equal share of the latents in order."
)


def steps(default: int) -> io.Input:
    return io.Int.Input(
        "steps",
        default=default,
        min=1,
        max=1_000_000,
        tooltip="Training steps. More may be asked for later: the run then goes on from where it ended.",
    )


def batch() -> io.Input:
    return io.Int.Input("batch", default=8, min=1, max=512, tooltip="Latents in each step.")


def learning_rate(default: float) -> io.Input:
    return io.Float.Input(
        "learning_rate",
        default=default,
        min=1e-7,
        max=0.1,
        step=1e-6,
        round=1e-7,
        tooltip="1e-3 suits the small demo model, 1e-4 Stable Diffusion.",
    )


def rank(default: int, advice: str) -> io.Input:
    return io.Int.Input("rank", default=default, min=1, max=512, tooltip=f"The LoRA's rank: {advice}")


def seed() -> io.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=2**31 - 1,
        control_after_generate=False,  # a new seed for each run would be a new training each time
        tooltip="All that is random in the training comes from it.",
    )


def name(default: str) -> io.Input:
    return io.String.Input(
        "name",
        default=default,
        tooltip="The file, without its ending, in the folder of LoRAs. A cancelled run of this name goes on when it is "
        "queued again.",
    )


def low_memory() -> io.Input:
    return io.Boolean.Input(
        "low_memory",
        default=False,
        tooltip="Computes parts of the network again in place of keeping them (gradient checkpointing): the same "
        "training in less memory and more time.",
    )


def precision(native: Any) -> str:
    """bfloat16 where the MODEL's device is made for it."""
    cuda = host().model(native).device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bf16" if cuda else "no"


@dataclass(frozen=True)
class Run:
    """A training as the graph describes it. `path` is the new file, `folder` the run's; `recipe` tells the data and the
    network from others."""

    model: LatentModel
    examples: Examples
    null: Condition | None
    path: Path
    folder: Path
    resume: bool
    recipe: dict[str, Any]


@contextmanager
def prepared(
    native: Any, latents: dict[str, Any], positive: Any, negative: Any, seed: int, name: str, *, guided: bool = False
) -> Iterator[Run]:
    """All that a trainer needs, checked before its first step; autograd works inside. `negative` may be None; `guided`
    is a training of which the model's guidance is a part."""
    needed("accelerate", "matplotlib")
    path, folder = places(name)
    with torch.inference_mode(False):
        model = host().engine(native, guided=guided)
        z_0 = scaled(model, latents)
        examples = from_rows(z_0, conditions(positive, len(z_0)), seed)
        null = None if negative is None else _one("negative", negative)
        resume = (folder / CHECKPOINT).exists()
        if path.exists() and not resume:
            raise ValueError(f"name: there is another file {path} already; choose another name, or move it away")
        recipe = {"data": _fingerprint(z_0, examples, null), "network": _network(model, examples)}
        try:
            yield Run(model, examples, null, path, folder, resume, recipe)
        except CheckpointError as error:
            raise ValueError(f"name: {name!r} has a run that cannot go on; choose another name. {error}") from error


def needed(*packages: str) -> None:
    """RuntimeError names the packages that are missing."""
    missing = [each for each in packages if importlib.util.find_spec(each) is None]
    if missing:
        raise RuntimeError(
            f"Training needs {' and '.join(missing)}: pip install {' '.join(missing)}, then start again."
        )


def places(name: str, kind: str = "loras") -> tuple[Path, Path]:
    """The new file, in the folder of a kind of model, and the run's folder."""
    stem = name.strip().removesuffix(".safetensors")
    if not re.fullmatch(r"[\w][\w .+-]*", stem):
        raise ValueError(f"name: expected letters, digits, spaces, dots, - and _, got {name!r}")
    return host().folder(kind) / f"{stem}.safetensors", host().folder("output") / "velatura" / stem


def scaled(model: LatentModel, latents: dict[str, Any], name: str = "latents") -> Tensor:
    """A LATENT's samples, scaled, on the CPU. ValueError if they are another model's or not finite."""
    samples: Tensor = latents["samples"]
    if samples.ndim != 4 or samples.shape[1] != model.latent_channels:
        raise ValueError(
            f"{name}: expected a batch [B, {model.latent_channels}, h, w] for this model, got {tuple(samples.shape)}"
        )
    if not bool(samples.isfinite().all()):
        raise ValueError(f"{name}: there are NaN or infinite values in it; look at what made it, often a VAE in fp16")
    return model.scale(samples.clone().float()).cpu()


def conditions(native: Any, count: int, name: str = "positive") -> Condition:
    """A CONDITIONING's entries as rows: one for all latents, or each for an equal share of them in order."""
    entries = [host().condition([entry]) for entry in native]
    given = join(entries, [each.embedding.shape[0] for each in entries])
    prompts = given.embedding.shape[0]
    if count % prompts:
        raise ValueError(
            f"{name}: expected one prompt, or one for each of {count} latents or for equal shares of them, got "
            f"{prompts} (Conditioning Combine adds one to others)"
        )
    return given if prompts == 1 else take(given, torch.arange(count) // (count // prompts))


def _one(name: str, native: Any) -> Condition:
    rows = native[0][0].shape[0] if len(native) == 1 else len(native)
    if rows != 1:
        raise ValueError(f"{name}: expected one prompt, got {rows}")
    return host().condition(native)


def _fingerprint(z_0: Tensor, examples: Examples, null: Condition | None) -> str:
    texts = [examples(0, len(z_0))[1].embedding, *([] if null is None else [null.embedding])]
    return fingerprint([z_0, *texts])


def _network(model: LatentModel, examples: Examples) -> str:
    """A name for the model's weights, LoRAs included: the host may put those in no sooner than at the first call."""
    z, condition = examples(0, 1)
    with model.differentiable(), torch.no_grad():
        model.predict_noise(z.to(model.device), torch.tensor([0]), condition)
    layers: Any = model.layers()
    return fingerprint(layers[name].weight for name in sorted(layers))
