"""Making a model smoother: the training of a Smooth-LoRA, in the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.lora import read_lora
from ..hosts import host
from ..hosts.weights import read_weights
from ..training import report
from ..training.adapters import LowRankLayers
from ..training.smooth import SmoothSettings, train
from ..training.students import Student, write_student
from . import _training as inputs
from ._api import io, schema
from ._live import Curves

PROMPT_DROPOUT = 0.1


class VelaturaTrainSmoothLora(io.ComfyNode):
    """Step-wise variation regularisation (Smooth Diffusion, Guo et al. 2023) as a LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaTrainSmoothLora",
            display_name="Train Smooth-LoRA (Velatura)",
            category="Velatura/training",
            description="Makes any model smoother: trains a LoRA after which equal steps in the noise are equal steps "
            "in the picture. Walks and morphs flicker less. Needs latents of pictures like those wanted, and their "
            "prompts.",
            search_aliases=["smooth diffusion", "smooth latent space", "train lora", "interpolation", "flicker"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to make smoother. It stays as it is."),
                io.Latent.Input(
                    "latents", tooltip="Pictures to learn on, VAE-encoded, as a batch: some dozens or more."
                ),
                io.Conditioning.Input("positive", tooltip=inputs.PROMPTS),
                inputs.steps(300),
                inputs.batch(),
                inputs.learning_rate(1e-4),
                inputs.rank(8, "8 is the paper's; more changes little."),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    round=0.001,
                    tooltip="How much smoothness counts beside drawing as before, the paper's λ. 10 is smoother and "
                    "draws worse.",
                ),
                io.Int.Input(
                    "accumulate",
                    default=1,
                    min=1,
                    max=512,
                    tooltip="Batches that make one step: a larger batch in the memory of a small one.",
                ),
                io.Boolean.Input(
                    "low_memory",
                    default=False,
                    tooltip="Computes parts of the network again in place of keeping them (gradient checkpointing): "
                    "the same training in less than half the memory, in about twice the time.",
                ),
                inputs.seed(),
                inputs.name("my-smooth"),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The empty prompt. With it, a tenth of the samples are trained without their prompts, for "
                    "sampling with guidance (cfg).",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The smoother model."),
                io.String.Output(display_name="file", tooltip="The new file's name in the folder of LoRAs."),
                io.Image.Output(
                    display_name="loss",
                    tooltip="Over the steps: the usual loss, the regulariser, and the norm that it evens.",
                ),
            ],
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
        weight: float,
        accumulate: int,
        low_memory: bool,
        seed: int,
        name: str,
        negative: Any = None,
    ) -> io.NodeOutput:
        settings = SmoothSettings(
            steps=steps,
            batch=batch,
            rate=learning_rate,
            weight=weight,
            accumulate=accumulate,
            seed=seed,
            prompt_dropout=0.0 if negative is None else PROMPT_DROPOUT,
            weight_decay=1e-4,
            ema=0.99,
            warmup=10,
            save_every=max(25, steps // 20),
            precision=inputs.precision(model),
        )
        with inputs.prepared(model, latents, positive, negative, seed, name) as run:
            curves = Curves("step", mean=inputs.MEAN)
            lora = LowRankLayers(run.model.layers(), rank, which="attention", seed=seed)
            done = train(
                run.model,
                Student(lora=lora),
                run.examples,
                run.null,
                settings,
                run.folder,
                progress=host().progress(steps),
                resume=run.resume,
                recipe={"rank": rank, **run.recipe},
                sample=lambda _, losses: report.loss_picture(losses),
                watch=curves.add,
                low_memory=low_memory,
            )
            best: Any = done.modules["student"]
            write_student(run.path, best)
            picture = report.loss_picture(done.history)
            done_model = _applied(model, run.path)
            return io.NodeOutput(done_model, run.path.name, picture.movedim(0, -1)[None], ui=curves.shown())


def _applied(native: Any, path: Path) -> Any:
    """The MODEL with what the file holds."""
    return host().with_lora(native, None, read_lora(read_weights(path)), 1.0, 0.0)[0]
