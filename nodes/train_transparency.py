"""Teaching a VAE transparency: the training of its encoder and decoder of alpha, in the graph."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..core.alpha import pad_rgb
from ..hosts import host
from ..training import report
from ..training.checkpoint import CheckpointError, fingerprint
from ..training.examples import shuffled_rows
from ..training.loop import CHECKPOINT
from ..training.transparency import Frozen, Pictures, TransparencySettings, new_pair, train, write_half
from . import _training as inputs
from ._api import io, schema
from ._live import Curves
from ._rgba import CONVENTION, alpha_of
from .transparency import Transparency, TransparencyType


class Size(NamedTuple):
    """Widths of a pair of networks, and the decoder's depth."""

    encoder: tuple[int, ...]
    decoder: tuple[int, ...]
    layers: int
    attention_from: int


SIZES = {
    "released": Size((32, 64, 128, 256), (32, 32, 64, 128, 256, 512, 512), 2, 4),
    "small": Size((16, 32, 64, 96), (16, 32, 64, 96), 1, 3),
}


class VelaturaTrainTransparency(io.ComfyNode):
    """An encoder and a decoder of alpha for any VAE (Latent Transparency, Eq. 4-6)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaTrainTransparency",
            display_name="Train Transparency (Velatura)",
            category="Velatura/training",
            description="Trains the networks that hide alpha in the latents of a VAE and find it again, from "
            "transparent pictures. For a VAE that has none, or for pictures of a kind of their own.",
            search_aliases=["layerdiffuse training", "transparent vae", "alpha", "latent transparency"],
            is_output_node=True,
            inputs=[
                io.Vae.Input("vae", tooltip="The VAE whose latents shall hold alpha. It stays as it is."),
                io.Image.Input("image", tooltip="Transparent pictures of one size, hundreds or more."),
                inputs.steps(2000),
                inputs.batch(),
                inputs.learning_rate(1e-4),
                io.Combo.Input(
                    "size",
                    options=list(SIZES),
                    tooltip="released: the layout of LayerDiffuse's files, 105 million parameters. small: 2 million, "
                    "as the demo model's.",
                ),
                io.Float.Input(
                    "offset_scale",
                    default=10.0,
                    min=0.01,
                    max=10000.0,
                    step=1.0,
                    tooltip="The unit of the offset, in deviations of the VAE's latents. The files remember it.",
                ),
                io.Float.Input(
                    "dropout",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="The share of samples without the offset, which makes the decoder robust; 0.3 is the "
                    "paper's.",
                ),
                inputs.seed(),
                inputs.name("my-transparency"),
                io.Mask.Input("mask", optional=True, tooltip=CONVENTION),
            ],
            outputs=[
                TransparencyType.Output(display_name="transparency", tooltip="For Encode and Decode Transparent."),
                io.String.Output(
                    display_name="encoder", tooltip="The new files, in the folder of VAEs, for Load Transparency."
                ),
                io.String.Output(display_name="decoder", tooltip="The decoder's file."),
                io.Image.Output(display_name="loss", tooltip="The losses over the steps."),
            ],
        )

    @classmethod
    def execute(
        cls, vae: Any, image: Tensor, steps: int, batch: int, learning_rate: float, size: str, offset_scale: float,
        dropout: float, seed: int, name: str, mask: Tensor | None = None,
    ) -> io.NodeOutput:  # fmt: skip
        inputs.needed("accelerate", "matplotlib")
        alpha, codec = alpha_of(image, mask), host().codec(vae)
        if alpha is None or not bool(alpha.any()) or bool((alpha == 1).all()):
            raise ValueError("mask: there is nothing transparent, or nothing else; expected pictures with both")
        path, folder = inputs.places(name, "vae")
        paths = [path.with_name(f"{path.stem}-{part}.safetensors") for part in ("encoder", "decoder")]
        resume = (folder / CHECKPOINT).exists()
        if any(each.exists() for each in paths) and not resume:
            raise ValueError(f"name: there are files {paths[0]} already; choose another name, or move them away")
        settings = TransparencySettings(
            steps=steps, batch=batch, rate=learning_rate, seed=seed, weight_decay=1e-4, ema=0.99, warmup=10, mse=4.0,
            visible=1.0, scale=offset_scale, dropout=dropout, adversarial_from=steps // 2,
            save_every=max(25, steps // 20),
        )  # fmt: skip
        curves, wanted = Curves("step", mean=inputs.MEAN), SIZES[size]
        with codec.differentiable():
            networks = new_pair(
                seed, wanted.encoder, wanted.decoder, codec.latent_channels, layers=wanted.layers,
                attention_from=wanted.attention_from,
            )  # fmt: skip
            colour = image[..., :3].float().cpu().movedim(-1, 1).clamp(0, 1).clone()
            pictures = _pictures(colour, alpha.clone(), seed, settings.keep_soft)
            _check_sides(colour, networks[1].multiple, codec.factor)
            frozen = Frozen(lambda picture: codec.posterior(picture), lambda latent: codec.decode(codec.scale(latent)))
            try:
                done = train(
                    *networks, frozen, pictures, settings, folder, progress=host().progress(steps), resume=resume,
                    recipe={"data": fingerprint([colour, alpha]), "size": size}, watch=curves.add,
                )  # fmt: skip
            except CheckpointError as error:
                raise ValueError(f"name: {name!r} has a run that cannot go on; choose another. {error}") from error
        best: Any = done.modules["pair"]
        parts = [each.eval().requires_grad_(False) for each in (best.encoder, best.decoder)]
        for part, each in zip(parts, paths, strict=True):
            write_half(each, part, settings.convention)
        encoder, decoder = (host().network(part.cpu()) for part in parts)
        made = Transparency(encoder, decoder, settings.convention)
        picture = report.loss_picture(done.history).movedim(0, -1)[None]
        return io.NodeOutput(made, *(each.name for each in paths), picture, ui=curves.shown())


def _pictures(colour: Tensor, alpha: Tensor, seed: int, keep_soft: bool) -> Pictures:
    rows = shuffled_rows(len(colour), seed)

    def pictures(first: int, count: int) -> tuple[Tensor, Tensor]:
        chosen = rows(first, count)
        return pad_rgb(colour[chosen], alpha[chosen], keep_soft=keep_soft), alpha[chosen]

    return pictures


def _check_sides(colour: Tensor, multiple: int, factor: int) -> None:
    if factor != 8:
        raise ValueError(f"vae: expected one that makes latents of an eighth of the side, got a {factor}th")
    if any(side % multiple for side in colour.shape[2:]):
        raise ValueError(
            f"image: expected sides in multiples of {multiple} for this size of network, got "
            f"{colour.shape[3]}x{colour.shape[2]}; crop them, or choose the small one"
        )
