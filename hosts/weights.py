"""Weights from safetensors files, the only ones that are read: whole, or tensor by tensor."""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

PICKLES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a safetensors file. FileNotFoundError, or ValueError for a pickle and for a damaged file."""
    with open_weights(path) as (tensors, _):
        return dict(tensors)


@contextmanager
def open_weights(path: str | os.PathLike[str]) -> Iterator[tuple[Mapping[str, Tensor], dict[str, str]]]:
    """The tensors of a safetensors file, each read when it is asked for, and the file's metadata.

    Of a diffusers folder: those of its UNet. Errors are those of `read_weights`.
    """
    from safetensors import SafetensorError, safe_open

    with ExitStack() as opened:
        parts: list[Mapping[str, Tensor]] = []
        metadata: dict[str, str] = {}
        for each in _files(Path(path)):
            try:
                file: Any = opened.enter_context(safe_open(each, "pt"))
            except (SafetensorError, ValueError) as error:
                message = f"{each}: not a whole safetensors file ({error}); copy or download it again"
                raise ValueError(message) from error
            parts.append(_Lazy(file))
            metadata |= file.metadata() or {}
        yield ChainMap(*parts) if len(parts) > 1 else parts[0], metadata  # type: ignore[arg-type]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted((path / "unet").glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{path / 'unet'}: expected the network of a diffusers folder, as .safetensors")
        return files
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    if path.suffix.lower() in PICKLES:
        raise ValueError(
            f"{path}: expected a .safetensors file; a pickle can run code when it is opened. Convert it once: "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW_FILE), with its 'state_dict' entry "
            "where it has one"
        )
    return [path]


class _Lazy(Mapping[str, Tensor]):
    def __init__(self, file: Any) -> None:
        self.file, self.names = file, dict.fromkeys(file.keys())

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.names:
            raise KeyError(key)
        return self.file.get_tensor(key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
