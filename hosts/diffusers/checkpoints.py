"""Model files on this machine as MODEL, CLIP and VAE: diffusers folders, and single files of SD1.5 and SDXL.

Nothing is downloaded, and only safetensors are read.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...core.schedule import NoiseSchedule
from ..preview import colours
from ..weights import PICKLES, read_weights
from .clip_vocabulary import tokenizer_for
from .codec import DiffusersCodec
from .model import DiffusersModel, schedule_of
from .sigmas import with_signal
from .single_file import build, family_of
from .text import DiffusersText, Tower

Native = tuple[DiffusersModel, DiffusersText, DiffusersCodec]


def load(path: str | os.PathLike[str]) -> Native:
    """A diffusers folder or a single file.

    Raises FileNotFoundError if there is neither, ValueError if it cannot be used; both name the file.
    """
    return load_folder(path) if Path(path).is_dir() else load_file(path)


def place(module: Any, *, half: bool = False) -> Any:
    """The module where it will run: on the GPU (in half precision if `half`) or, in float32, on the CPU."""
    cuda = torch.cuda.is_available()
    dtype = torch.float16 if cuda and half else torch.float32
    return nn.Module.to(module, "cuda" if cuda else "cpu", dtype)  # diffusers' own `to` warns about a change of dtype


def load_folder(folder: str | os.PathLike[str]) -> Native:
    """A diffusers pipeline folder (Stable Diffusion 1, XL, or Sprites)."""
    folder = Path(folder)
    index = _json(folder / "model_index.json")
    unet = place(_part(folder, index, "unet"), half=True)
    vae = place(_part(folder, index, "vae"))
    pairs = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")]
    present = [pair for pair in pairs if index.get(pair[1], [None])[0]]
    tokenizers = [tokenizer_for(folder / tokenizer) for tokenizer, _ in present]
    encoders = [place(_part(folder, index, encoder)) for _, encoder in present]
    if not encoders:
        raise ValueError(f"{folder}: expected a pipeline with a CLIP text encoder; its model_index.json names none")
    schedule, prediction = schedule_of(_json(folder / "scheduler" / "scheduler_config.json"))
    codec = DiffusersCodec(vae)
    scaling = {"scaling_factor": codec.scaling_factor, "shift_factor": codec.shift_factor}
    known = colours(folder, codec.latent_channels)
    model = DiffusersModel(unet, with_signal(schedule), prediction, **scaling, colours=known)
    return model, _text(tokenizers, encoders), codec


def _text(tokenizers: list[Any], encoders: list[Any]) -> DiffusersText:
    if len(encoders) == 1:
        return DiffusersText((Tower.of(tokenizers[0], encoders[0]),))
    # SDXL takes the hidden state before the last, as it is, and its second tower pads with token 0.
    first = Tower.of(tokenizers[0], encoders[0], layer=-2, normed=False)
    return DiffusersText((first, Tower.of(tokenizers[1], encoders[1], layer=-2, normed=False, pad=0)))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected a diffusers pipeline folder, whole")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); copy or download it again") from error


_CLASSES = {
    "UNet2DConditionModel": ("diffusers", "diffusion_pytorch_model"),
    "AutoencoderKL": ("diffusers", "diffusion_pytorch_model"),
    "VQModel": ("diffusers", "diffusion_pytorch_model"),
    "CLIPTextModel": ("transformers", "model"),
    "CLIPTextModelWithProjection": ("transformers", "model"),
}


def _part(folder: Path, index: Mapping[str, Any], name: str) -> nn.Module:
    """One network of a pipeline folder."""
    kind = index.get(name, [None, None])[1]
    if kind not in _CLASSES:
        raise ValueError(f"{folder}: {name} is {kind or 'missing'}, expected one of {', '.join(_CLASSES)}")
    library, stem = _CLASSES[kind]
    variant = _checked(folder / name, stem)
    loader = getattr(importlib.import_module(library), kind)
    with _quiet():
        return loader.from_pretrained(folder / name, variant=variant, local_files_only=True, use_safetensors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar for reading a file, which would cut through the caller's."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _checked(folder: Path, stem: str) -> str | None:
    """Which variant of the weights is there (None the plain one), after a look at every file's header."""
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob(f"{stem}*.safetensors"))
    if not files:
        pickled = next((each for each in folder.glob("*") if each.suffix in PICKLES), None)
        if pickled:
            read_weights(pickled)
        raise FileNotFoundError(f"{folder}: expected {stem}.safetensors, found no safetensors file")
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{file}: not a whole safetensors file ({error}); copy or download it again") from error
    plain = [each for each in files if each.name.removeprefix(stem).startswith((".safetensors", "-0"))]
    return None if plain else "fp16"


def load_file(path: str | os.PathLike[str]) -> Native:
    """A single-file checkpoint of SD1.5 or SDXL (base), safetensors, with its text encoder and autoencoder inside."""
    path = Path(path)
    weights = read_weights(path)
    try:
        family = family_of(weights)
        networks = build(family, weights)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    v_prediction = "v_pred" in weights
    schedule = NoiseSchedule.scaled_linear()
    if "ztsnr" in weights:
        schedule = with_signal(schedule.rescaled_to_zero_snr())
    del weights
    unet, vae, *encoders = networks
    tokenizer = tokenizer_for(path.with_suffix("") / "tokenizer", path.parent / "tokenizer")
    codec = DiffusersCodec(place(vae))
    model = DiffusersModel(
        place(unet, half=True),
        schedule,
        "v_prediction" if v_prediction else "epsilon",
        scaling_factor=codec.scaling_factor,
    )
    return model, _text([tokenizer] * len(encoders), [place(each) for each in encoders]), codec
