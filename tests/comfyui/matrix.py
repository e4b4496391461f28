"""The table of web/docs/Beside.md, from what the tests say they show. It is written once all of them have passed:

COMFYUI_PATH=path/to/ComfyUI path/to/its/python -m pytest tests/comfyui -k beside --beside-table
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

PAGE = Path(__file__).resolve().parents[2] / "web" / "docs" / "Beside.md"
START, END = "<!-- the table: pytest --beside-table -->", "<!-- end of the table -->"
MODULES = (
    "test_beside_samplers", "test_beside_spatial", "test_beside_engine", "test_beside_asking", "test_beside_training",
    "test_beside_loading", "test_beside_server",
)  # fmt: skip
WORKS, REFUSED, NONE = "works", "refused", "–"

TOOLS = {
    "lora": "LoRAs: Smooth-LoRA, LCM-LoRA",
    "lcm": "LCM guidance and sampling",
    "transparency": "Apply Transparency, SDXL's form and LoRAs",
    "frames": "Apply Transparency, SD 1.5's form",
    "share": "Share Attention",
    "spatial": "Semantic Map, Super-Resolution",
    "joint": "Joint Layers, Condition on Layer",
    "invert": "Invert, Reconstruct, Prompt-Switch Edit, Morph",
    "drag": "Drag, Drag Identity",
    "train": "the trainers",
}
OTHERS = {
    "stock_lora": "LoRA loader, before or after",
    "ours": "another of ours",
    "controlnet": "ControlNet",
    "ip_adapter": "IP-Adapter",
    "inpaint": "inpainting models",
    "area": "a prompt for an area",
    "mask": "a prompt for a mask",
    "steps": "a prompt for some steps",
    "hook_lora": "a LoRA on a prompt (hooks)",
    "zero_snr": "ModelSamplingDiscrete, v-prediction",
    "lcm_levels": "ModelSamplingDiscrete, lcm",
    "rescale_cfg": "RescaleCFG",
    "free_u": "FreeU",
    "free_u_v2": "FreeU_V2",
    "pag": "PerturbedAttentionGuidance",
    "sag": "SelfAttentionGuidance",
    "hyper_tile": "HyperTile",
    "token_merging": "token merging",
    "scaled": "wrappers of the network's function",
    "deep_cache": "caches in such a wrapper (DeepCache)",
    "easy_cache": "EasyCache",
    "windows": "context windows",
    "partly_loaded": "partly loaded models (low VRAM)",
    "batches": "batches",
    "caches": "--cache-none, --cache-lru",
    "two_samplers": "two samplers in one graph",
}


class Outcome(NamedTuple):
    """What becomes of one of our tools beside another's: WORKS or REFUSED, and a remark."""

    tool: str
    other: str
    how: str
    note: str = ""


def works(tool: str, other: str, note: str = "") -> Any:
    return pytest.mark.beside(Outcome(tool, other, WORKS, note))


def refused(tool: str, other: str, note: str = "") -> Any:
    return pytest.mark.beside(Outcome(tool, other, REFUSED, note))


def declared() -> dict[Outcome, str]:
    """Every outcome that a test shows, and a test that does."""
    found: dict[Outcome, str] = {}
    for module in MODULES:
        for name, function in vars(importlib.import_module(f"{__package__}.{module}")).items():
            if name.startswith("test_"):
                found |= dict.fromkeys(_of(getattr(function, "pytestmark", [])), f"{module}::{name}")
    return found


def _of(marks: Any) -> Iterator[Outcome]:
    for mark in marks:
        if mark.name == "beside":
            yield from mark.args
        elif mark.name == "parametrize":
            for each in mark.args[1]:
                yield from _of(getattr(each, "marks", ()))


def table() -> str:
    """The outcomes as a table in Markdown. ValueError if two tests say different things."""
    cells: dict[tuple[str, str], Outcome] = {}
    for outcome in declared():
        tool, other, how, note = outcome
        if tool not in TOOLS or other not in OTHERS or how not in (WORKS, REFUSED):
            raise ValueError(f"{outcome}: unknown; TOOLS and OTHERS in {__name__} name what is in the table")
        before = cells.setdefault((tool, other), outcome)
        if before.how != how:
            raise ValueError(f"two tests say different things: {before} and {outcome}")
        if note and not before.note:
            cells[tool, other] = outcome
    notes = list(dict.fromkeys(each.note for each in cells.values() if each.note))
    head = ["beside", *TOOLS.values()]
    lines = [_line(head), _line(["---"] * len(head))]
    for other, name in OTHERS.items():
        lines.append(_line([name, *(_cell(cells.get((tool, other)), notes) for tool in TOOLS)]))
    return "\n".join([*lines, "", *(f"{n + 1}. {note}" for n, note in enumerate(notes))])


def _cell(outcome: Outcome | None, notes: list[str]) -> str:
    if outcome is None:
        return NONE
    return outcome.how + (f" ({notes.index(outcome.note) + 1})" if outcome.note else "")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def page(text: str) -> str:
    """The page with the table of today in it."""
    before, rest = text.split(START)
    return f"{before}{START}\n\n{table()}\n\n{END}{rest.split(END)[1]}"
