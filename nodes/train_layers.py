"""Teaching a model transparent layers: the training of their LoRAs, in the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.protocols import Condition
from ..hosts import host
from ..training import report
from ..training.adapters import LowRankLayers, lora_tensors, write_weights
from ..training.checkpoint import fingerprint
from ..training.examples import Examples, from_rows, join, take
from ..training.layers import LayerLoras, LayerSettings, train
from . import _training as inputs
from ._api import io, schema
from ._live import Curves

PROMPT_DROPOUT = 0.1


class VelaturaTrainLayerLora(io.ComfyNode):
    """Transparent generation, or layers drawn together, as LoRAs (Latent Transparency, Eq. 7-9)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaTrainLayerLora",
            display_name="Train Layer LoRA (Velatura)",
            category="Velatura/training",
            description="Teaches a model to draw transparent objects, from latents of Encode Transparent and their "
            "prompts. With backgrounds as well, it trains two LoRAs that are drawn together by Joint Layers.",
            search_aliases=["layerdiffuse training", "transparent lora", "foreground background lora", "train lora"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to teach. It stays as it is."),
                io.Latent.Input("latents", tooltip="Transparent objects from Encode Transparent, as one batch."),
                io.Conditioning.Input("positive", tooltip=inputs.PROMPTS),
                inputs.steps(500),
                inputs.batch(),
                inputs.learning_rate(1e-4),
                inputs.rank(32, "256 is the paper's for SDXL, 24 does for the demo model."),
                io.Float.Input(
                    "given",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="With backgrounds: the share of samples in which one of the two layers is given, for "
                    "Condition on Layer.",
                ),
                inputs.low_memory(),
                inputs.seed(),
                inputs.name("my-layers"),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The empty prompt. With it, a tenth of the samples are trained without their prompts, for "
                    "sampling with guidance (cfg).",
                ),
                io.Latent.Input(
                    "backgrounds",
                    optional=True,
                    tooltip="What lies behind each object, VAE-encoded, in the same order and number.",
                ),
                io.Conditioning.Input(
                    "background_positive", optional=True, tooltip="The prompts of the backgrounds, as for positive."
                ),
            ],
            outputs=[
                io.String.Output(display_name="file", tooltip="The new LoRA of the objects, in the folder of LoRAs."),
                io.String.Output(display_name="background_file", tooltip="That of the backgrounds; empty without any."),
                io.Image.Output(display_name="loss", tooltip="The loss over the steps."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, latents: dict[str, Any], positive: Any, steps: int, batch: int, learning_rate: float,
        rank: int, given: float, low_memory: bool, seed: int, name: str, negative: Any = None,
        backgrounds: dict[str, Any] | None = None, background_positive: Any = None,
    ) -> io.NodeOutput:  # fmt: skip
        if (backgrounds is None) != (background_positive is None):
            raise ValueError("backgrounds, background_positive: expected both or neither; connect the other one")
        settings = LayerSettings(
            steps=steps, batch=batch, rate=learning_rate, seed=seed, weight_decay=1e-4, ema=0.99, warmup=10,
            prompt_dropout=0.0 if negative is None else PROMPT_DROPOUT, conditional=given if backgrounds else 0.0,
            save_every=max(25, steps // 20), precision=inputs.precision(model),
        )  # fmt: skip
        with inputs.prepared(model, latents, positive, negative, seed, name) as run:
            paths, examples, recipe = [run.path], run.examples, {"rank": rank, **run.recipe}
            if backgrounds is not None:
                behind, recipe["backgrounds"] = _behind(run.model, latents, backgrounds, background_positive, seed)
                paths, examples = _two(run), _layered(run.examples, behind)
            layers, curves = run.model.layers(), Curves("step", mean=inputs.MEAN)
            made = [LowRankLayers(layers, rank, which="attention", seed=seed + k) for k in range(len(paths))]
            done = train(
                run.model, LayerLoras(made), examples, run.null, settings, run.folder, progress=host().progress(steps),
                resume=run.resume, recipe=recipe, watch=curves.add, low_memory=low_memory,
                sample=lambda _, losses: report.loss_picture(losses),
            )  # fmt: skip
            best: Any = done.modules["loras"]
            for lora, path in zip(best.loras, paths, strict=True):
                write_weights(path, lora_tensors(lora.deltas()))
            names = [path.name for path in paths] + [""]
            picture = report.loss_picture(done.history).movedim(0, -1)[None]
            return io.NodeOutput(names[0], names[1], picture, ui=curves.shown())


def _two(run: inputs.Run) -> list[Path]:
    """The files of both LoRAs. ValueError if one is there that is not this run's."""
    paths = [run.path.with_name(f"{run.path.stem}-{layer}.safetensors") for layer in ("foreground", "background")]
    for path in paths:
        if path.exists() and not run.resume:
            raise ValueError(f"name: there is another file {path} already; choose another name, or move it away")
    return paths


def _behind(
    model: Any, latents: dict[str, Any], backgrounds: dict[str, Any], positive: Any, seed: int
) -> tuple[Examples, str]:
    """Examples of the backgrounds, in the order of the objects', and a name for them."""
    if backgrounds["samples"].shape != latents["samples"].shape:
        raise ValueError(
            f"backgrounds: expected {tuple(latents['samples'].shape)} as the latents, one for each, got "
            f"{tuple(backgrounds['samples'].shape)}"
        )
    z_0 = inputs.scaled(model, backgrounds, "backgrounds")
    condition = inputs.conditions(positive, len(z_0), "background_positive")
    return from_rows(z_0, condition, seed), fingerprint([z_0, condition.embedding])


def _layered(front: Examples, back: Examples) -> Examples:
    """Rows (sample layer) of both; they draw the same numbers."""

    def examples(first: int, count: int) -> tuple[Tensor, Condition]:
        (z, told), (behind, place) = front(first, count), back(first, count)
        below = join([told, place], [count, count])
        return torch.stack([z, behind], 1).flatten(0, 1), take(below, torch.arange(2 * count).view(2, -1).T.flatten())

    return examples
