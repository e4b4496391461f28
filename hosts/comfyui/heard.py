"""What ComfyUI's samplers do on a MODEL's behalf around the network: nothing of it is heard where the engine asks the
network itself."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from comfy.patcher_extension import WrappersMP

from ...core.shared_attention import check_single
from .rows import rows_of

_GUIDANCE = (
    "sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function", "sampler_calc_cond_batch_function",
)  # fmt: skip
_AROUND = (
    WrappersMP.OUTER_SAMPLE, WrappersMP.PREPARE_SAMPLING, WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREDICT_NOISE,
    WrappersMP.CALC_COND_BATCH,
)  # fmt: skip


def check_asked(native: Any, guided: bool) -> None:
    """ValueError if a MODEL carries what only samplers do, or draws several layers as one sample. Patches of guidance
    matter where there is guidance."""
    check_single(rows_of(native))
    around = sorted({_owner(each) for each in _around(native)})
    if around:
        raise ValueError(
            f"model: {', '.join(around)} on it works in ComfyUI's samplers only, and this node asks the network "
            "itself; connect the model from before it"
        )
    guidance = sorted({_owner(each) for each in _guidance(native)})
    if guided and guidance:
        raise ValueError(
            f"model: {', '.join(guidance)} on it changes the guidance of ComfyUI's samplers, and this node guides by "
            "itself, without it; connect the model from before it"
        )


def _guidance(native: Any) -> Iterator[Any]:
    for name in _GUIDANCE:
        found = native.model_options.get(name) or []
        yield from found if isinstance(found, list) else [found]


def _around(native: Any) -> Iterator[Any]:
    handler = native.model_options.get("context_handler")
    if handler is not None:
        yield type(handler)
    for kind in _AROUND:
        for key, several in native.wrappers.get(kind, {}).items():
            if not str(key).startswith("velatura."):  # ours do their work in the network
                yield from several


def _owner(patch: Any) -> str:
    """The name to know a patch by: its function's class, which is mostly the node's."""
    name = getattr(patch, "__qualname__", type(patch).__qualname__)
    return name.split(".")[0]
