"""How many rows of a batch are one sample to a MODEL."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from comfy.patcher_extension import WrappersMP


def rows_of(native: Any) -> int:
    """More than 1 where it draws layers together: a wrapper of ours around its network says so by its `rows`."""
    by_key = native.wrappers.get(WrappersMP.DIFFUSION_MODEL, {})
    ours = [each for key, several in by_key.items() if str(key).startswith("velatura.") for each in several]
    return max((getattr(each, "rows", 1) for each in ours), default=1)
