"""Making few-step models: latent consistency distillation and fine-tuning of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.lcm_file import read_lcm
from ..core.protocols import LatentModel
from ..core.solvers import SOLVERS
from ..hosts import host
from ..hosts.weights import open_weights
from ..training import report
from ..training.adapters import LowRankLayers
from ..training.consistency import ConsistencySettings, train
from ..training.students import GuidanceInput, Student, write_student
from . import _training as inputs
from ._api import io, schema
from ._live import Curves


def _common(steps: int, rate: float) -> list[Any]:
    """The inputs that both nodes have after their wires, but for what only one of them needs."""
    return [
        inputs.steps(steps),
        inputs.batch(),
        inputs.learning_rate(rate),
        inputs.rank(16, "16 for the demo model, 64 for larger ones."),
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
                io.Conditioning.Input("positive", tooltip=inputs.PROMPTS),
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
                inputs.seed(),
                inputs.name("my-lcm"),
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
                io.Conditioning.Input("positive", tooltip=inputs.PROMPTS),
                *_common(200, 1e-4),
                _loss(),
                inputs.seed(),
                inputs.name("my-lcm-style"),
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
    """The settings that both trainings share."""
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
        "precision": inputs.precision(model),
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
    """Train, save, and put the result on the model."""
    with inputs.prepared(native, latents, positive, negative, settings.seed, name, guided=negative is not None) as run:
        student, curves = _student(run.model, settings, rank), Curves("step", mean=inputs.MEAN)
        done = train(
            run.model,
            student,
            run.examples,
            run.null,
            settings,
            run.folder,
            progress=host().progress(settings.steps),
            resume=run.resume,
            recipe={"rank": rank, **run.recipe},
            sample=lambda _, losses: report.loss_picture(losses),
            watch=curves.add,
        )
        best: Any = done.modules["student"]
        write_student(run.path, best, guidance=1 + (settings.omega_min + settings.omega_max) / 2)
        picture = report.loss_picture(done.history)
        done_model = _applied(native, run.path, settings)
        return io.NodeOutput(done_model, run.path.name, picture.movedim(0, -1)[None], ui=curves.shown())


def _student(model: LatentModel, settings: ConsistencySettings, rank: int) -> Student:
    layers = model.layers()
    guided = settings.omega_min < settings.omega_max
    lora = LowRankLayers(layers, rank, seed=settings.seed)
    return Student(lora=lora, guidance=GuidanceInput(layers) if guided else None)


def _applied(native: Any, path: Path, settings: ConsistencySettings) -> Any:
    """The MODEL with what the file holds."""
    with open_weights(path) as (tensors, metadata):
        weights = read_lcm(tensors, metadata)
    if weights.deltas is not None:
        native, _ = host().with_lora(native, None, weights.deltas, 1.0, 0.0)
    if weights.projection is not None:
        native = host().with_guidance(native, weights.projection, (settings.omega_min + settings.omega_max) / 2)
    return native
