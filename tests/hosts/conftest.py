"""The same suite for every host. ComfyUI takes part where COMFYUI_PATH names a checkout of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from velatura import hosts
from velatura.core.protocols import Condition, LatentCodec, LatentModel, TextEncoder


class Loaded(NamedTuple):
    """One folder loaded in one host: its native values and the engine's view of them."""

    host: hosts.Host
    native: tuple[Any, Any, Any]
    model: LatentModel
    text: TextEncoder
    codec: LatentCodec


@pytest.fixture(scope="session", params=["diffusers", "comfyui"])
def loaded(request: pytest.FixtureRequest, random_folder: Path) -> Iterator[Loaded]:
    if request.param == "comfyui":
        if not os.environ.get("COMFYUI_PATH"):
            pytest.skip("COMFYUI_PATH is not set: ComfyUI's adapter is not tested here")
        request.getfixturevalue("comfyui")
    host = hosts.load(request.param)
    model, clip, vae = native = host.load_folder(random_folder)
    yield Loaded(host, native, host.model(model), host.text(clip), host.codec(vae))


@pytest.fixture
def x() -> torch.Tensor:
    """Three latents [3, 4, 16, 16]."""
    return torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def t() -> torch.Tensor:
    """A timestep for each of them."""
    return torch.tensor([999, 500, 20])


@pytest.fixture
def condition(loaded: Loaded) -> Condition:
    return loaded.text.encode(["a red ball", "a blue feather", ""])
