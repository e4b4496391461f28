"""Context windows, which compute parts of a latent one by one: what is given beside the noise is cut as it is."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

KEY = "velatura.windows"
_GIVEN = "c_concat"  # what BaseModel's concat_cond is called among a prompt's conditions


def cut_given(model: Any) -> None:
    """Have a MODEL of ours be told in each window what lies there: ComfyUI itself would tell the first rows, or the
    whole."""
    model.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, KEY)
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, _cut)


def _cut(run: Any, model: Any, conds: Any, x: Tensor, timestep: Any, options: Any) -> Any:
    window = options["transformer_options"].get("context_window")
    if options.get("context_handler") is None or window is None or len(window.index_list) != x.shape[window.dim]:
        return run(model, conds, x, timestep, options)
    parts = [each if each is None else [_part(cond, window) for cond in each] for each in conds]
    return run(model, parts, x, timestep, options)


def _part(cond: dict[str, Any], window: Any) -> dict[str, Any]:
    given = cond.get("model_conds", {}).get(_GIVEN)
    if given is None:
        return cond
    rows = given.cond.shape[window.dim]
    # Fewer rows than the batch has are repeated over it.
    at = torch.tensor([index % rows for index in window.index_list], device=given.cond.device)
    return {
        **cond,
        "model_conds": {**cond["model_conds"], _GIVEN: type(given)(given.cond.index_select(window.dim, at))},
    }
