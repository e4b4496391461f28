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


def whole_batches(model: Any) -> None:
    """Have a MODEL of ours, whose rows are layers, refuse samplers that cut the batch (context windows)."""
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, "velatura.rows", _uncut)


def _uncut(run: Any, model: Any, conds: Any, x: Any, timestep: Any, options: Any) -> Any:
    handler = options.get("context_handler")
    if handler is not None and handler.dim == 0:
        raise ValueError(
            "model: context windows on it cut the batch, and its rows are layers here; connect the model from before "
            "one of the two"
        )
    return run(model, conds, x, timestep, options)
