"""The embedded host: diffusers' classes as the engine's protocols. diffusers is imported when it is first used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ...core.conditions import check_one_prompt
from ...core.consistency import Steps
from ...core.frame_patch import FramePatch
from ...core.layer_patch import LayerPatch
from ...core.lora import LowRankDeltas
from ...core.protocols import Condition, Progress
from ...core.shared_attention import check_single
from ...core.tiles import Tiles
from .. import folders, running

if TYPE_CHECKING:
    from .codec import DiffusersCodec
    from .model import DiffusersModel
    from .samplers import EngineSampler
    from .text import DiffusersText


class StillNetwork:
    """A network that stays where it is."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @contextmanager
    def ready(self, memory: int) -> Iterator[nn.Module]:
        yield self.module

    def room(self) -> int:
        return 0


class DiffusersHost:
    """The wires carry the adapters themselves: MODEL a DiffusersModel, VAE a DiffusersCodec, CLIP a DiffusersText."""

    name = "diffusers"

    def model(self, native: DiffusersModel) -> DiffusersModel:
        return native

    def engine(self, native: DiffusersModel, *, guided: bool = True) -> DiffusersModel:
        check_single(native.rows)
        return native

    def codec(self, native: DiffusersCodec, model: DiffusersModel | None = None) -> DiffusersCodec:
        return native

    def text(self, native: DiffusersText) -> DiffusersText:
        return native

    def condition(self, native: list[Any]) -> Condition:
        check_one_prompt(native)
        embedding, extras = native[0]
        rest = {key: value for key, value in extras.items() if key != "pooled_output"}
        return Condition(embedding, extras.get("pooled_output"), rest)

    def negative(self, native: list[Any], positive: list[Any]) -> Condition:
        return self.condition(native)

    def conditioning(self, condition: Condition) -> list[Any]:
        pooled = {} if condition.pooled is None else {"pooled_output": condition.pooled}
        return [[condition.embedding, {**condition.extras, **pooled}]]

    def with_lora(
        self, model: Any, clip: Any, deltas: LowRankDeltas, strength: float, clip_strength: float
    ) -> tuple[Any, Any]:
        if model is not None and strength != 0 and deltas.of("unet"):
            model = model.with_lora(deltas, strength)
        if clip is not None and clip_strength != 0 and (deltas.of("text") or deltas.of("text_2")):
            clip = clip.with_lora(deltas, clip_strength)
        return model, clip

    def load_folder(self, folder: str | os.PathLike[str]) -> tuple[DiffusersModel, DiffusersText, DiffusersCodec]:
        from .checkpoints import load_folder

        return load_folder(folder)

    def with_guidance(self, model: DiffusersModel, projection: Tensor, omega: float) -> DiffusersModel:
        return model.with_guidance(projection, omega)

    def with_layer_patch(
        self, model: DiffusersModel, patch: LayerPatch, strength: float, start: float, end: float,
        given: Tensor | None = None,
    ) -> DiffusersModel:  # fmt: skip
        return model.with_layer_patch(patch, strength, start, end, given)

    def with_frame_patch(
        self,
        model: DiffusersModel,
        patch: FramePatch,
        strength: float,
        start: float,
        end: float,
        image: Tensor | None = None,
    ) -> DiffusersModel:
        return model.with_frame_patch(patch, strength, start, end, image)

    def with_layers(
        self, model: DiffusersModel, loras: Sequence[LowRankDeltas | None], strengths: Sequence[float]
    ) -> DiffusersModel:
        return model.with_layers(loras, strengths)

    def with_tiles(self, model: DiffusersModel, tiling: Tiles) -> DiffusersModel:
        return model.with_tiles(tiling)

    def network(self, module: nn.Module) -> StillNetwork:
        return StillNetwork(module)

    def sampler(self, name: str, steps: Steps) -> EngineSampler:
        from .samplers import EngineSampler

        return EngineSampler(name, steps)

    def sample(
        self, model: DiffusersModel, sampler: Any, sigmas: Tensor, positive: Any, negative: Any, cfg: float,
        latent: dict[str, Any], seed: int,
    ) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
        from .sampling import sample_latent

        return sample_latent(model, sampler, sigmas, positive, negative, cfg, latent, seed)

    def models(self, kind: str) -> list[str]:
        return folders.models(kind)

    def model_file(self, kind: str, name: str) -> Path:
        return folders.model_file(kind, name)

    def folder(self, kind: str) -> Path:
        here = folders.folders()
        return here.of(kind) if kind in ("output", "temp") else here.models / kind

    def preview(self, model: DiffusersModel) -> Callable[[Tensor], Tensor | None]:
        from .sampling import preview

        return lambda latent: preview(latent[None], model.scaling_factor, model.colours)

    def progress(self, total: int) -> Progress:
        return running.progress(total)

    def tell(self, event: str, data: dict[str, Any]) -> None:
        running.tell(event, data)


HOST = DiffusersHost()
