"""Checkpoints: one safetensors file with everything a run needs to go on, written whole or not at all. No pickle."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or of another run, or a disk with no room for one."""


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[str]:
    """A scratch file beside `path` that takes its place when the block ends well. CheckpointError if the disk is
    full; the older file then stays."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not mkstemp's: its files are for nobody but the user, and a model folder may be shared.
    scratch = str(path.with_name(f".{path.name[:64]}-{uuid.uuid4().hex}.part"))
    try:
        yield scratch
        os.replace(scratch, path)
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(error):
            raise CheckpointError(
                f"{path}: the disk is full; free some room and resume: the last file is whole"
            ) from error
        raise
    finally:
        Path(scratch).unlink(missing_ok=True)


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Save tensors and a JSON note in the file's header, whole or not at all."""
    packed = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    with whole(path) as scratch:
        save_file(packed, scratch, metadata={"note": json.dumps(dict(note))})


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the note. CheckpointError if there is no such file or it is not one of ours."""
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no checkpoint here; start the run without resuming, or name its folder")
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {})["note"])
            return {name: file.get_tensor(name) for name in file.keys()}, note  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not a whole training checkpoint ({error}); use an earlier one") from error


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """A short name for these values, from some thousands of each tensor: a run is resumed with the data and the network
    that it began with."""
    total = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // 4096)].to("cpu", torch.float32, copy=True)
        total.update(some.numpy().tobytes())
    return total.hexdigest()[:16]


def need_room(folder: str | os.PathLike[str], size: int) -> None:
    """CheckpointError unless two files of `size` bytes fit: the old checkpoint lives until the new one is whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < 2 * size:
        raise CheckpointError(
            f"{folder}: a run here needs {2 * size / 1e6:.0f} MB of disk, {free / 1e6:.0f} MB are free"
        )


def pack_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """The optimizer's tensors by name; its hyperparameters come from the recipe."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{i}.{key}": torch.as_tensor(value) for i, values in state.items() for key, value in values.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Put back what `pack_optimizer` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            index, key = name[len(prefix) + 1 :].split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def same_recipe(
    path: str | os.PathLike[str], then: Mapping[str, Any], now: Mapping[str, Any], free: frozenset[str]
) -> None:
    """CheckpointError names the fields in which a checkpoint's recipe differs from the run's, but for the `free`
    ones."""
    differ = sorted(key for key in {*then, *now} - free if then.get(key) != now.get(key))
    if differ:
        listed = ", ".join(f"{key} {then.get(key)!r} then, {now.get(key)!r} now" for key in differ)
        raise CheckpointError(
            f"{path}: made by another recipe ({listed}); resume with that recipe or start a new folder"
        )
