"""The seam between the pack and the program it runs in. `host()` is the only place where one is chosen."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from ..core.consistency import Steps
from ..core.frame_patch import FramePatch
from ..core.layer_patch import LayerPatch
from ..core.lora import LowRankDeltas
from ..core.protocols import Condition, LatentCodec, LatentModel, Progress, TextEncoder
from ..core.tiles import Tiles


class Network(Protocol):
    """A torch network of ours in the host's care: on its device while it is used, out of the way when others need the
    room."""

    def ready(self, memory: int) -> AbstractContextManager[nn.Module]:
        """The network with all its weights on its device, and `memory` bytes of room beside it where there are."""
        ...

    def room(self) -> int:
        """Bytes free on its device; 0 where running more at once gains nothing."""
        ...


class Host(Protocol):
    """A program that runs nodes. `native` values are what its wires carry: MODEL, CLIP, VAE, CONDITIONING."""

    name: str

    def model(self, native: Any) -> LatentModel:
        """A MODEL as the engine's noise predictor."""
        ...

    def engine(self, native: Any, *, guided: bool = True) -> LatentModel:
        """The same, for a node that asks the network in a loop of its own in place of the host's samplers. ValueError
        if the MODEL carries what only those samplers do (patches of guidance matter where the node guides), or draws
        several layers as one sample."""
        ...

    def codec(self, native: Any, model: Any = None) -> LatentCodec:
        """A VAE as the engine's autoencoder. `model`, the MODEL that the latents are for, tells their scale: not every
        host's VAE knows its own."""
        ...

    def text(self, native: Any) -> TextEncoder:
        """A CLIP as the engine's text encoder."""
        ...

    def condition(self, native: Any) -> Condition:
        """A CONDITIONING of one prompt as the engine's condition. ValueError if it is of several."""
        ...

    def negative(self, native: Any, positive: Any) -> Condition:
        """A CONDITIONING as what guidance leads away from, beside the one it leads to: the host's patches may tell the
        two apart, and something on `positive` (a ControlNet) may be meant for both."""
        ...

    def conditioning(self, condition: Condition) -> Any:
        """The engine's condition as a CONDITIONING."""
        ...

    def with_lora(
        self, model: Any, clip: Any, deltas: LowRankDeltas, strength: float, clip_strength: float
    ) -> tuple[Any, Any]:
        """MODEL and CLIP (either may be None) with the deltas added, as new native objects."""
        ...

    def load_folder(self, folder: str | os.PathLike[str]) -> tuple[Any, Any, Any]:
        """A diffusers-format model folder as native MODEL, CLIP, VAE."""
        ...

    def with_guidance(self, model: Any, projection: Tensor, omega: float) -> Any:
        """A new MODEL whose network takes omega as LCM's guidance embedding, in every sampler: `projection` [C, W] is
        the file's `cond_proj` weight, C the width of the timestep embedding. ValueError if it does not fit."""
        ...

    def with_layer_patch(
        self, model: Any, patch: LayerPatch, strength: float, start: float, end: float, given: Tensor | None = None
    ) -> Any:
        """A new MODEL with a patch of transparent pictures or layers, in every sampler, from the share `start` to the
        share `end` (0 .. 1) of the denoising. `given` [B, k C, h, w] are the unscaled latents, side by side, that the
        patch is told beside the noise. ValueError if the patch or `given` does not fit."""
        ...

    def with_frame_patch(
        self, model: Any, patch: FramePatch, strength: float, start: float, end: float, image: Tensor | None = None
    ) -> Any:
        """The same for the SD 1.5 form; the MODEL then draws batches in rows (sample, layer). `image` [S, 3, H, W] in
        -1 .. 1 is the given layer's picture, for patches that are told of one: eight times the latent's size."""
        ...

    def with_layers(self, model: Any, loras: Sequence[LowRankDeltas | None], strengths: Sequence[float]) -> Any:
        """A new MODEL that draws batches in rows (sample, layer), in every sampler: the layers share their self
        attention, and each has its LoRA. ValueError if one does not fit."""
        ...

    def with_tiles(self, model: Any, tiling: Tiles) -> Any:
        """A new MODEL that computes latents larger than a tile in overlapping tiles, joined at every step of every
        sampler. A patch that is given something is put on it afterwards. ValueError if it is in tiles already."""
        ...

    def network(self, module: nn.Module) -> Network:
        """A network that is none of the host's own kinds, put into its care."""
        ...

    def sampler(self, name: str, steps: Steps) -> Any:
        """The engine's sampling loop as a SAMPLER, for the host's own sampling nodes."""
        ...

    def sample(
        self, model: Any, sampler: Any, sigmas: Tensor, positive: Any, negative: Any, cfg: float,
        latent: dict[str, Any], seed: int,
    ) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
        """What the host's SamplerCustom does, noise from `seed` added: (LATENT at the last level, LATENT of the last
        x_0). Masks, batches, previews and the user's cancel are the host's. `negative` may be None at cfg 1."""
        ...

    def models(self, kind: str) -> list[str]:
        """The names of the user's model files of a kind ("checkpoints", "loras", ...), for a combo."""
        ...

    def model_file(self, kind: str, name: str) -> Path:
        """The path of one of `models(kind)`. FileNotFoundError says where it was looked for."""
        ...

    def folder(self, kind: str) -> Path:
        """Where new files go: "output", "temp", or a kind of model. It need not exist yet."""
        ...

    def preview(self, model: Any) -> Callable[[Tensor], Tensor | None]:
        """A function from a MODEL's scaled latent [C, h, w] to a small picture [3, H, W] in 0 .. 1 for the progress
        bar; None where the user wants none."""
        ...

    def progress(self, total: int) -> Progress:
        """The running node's progress bar; raises the host's interruption when the user cancels."""
        ...

    def tell(self, event: str, data: dict[str, Any]) -> None:
        """Send `data`, plain JSON, to the running node's widget in the browser, as the websocket message
        `velatura.EVENT` with the node's id in "node". Nothing is sent where nobody watches."""
        ...


_chosen: Host | None = None


def host() -> Host:
    """The active host: ComfyUI when it is what imported us, the diffusers runtime otherwise."""
    global _chosen
    if _chosen is None:
        _chosen = load("comfyui" if "comfy" in sys.modules else "diffusers")
    return _chosen


def load(name: Literal["comfyui", "diffusers"]) -> Host:
    """One host's adapter by name, imported now."""
    return importlib.import_module(f".{name}", __name__).HOST
