"""CLIP's tokenizer without a download: from a model's folder, or from the vocabulary that a Python package carries."""

from __future__ import annotations

import gzip
import importlib.util
import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

_FILE = "bpe_simple_vocab_16e6.txt.gz"
_PACKAGES = ("open_clip", "clip")
_MERGES = 49152 - 256 - 2  # CLIP uses the first ones of the file.


def tokenizer_for(*folders: Path) -> Any:
    """The CLIPTokenizer of the first of these folders that holds one, else CLIP's own.

    ModuleNotFoundError says what to install if no installed package carries CLIP's vocabulary.
    """
    from transformers import CLIPTokenizer

    for folder in folders:
        if (folder / "vocab.json").is_file() or (folder / "tokenizer.json").is_file():
            return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return _clip()


@cache
def _clip() -> Any:
    from transformers import CLIPTokenizer

    merges = _packaged()
    # Through files, because that is the one way of making a tokenizer that all versions of transformers share.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps(vocabulary(merges), ensure_ascii=False), encoding="utf-8")
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "bos_token": "<|startoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<|endoftext|>",
        }
        Path(folder, "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _packaged() -> list[str]:
    """The merges, from whichever package has the file. The package itself is not imported."""
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        for folder in (spec and spec.submodule_search_locations) or ():
            if Path(folder, _FILE).is_file():
                with gzip.open(Path(folder, _FILE), "rt", encoding="utf-8") as lines:
                    return lines.read().split("\n")[1 : _MERGES + 1]
    raise ModuleNotFoundError(
        "CLIP's vocabulary is not on this machine, and a single-file checkpoint does not hold it. Run "
        "`pip install --no-deps open_clip_torch` (1.5 MB, only its vocabulary is read), or put the vocab.json and "
        "merges.txt of CLIP's tokenizer in a folder named tokenizer beside the checkpoint"
    )


def vocabulary(merges: list[str]) -> dict[str, int]:
    """Token -> id: bytes, bytes at the end of a word, merged pairs, the two special tokens (Radford et al. 2021)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = range(256, 256 + 256 - len(printable))  # Stand-ins for the bytes that do not print.
    characters = [chr(code) for code in (*printable, *others)]
    tokens = [*characters, *(f"{each}</w>" for each in characters), *(merge.replace(" ", "") for merge in merges)]
    return {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
