"""An inversion as named tensors and a note, for one safetensors file; and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from .inversion import METHODS, Fingerprint, Inversion
from .protocols import Condition

FORMAT = "velatura.inversion.1"
_PLAIN = ("timesteps", "x_0", "noise", "losses")
_OPTIONAL = ("pivots", "nulls", "residuals", "twin", "reconstructed")


def to_tensors(inversion: Inversion) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name, and the file's metadata. ValueError if a prompt carries something that no file can hold (a
    ControlNet, for one)."""
    tensors = {name: getattr(inversion, name) for name in _PLAIN}
    tensors |= {name: value for name in _OPTIONAL if (value := getattr(inversion, name)) is not None}
    tensors |= {f"fingerprint.{name}": value for name, value in inversion.fingerprint._asdict().items()}
    note: dict[str, Any] = {"method": inversion.method, "guidance": inversion.guidance}
    note |= {"evaluations": inversion.evaluations, "same_null": inversion.null is inversion.condition}
    for name in ("condition",) if note["same_null"] else ("condition", "null"):
        more, note[name] = _condition_tensors(name, getattr(inversion, name))
        tensors |= more
    return {name: each.contiguous().clone() for name, each in tensors.items()}, {FORMAT: json.dumps(note)}


def from_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Inversion:
    """The inversion. ValueError if these are not one, or not whole."""
    if FORMAT not in metadata:
        raise ValueError("it is not an inversion that this version can read")
    try:
        note = json.loads(metadata[FORMAT])
        if note["method"] not in METHODS:
            raise ValueError(f"it was made by an unknown method, {note['method']!r}; get a newer version")
        condition = _condition("condition", tensors, note["condition"])
        found = Inversion(
            method=note["method"],
            guidance=float(note["guidance"]),
            condition=condition,
            null=condition if note["same_null"] else _condition("null", tensors, note["null"]),
            fingerprint=Fingerprint(*(tensors[f"fingerprint.{name}"] for name in Fingerprint._fields)),
            **{name: tensors[name] for name in _PLAIN},
            **{name: cast(Tensor, tensors.get(name)) for name in _OPTIONAL},
            evaluations=int(note["evaluations"]),
        )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"it lacks a part of an inversion ({error})") from error
    total = len(found.timesteps)
    wrong = [name for name in ("nulls", "residuals") if len(tensors.get(name, found.timesteps)) != total]
    if wrong or found.x_0.shape != found.noise.shape:
        raise ValueError(f"its parts do not fit together ({', '.join(wrong) or 'x_0, noise'})")
    return found


def _condition_tensors(name: str, condition: Condition) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, plain = {f"{name}.embedding": condition.embedding}, {}
    if condition.pooled is not None:
        tensors[f"{name}.pooled"] = condition.pooled
    for key, value in condition.extras.items():
        if isinstance(value, Tensor):
            tensors[f"{name}.extras.{key}"] = value
        elif value is None or isinstance(value, bool | int | float | str):
            plain[key] = value
        else:
            raise ValueError(f"inversion: its prompt carries “{key}”, which cannot be saved; invert without it")
    return tensors, plain


def _condition(name: str, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Condition:
    start = f"{name}.extras."
    extras = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
    return Condition(tensors[f"{name}.embedding"], tensors.get(f"{name}.pooled"), {**plain, **extras})
