"""A network of ours under ComfyUI's memory management."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management as management
import comfy.model_patcher
from torch import nn


class ComfyNetwork:
    """Lives where VAEs do."""

    def __init__(self, module: nn.Module) -> None:
        load, offload = management.vae_device(), management.vae_offload_device()
        self.patcher = comfy.model_patcher.ModelPatcher(module.to(offload), load_device=load, offload_device=offload)

    @contextmanager
    def ready(self, memory: int) -> Iterator[nn.Module]:
        # In full: our layers do not fetch weights that were left behind.
        management.load_models_gpu([self.patcher], memory_required=memory, force_full_load=True)
        yield self.patcher.model

    def room(self) -> int:
        device = self.patcher.load_device
        return 0 if management.is_device_cpu(device) else int(management.get_free_memory(device))
