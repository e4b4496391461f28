"""Making few-step models: latent consistency distillation and fine-tuning of the user's own."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.lcm_file import read_lcm
from ..core.protocols import Condition, LatentModel
from ..core.solvers import SOLVERS
from ..hosts import host
from ..hosts.weights import open_weights
from ..training import report
from ..training.adapters import LowRankLayers
from ..training.checkpoint import CheckpointError, fingerprint
from ..training.consistency import ConsistencySettings, train
from ..training.examples import Examples, from_rows, join, take
from ..training.loop import CHECKPOINT
from ..training.students import GuidanceInput, Student, write_student
from ._api import io, schema

PROMPTS = (
    "Their prompts: one for all, or several by Conditioning Combine, each for an equal share of the latents in order."
)


def _common(steps: int, rate: float) -> list[Any]:
    """The inputs that both nodes have after their wires, but for what only one of them needs."""
    return [
        io.Int.Input(
            "steps",
            default=steps,
            min=1,
            max=1_000_000,
            tooltip="Training steps. More may be asked for later: the run then goes on from where it ended.",
        ),
        io.Int.Input("batch", default=8, min=1, max=512, tooltip="Latents in each step."),
        io.Float.Input(
            "learning_rate",
            default=rate,
            min=1e-7,
            max=0.1,
            step=1e-6,
            round=1e-7,
            tooltip="1e-3 suits the small demo model, 1e-4 Stable Diffusion.",
        ),
        io.Int.Input(
            "rank", default=16, min=1, max=512, tooltip="The LoRA's rank: 16 for the demo model, 64 for larger ones."
        ),
        io.Int.Input(
            "skip",
            default=20,
            min=1,
            max=500,
            tooltip="Timesteps between the two points that are made to agree: the papers' k, a divisor of the model's "
            "1000. The sampling node's original_steps is then 1000 / skip.",
        ),
    ]


def _loss() -> io.Input:
    return io.Combo.Input(
        "loss", options=["huber", "l2"], default="huber", tooltip="How two predictions are compared; “huber” is robust."
    )


def _seed() -> io.Input:
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=2**31 - 1,
        control_after_generate=False,  # a new seed for each run would be a new training each time
        tooltip="All that is random in the training comes from it.",
    )


def _name(default: str) -> io.Input:
    return io.String.Input(
        "name",
        default=default,
        tooltip="The file, without its ending, in the folder of LoRAs. A cancelled run of this name goes on when it is "
        "queued again.",
    )


def _outputs() -> list[Any]:
    return [
        io.Model.Output(tooltip="The model with the new LoRA, for the LCM nodes and for any sampler with cfg 1."),
        io.String.Output(display_name="file", tooltip="The new file's name in the folder of LoRAs."),
        io.Image.Output(display_name="loss", tooltip="The loss over the steps."),
    ]


class VelaturaDistillLcm(io.ComfyNode):
    """Latent consistency distillation (Luo et al. 2023, Algorithm 1) as a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaDistillLcm",
            display_name="Distill LCM (Velatura)",
            category="Velatura/training",
            description="Makes a few-step model of any model: trains a LoRA so that four steps without guidance draw "
            "what it draws in fifty with it. Needs latents of pictures like those wanted, and their prompts.",
            search_aliases=["train lcm", "lcm lora", "distillation", "latent consistency", "turbo", "few steps"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to distil. It teaches, and stays as it is."),
                io.Latent.Input(
                    "latents", tooltip="Pictures to learn on, VAE-encoded, as a batch: some dozens or more."
                ),
                io.Conditioning.Input("positive", tooltip=PROMPTS),
                io.Conditioning.Input("negative", tooltip="What guidance leads away from: usually the empty prompt."),
                *_common(200, 1e-4),
                io.Combo.Input(
                    "solver",
                    options=list(SOLVERS),
                    default="ddim",
                    tooltip="The teacher's step. The second-order solvers cost twice as much, and allow a skip of 50.",
                ),
                io.Float.Input(
                    "omega_min",
                    default=4.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="The guidance that is distilled, as omega = cfg − 1. Equal to omega_max: an LCM-LoRA with "
                    "that guidance built in.",
                ),
                io.Float.Input(
                    "omega_max",
                    default=4.0,
                    min=0.0,
                    max=30.0,
                    step=0.1,
                    tooltip="Above omega_min: the model also learns a guidance embedding, and Apply LCM sets the "
                    "guidance later. It needs a longer training.",
                ),
                _loss(),
                _seed(),
                _name("my-lcm"),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        latents: dict[str, Any],
        positive: Any,
        negative: Any,
        steps: int,
        batch: int,
        learning_rate: float,
        rank: int,
        skip: int,
        solver: str,
        omega_min: float,
        omega_max: float,
        loss: str,
        seed: int,
        name: str,
    ) -> io.NodeOutput:
        settings = ConsistencySettings(
            **_of_run(steps, batch, learning_rate, skip, loss, seed, model),
            solver=solver,
            omega_min=omega_min,
            omega_max=omega_max,
        )
        return _trained(model, latents, positive, negative, settings, rank, name)


class VelaturaFinetuneLcm(io.ComfyNode):
    """Latent consistency fine-tuning (Luo et al. 2023, Algorithm 4) as a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaFinetuneLcm",
            display_name="Fine-tune LCM (Velatura)",
            category="Velatura/training",
            description="Teaches a few-step model your own pictures without making it a slow one first: trains a LoRA "
            "for it on their latents and prompts, with no teacher.",
            search_aliases=["train lcm", "lcf", "style lora", "latent consistency fine-tuning", "few steps"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="A few-step model: Apply LCM's, or Distill LCM's. It stays as it is."),
                io.Latent.Input("latents", tooltip="The pictures to learn, VAE-encoded, as a batch."),
                io.Conditioning.Input("positive", tooltip=PROMPTS),
                *_common(200, 1e-4),
                _loss(),
                _seed(),
                _name("my-lcm-style"),
            ],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        latents: dict[str, Any],
        positive: Any,
        steps: int,
        batch: int,
        learning_rate: float,
        rank: int,
        skip: int,
        loss: str,
        seed: int,
        name: str,
    ) -> io.NodeOutput:
        settings = ConsistencySettings(
            **_of_run(steps, batch, learning_rate, skip, loss, seed, model), method="finetune", omega_min=0, omega_max=0
        )
        return _trained(model, latents, positive, None, settings, rank, name)


def _of_run(steps: int, batch: int, rate: float, skip: int, loss: str, seed: int, model: Any) -> dict[str, Any]:
    """The settings that both trainings share. bfloat16 where the device is made for it."""
    cuda = host().model(model).device.type == "cuda" and torch.cuda.is_bf16_supported()
    return {
        "steps": steps,
        "batch": batch,
        "rate": rate,
        "skip": skip,
        "loss": loss,
        "weighting": "snr",
        "seed": seed,
        "mu": 0.5,
        "ema": 0.99,
        "warmup": 10,
        "save_every": max(25, steps // 20),
        "precision": "bf16" if cuda else "no",
    }


def _trained(
    native: Any,
    latents: dict[str, Any],
    positive: Any,
    negative: Any,
    settings: ConsistencySettings,
    rank: int,
    name: str,
) -> io.NodeOutput:
    """Train, save, and put the result on the model. All that can be wrong is found before the first step."""
    _needed("accelerate", "matplotlib")
    path, folder = _places(name)
    with torch.inference_mode(False):
        model = host().model(native)
        z_0 = _scaled(model, latents)
        examples = from_rows(z_0, _conditions(positive, len(z_0)), settings.seed)
        null = None if negative is None else _one("negative", negative)
        student = _student(model, settings, rank)
        recipe = {"rank": rank, "data": _fingerprint(z_0, examples, null), "network": _network(model, examples)}
        resume = (folder / CHECKPOINT).exists()
        if path.exists() and not resume:
            raise ValueError(f"name: there is another file {path} already; choose another name, or move it away")
        try:
            done = train(
                model,
                student,
                examples,
                null,
                settings,
                folder,
                progress=host().progress(settings.steps),
                resume=resume,
                recipe=recipe,
                sample=lambda _, losses: report.loss_picture(losses),
            )
        except CheckpointError as error:
            raise ValueError(f"name: {name!r} has a run that cannot go on; choose another name. {error}") from error
        best: Any = done.modules["student"]
        write_student(path, best, guidance=1 + (settings.omega_min + settings.omega_max) / 2)
        picture = report.loss_picture(done.history)
        return io.NodeOutput(_applied(native, path, settings), path.name, picture.movedim(0, -1)[None])


def _needed(*packages: str) -> None:
    missing = [each for each in packages if importlib.util.find_spec(each) is None]
    if missing:
        raise RuntimeError(
            f"Training needs {' and '.join(missing)}: pip install {' '.join(missing)}, then start again."
        )


def _places(name: str) -> tuple[Path, Path]:
    """The LoRA's file and the run's folder."""
    stem = name.strip().removesuffix(".safetensors")
    if not re.fullmatch(r"[\w][\w .+-]*", stem):
        raise ValueError(f"name: expected letters, digits, spaces, dots, - and _, got {name!r}")
    return host().folder("loras") / f"{stem}.safetensors", host().folder("output") / "velatura" / stem


def _scaled(model: LatentModel, latents: dict[str, Any]) -> Tensor:
    samples: Tensor = latents["samples"]
    if samples.ndim != 4 or samples.shape[1] != model.latent_channels:
        raise ValueError(
            f"latents: expected a batch [B, {model.latent_channels}, h, w] for this model, got {tuple(samples.shape)}"
        )
    return model.scale(samples.clone().float()).cpu()


def _conditions(native: Any, count: int) -> Condition:
    """A CONDITIONING's entries as rows: one for all latents, or each for an equal share of them in order."""
    entries = [host().condition([entry]) for entry in native]
    given = join(entries, [each.embedding.shape[0] for each in entries])
    prompts = given.embedding.shape[0]
    if count % prompts:
        raise ValueError(
            f"positive: expected one prompt, or one for each of {count} latents or for equal shares of them, got "
            f"{prompts} (Conditioning Combine adds one to others)"
        )
    return given if prompts == 1 else take(given, torch.arange(count) // (count // prompts))


def _one(name: str, native: Any) -> Condition:
    condition = host().condition(native)
    if condition.embedding.shape[0] != 1 or len(native) != 1:
        raise ValueError(f"{name}: expected one prompt, got {max(len(native), condition.embedding.shape[0])}")
    return condition


def _student(model: LatentModel, settings: ConsistencySettings, rank: int) -> Student:
    layers = model.layers()
    guided = settings.omega_min < settings.omega_max
    lora = LowRankLayers(layers, rank, seed=settings.seed)
    return Student(lora=lora, guidance=GuidanceInput(layers) if guided else None)


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


def _applied(native: Any, path: Path, settings: ConsistencySettings) -> Any:
    """The MODEL with what the file holds."""
    with open_weights(path) as (tensors, metadata):
        weights = read_lcm(tensors, metadata)
    if weights.deltas is not None:
        native, _ = host().with_lora(native, None, weights.deltas, 1.0, 0.0)
    if weights.projection is not None:
        native = host().with_guidance(native, weights.projection, (settings.omega_min + settings.omega_max) / 2)
    return native
