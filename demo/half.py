"""bfloat16 where it is quick."""

from __future__ import annotations

from typing import Any

import torch


def quick_half(device: torch.device | str = "cpu", wanted: bool = True) -> torch.autocast:
    """bfloat16 autocast, if it is wanted and the device has instructions for it; otherwise nothing is changed.

    A processor without them (before AVX-512's and AMX's) takes fifteen times as long as with float32.
    """
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=wanted and (kind != "cpu" or _has_instructions()))


def _has_instructions() -> bool:
    capabilities: Any = getattr(torch.cpu, "get_capabilities", None)  # not in every torch
    return capabilities is None or any(there for name, there in capabilities().items() if "bf16" in name)
