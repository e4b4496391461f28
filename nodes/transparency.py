"""Transparent pictures in and out of the latent: load the networks, encode, decode, and pad colour."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import transparency_file as files
from ..core.alpha import pad_rgb
from ..core.metrics import psnr
from ..core.protocols import LatentCodec
from ..core.transparency import Convention, encode, shown_to_autoencoder
from ..core.transparency_decode import decode
from ..hosts import Network, host
from ..hosts.weights import open_weights
from . import load
from ._api import io, schema
from ._rgba import CONVENTION, alpha_of, image_of, rgba_of

TransparencyType = io.Custom("VELATURA_TRANSPARENCY")
NONE, DEMO = "none", "sprites (demo)"
DEMO_FILES = {
    "encoder": "sprites-transparent-encoder.safetensors",
    "decoder": "sprites-transparent-decoder.safetensors",
}
KINDS = ("layer_model", "vae")
READERS = {"encoder": files.encoder_from, "decoder": files.decoder_from}
EDGES = {"mixed": False, "kept": True}


@dataclass(frozen=True)
class Transparency:
    """A loaded encoder and decoder, either of which may be missing, and what they were trained with."""

    encoder: Network | None
    decoder: Network | None
    convention: Convention


class VelaturaLoadTransparency(io.ComfyNode):
    """The networks that hide alpha in a latent and find it again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        listed = [f"{kind}/{name}" for kind in KINDS for name in host().models(kind) if _weights(name)]
        demo = {part: [DEMO] if (load.DEMO_MODELS / file).exists() else [] for part, file in DEMO_FILES.items()}
        where = "Files in models/layer_model or models/vae: for SDXL the released vae_transparent_{0}.safetensors, for "
        where += "SD 1.5 layer_sd15_vae_transparent_{0}.safetensors."
        return schema(
            "VelaturaLoadTransparency",
            display_name="Load Transparency (Velatura)",
            category="Velatura/load",
            description="Loads the encoder and the decoder of transparent pictures: the released LayerDiffuse files, "
            "and the demo model's where they are there.",
            search_aliases=["layerdiffuse", "transparent vae", "alpha", "rgba", "latent transparency"],
            inputs=[
                io.Combo.Input(
                    "encoder",
                    options=[*demo["encoder"], NONE, *listed],
                    tooltip="For Encode Transparent. " + where.format("encoder"),
                ),
                io.Combo.Input(
                    "decoder",
                    options=[*demo["decoder"], NONE, *listed],
                    tooltip="For Decode Transparent. " + where.format("decoder"),
                ),
                io.Float.Input(
                    "offset_scale",
                    default=0.0,
                    min=0.0,
                    max=10000.0,
                    step=1.0,
                    tooltip="How strongly the encoder changes the latent. 0: as the file was trained; for the released "
                    "ones 300, what their own program takes (the Forge extension takes 1).",
                ),
            ],
            outputs=[
                TransparencyType.Output(display_name="transparency", tooltip="For Encode and Decode Transparent.")
            ],
        )

    @classmethod
    def execute(cls, encoder: str, decoder: str, offset_scale: float) -> io.NodeOutput:
        if encoder == decoder == NONE:
            raise ValueError("encoder, decoder: both are “none”; choose a file for one of them at least")
        with torch.inference_mode(False):
            networks = {name: _loaded(name, file) for name, file in (("encoder", encoder), ("decoder", decoder))}
        said = [each[1] for each in networks.values() if each]
        if any(each != said[0] for each in said):
            raise ValueError("encoder, decoder: they were trained with different conventions; choose files of one pair")
        convention = replace(said[0], scale=offset_scale) if offset_scale else said[0]
        parts = {name: found[0] if found else None for name, found in networks.items()}
        return io.NodeOutput(Transparency(parts["encoder"], parts["decoder"], convention))


def _weights(name: str) -> bool:
    return Path(name).suffix.lower() in (".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin")


def _loaded(which: str, file: str) -> tuple[Network, Convention] | None:
    if file == NONE:
        return None
    path = load.DEMO_MODELS / DEMO_FILES[which] if file == DEMO else host().model_file(*file.split("/", 1))
    try:
        with open_weights(path) as (tensors, metadata):
            convention, network = files.convention_of(metadata), READERS[which](dict(tensors))
    except ValueError as error:
        raise ValueError(f"{which}: {path} cannot be used: {error}") from error
    return host().network(network), convention


def _transparency(part: str) -> io.Input:
    return TransparencyType.Input("transparency", tooltip=f"From Load Transparency; its {part} is used.")


class VelaturaEncodeTransparent(io.ComfyNode):
    """A transparent picture as a latent."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaEncodeTransparent",
            display_name="Encode Transparent (Velatura)",
            category="Velatura/layers",
            description="A picture with transparency as a latent that keeps it: for image to image and inpainting of "
            "transparent pictures. Decode Transparent gives colour and alpha back.",
            search_aliases=["vae encode alpha", "rgba", "layerdiffuse", "transparent img2img"],
            inputs=[
                _transparency("encoder"),
                io.Vae.Input("vae", tooltip="The VAE of the model that the latent is for."),
                io.Image.Input("image", tooltip="The pictures. What lies under full transparency does not matter."),
                io.Mask.Input("mask", optional=True, tooltip=CONVENTION),
                io.Boolean.Input(
                    "measure",
                    default=False,
                    optional=True,
                    tooltip="Decode once more to see what the offset costs the VAE's own picture (identity).",
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="For KSampler with less denoise, Set Latent Noise Mask, Decode Transparent."),
                io.Float.Output(
                    display_name="identity_drop",
                    tooltip="By how many dB the VAE's own picture is worse than without the offset; 0 if not measured.",
                ),
            ],
        )

    @classmethod
    @torch.no_grad()
    def execute(
        cls, transparency: Transparency, vae: Any, image: Tensor, mask: Tensor | None = None, measure: bool = False
    ) -> io.NodeOutput:
        network, codec = _part(transparency, "encoder"), host().codec(vae)
        colour, alpha = _whole(*_colour_and_alpha(image, mask), codec.factor)
        if not bool(alpha.any()):
            raise ValueError(
                "mask: every pixel is transparent, there is nothing to encode. In a MASK of ComfyUI 1 is transparent: "
                "invert it if yours is the other way round"
            )
        convention = transparency.convention
        with network.ready(0) as ready:
            encoder: Any = ready
            _fits(encoder.blocks[-1].out_channels, codec, "encoder")
            there = next(encoder.parameters()).device
            run: Any = lambda *given: encoder(*(each.to(there) for each in given)).to(colour)  # noqa: E731
            latent = encode(run, codec.posterior, colour, alpha, convention)
        drop = _identity_drop(codec, colour, alpha, latent, convention) if measure else 0.0
        return io.NodeOutput({"samples": latent.float().cpu()}, drop)


def _identity_drop(codec: Any, colour: Tensor, alpha: Tensor, latent: Tensor, convention: Convention) -> float:
    """L_identity (Latent Transparency, Eq. 1) as PSNR, beside that of the VAE alone."""
    padded = pad_rgb(colour, alpha, keep_soft=convention.keep_soft)
    picture = shown_to_autoencoder(padded, alpha, convention.backdrop)
    own, moved = (codec.decode(each) for each in (codec.encode(picture), codec.scale(latent)))
    return float((psnr((own + 1) / 2, (picture + 1) / 2) - psnr((moved + 1) / 2, (picture + 1) / 2)).mean())


class VelaturaDecodeTransparent(io.ComfyNode):
    """A latent as a transparent picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaDecodeTransparent",
            display_name="Decode Transparent (Velatura)",
            category="Velatura/layers",
            description="A latent as colour and alpha, of any size. The latent comes from Encode Transparent or from a "
            "model that generates transparent pictures.",
            search_aliases=["vae decode alpha", "rgba", "layerdiffuse decode", "remove background"],
            inputs=[
                _transparency("decoder"),
                io.Vae.Input("vae", tooltip="The VAE of the model that the latent comes from."),
                io.Latent.Input("samples", tooltip="The latents."),
                io.Combo.Input(
                    "passes",
                    options=["auto", "1", "2", "4", "8"],
                    default="auto",
                    tooltip="The picture is decoded several times, mirrored and turned, and averaged: 8 is best, 1 "
                    "quickest. auto stops at 2 or 4 when more would hardly change it.",
                ),
                io.Combo.Input(
                    "average",
                    options=["median", "mean"],
                    default="median",
                    tooltip="How the passes are averaged. median, the lower middle value, is what the released program "
                    "does; mean is smoother with 2 and 4.",
                ),
                io.Int.Input(
                    "tile_size",
                    default=1024,
                    min=0,
                    max=8192,
                    step=64,
                    tooltip="Larger pictures are decoded in tiles of this side, which bounds the memory and is "
                    "approximate: a tile does not see the rest. 0: always whole.",
                ),
                io.Int.Input(
                    "overlap",
                    default=128,
                    min=0,
                    max=4096,
                    step=8,
                    tooltip="By how many pixels neighbouring tiles overlap; at most half a tile.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="Straight colour; spread on under full transparency."),
                io.Mask.Output(display_name="mask", tooltip="1 is transparent, as Load Image gives it."),
                io.Image.Output(display_name="rgba", tooltip="Colour and alpha in one: Save Image writes both."),
            ],
        )

    @classmethod
    @torch.no_grad()
    def execute(
        cls, transparency: Transparency, vae: Any, samples: dict[str, Any], passes: str, average: Any, tile_size: int,
        overlap: int,
    ) -> io.NodeOutput:  # fmt: skip
        network, codec, latent = _part(transparency, "decoder"), host().codec(vae), samples["samples"].float()
        if not bool(latent.isfinite().all()):
            raise ValueError("samples: there are NaN or infinite values in it; look at what made it")
        _fits(latent.shape[1], codec, "samples")
        picture = ((codec.decode(codec.scale(latent)) + 1) / 2).clamp(0, 1)
        sides = [min(side, tile_size or side) for side in picture.shape[2:]]
        bar = host().progress(len(latent) * 8)
        with network.ready(0) as ready:
            decoder: Any = ready
            _fits(decoder.latent_conv_in.in_channels, codec, "decoder")
            memory = decoder.memory(*sides)
        with network.ready(memory) as decoder:
            found = decode(
                decoder,
                picture.to(latent),
                latent,
                passes="auto" if passes == "auto" else int(passes),  # pyright: ignore[reportArgumentType]
                average=average,
                batch=max(1, min(8, int(0.7 * network.room() / max(1, memory)))),
                tile=-(-tile_size // decoder.multiple) * decoder.multiple,
                overlap=min(overlap, tile_size // 2) // 8 * 8,
                progress=bar,
            )
        image, mask = image_of(found.colour), 1 - found.alpha[:, 0].float().cpu()
        return io.NodeOutput(image, mask, rgba_of(found.colour, found.alpha))


class VelaturaPadRgb(io.ComfyNode):
    """Colour for what has none."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            "VelaturaPadRgb",
            display_name="Pad RGB (Velatura)",
            category="Velatura/layers",
            description="Spreads a transparent picture's colour into where it is transparent, so that scaling, "
            "filtering and encoding leave no fringe of black or white.",
            search_aliases=["alpha bleeding", "defringe", "edge padding", "dilate colour"],
            inputs=[
                io.Image.Input("image", tooltip="The pictures."),
                io.Mask.Input("mask", optional=True, tooltip=CONVENTION),
                io.Combo.Input(
                    "soft_edges",
                    options=list(EDGES),
                    default="kept",
                    optional=True,
                    tooltip="Half transparent pixels: kept as they are, or mixed with what is near, as the released "
                    "encoder was trained with. Encode Transparent does by itself what its encoder needs.",
                ),
            ],
            outputs=[io.Image.Output(tooltip="Opaque pixels unchanged, colour everywhere.")],
        )

    @classmethod
    @torch.no_grad()
    def execute(cls, image: Tensor, mask: Tensor | None = None, soft_edges: str = "kept") -> io.NodeOutput:
        return io.NodeOutput(image_of(pad_rgb(*_colour_and_alpha(image, mask), keep_soft=EDGES[soft_edges])))


def _colour_and_alpha(image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    alpha = alpha_of(image, mask)
    if alpha is None:
        raise ValueError(
            "mask: the image has no alpha; connect a mask (Load Image gives a PNG's), or an image of four channels"
        )
    return image[..., :3].float().cpu().movedim(-1, 1).clamp(0, 1), alpha


def _whole(colour: Tensor, alpha: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Cut to multiples of the factor around the middle, as VAE Encode does."""
    h, w = colour.shape[2:]
    if min(h, w) < factor:
        raise ValueError(f"image: expected at least {factor} pixels a side, got {w}x{h}")
    top, left = h % factor // 2, w % factor // 2
    part = (..., slice(top, top + h // factor * factor), slice(left, left + w // factor * factor))
    return colour[part], alpha[part]


def _part(transparency: Transparency, name: str) -> Network:
    network = getattr(transparency, name)
    if network is None:
        raise ValueError(f"transparency: it was loaded without {name}; choose one in Load Transparency")
    return network


def _fits(channels: int, codec: LatentCodec, name: str) -> None:
    if channels != codec.latent_channels or codec.factor != 8:
        raise ValueError(
            f"{name}: it has latents of {channels} channels, the VAE {codec.latent_channels} at 1/{codec.factor} of "
            "the side; choose what belongs to one model family"
        )
