"""ComfyUI as a host: its MODEL, CLIP, VAE and CONDITIONING as the engine's protocols. The only importer of comfy.*

Run on ComfyUI 0.3.64.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import folder_paths
from torch import Tensor, nn

from ...core.consistency import Steps
from ...core.frame_patch import FramePatch
from ...core.layer_patch import LayerPatch
from ...core.lora import LowRankDeltas
from ...core.protocols import Condition, Progress
from ...core.tiles import Tiles
from . import guidance, heard, joint, layer_patch, load, lora, sampling, tiles
from . import progress as progress_bar
from . import text as texts
from .codec import ComfyCodec
from .model import ComfyModel
from .network import ComfyNetwork
from .text import ComfyText


class ComfyHost:
    """The wires carry ComfyUI's own objects; each call wraps one anew."""

    name = "comfyui"

    def model(self, native: Any) -> ComfyModel:
        return ComfyModel(native)

    def engine(self, native: Any, *, guided: bool = True) -> ComfyModel:
        heard.check_asked(native, guided)
        return ComfyModel(native)

    def codec(self, native: Any, model: Any = None) -> ComfyCodec:
        """`model`, the MODEL that the latents are for, tells the latent format: a stock VAE does not know its own."""
        return ComfyCodec(native, model)

    def text(self, native: Any) -> ComfyText:
        return ComfyText(native)

    def condition(self, native: Any) -> Condition:
        return texts.condition(native)

    def negative(self, native: Any, positive: Any) -> Condition:
        return texts.negative(native, positive)

    def conditioning(self, condition: Condition) -> Any:
        return texts.conditioning(condition)

    def with_lora(
        self, model: Any, clip: Any, deltas: LowRankDeltas, strength: float, clip_strength: float
    ) -> tuple[Any, Any]:
        if model is not None and strength != 0 and deltas.of("unet"):
            model = lora.with_model_lora(model, deltas, strength)
        if clip is not None and clip_strength != 0 and (deltas.of("text") or deltas.of("text_2")):
            clip = lora.with_clip_lora(clip, deltas, clip_strength)
        return model, clip

    def load_folder(self, folder: str | os.PathLike[str]) -> tuple[Any, Any, Any]:
        return load.load_folder(folder)

    def with_guidance(self, model: Any, projection: Tensor, omega: float) -> Any:
        return guidance.with_guidance(model, projection, omega)

    def with_layer_patch(
        self, model: Any, patch: LayerPatch, strength: float, start: float, end: float, given: Tensor | None = None
    ) -> Any:
        return layer_patch.with_layer_patch(model, patch, strength, start, end, given)

    def with_frame_patch(
        self, model: Any, patch: FramePatch, strength: float, start: float, end: float, image: Tensor | None = None
    ) -> Any:
        return layer_patch.with_frame_patch(model, patch, strength, start, end, image)

    def with_layers(self, model: Any, loras: Sequence[LowRankDeltas | None], strengths: Sequence[float]) -> Any:
        return joint.with_layers(model, loras, strengths)

    def with_tiles(self, model: Any, tiling: Tiles) -> Any:
        return tiles.with_tiles(model, tiling)

    def network(self, module: nn.Module) -> ComfyNetwork:
        return ComfyNetwork(module)

    def sampler(self, name: str, steps: Steps) -> Any:
        return sampling.sampler(name, steps)

    def sample(
        self, model: Any, sampler: Any, sigmas: Tensor, positive: Any, negative: Any, cfg: float,
        latent: dict[str, Any], seed: int,
    ) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
        return sampling.sample(model, sampler, sigmas, positive, negative, cfg, latent, seed)

    def models(self, kind: str) -> list[str]:
        if kind not in folder_paths.folder_names_and_paths:  # ours, where no other pack has brought it
            folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))
        return folder_paths.get_filename_list(kind)

    def model_file(self, kind: str, name: str) -> Path:
        return Path(folder_paths.get_full_path_or_raise(kind, name))

    def folder(self, kind: str) -> Path:
        if kind in ("output", "temp"):
            return Path(folder_paths.get_output_directory() if kind == "output" else folder_paths.get_temp_directory())
        return Path(folder_paths.get_folder_paths(kind)[0])

    def preview(self, model: Any) -> Callable[[Tensor], Tensor | None]:
        return progress_bar.preview(model)

    def progress(self, total: int) -> Progress:
        return progress_bar.progress(total)

    def tell(self, event: str, data: dict[str, Any]) -> None:
        progress_bar.tell(event, data)


HOST = ComfyHost()
