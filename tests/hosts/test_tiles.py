"""Tiles and what is given beside the noise mean the same in every host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from velatura.core.layer_patch import FIRST, LayerPatch
from velatura.core.tiles import Tiles, tiled

from .conftest import Loaded

TILES = Tiles(8, 4)
SEEN = LayerPatch(weights={FIRST: torch.randn(96, 4 + 12, 3, 3, generator=torch.Generator().manual_seed(5)) / 12})


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def raw(loaded: Loaded, given: Tensor) -> Tensor:
    return torch.cat([loaded.model.unscale(part) for part in given.split(4, 1)], 1)


@torch.no_grad()
def test_each_tile_sees_its_part_and_they_are_blended(loaded: Loaded):
    """The whole against the tiles computed one by one, each on a model that is given its part."""
    x, t, given = random(2, 4, 12, 20), torch.tensor([500, 500]), random(1, 12, 12, 20)
    condition = loaded.text.encode(["a red ball"])
    condition = condition.with_embedding(condition.embedding.expand(2, -1, -1))

    def told(model: Any, part: Tensor) -> Any:
        return loaded.host.model(loaded.host.with_layer_patch(model, SEEN, 1.0, 0.0, 1.0, raw(loaded, part)))

    def one(part: Tensor, window: Any) -> Tensor:
        return told(loaded.native[0], given[(..., *window)]).predict_noise(part, t, condition)

    whole = told(loaded.host.with_tiles(loaded.native[0], TILES), given).predict_noise(x, t, condition)
    torch.testing.assert_close(whole, tiled(one, x, TILES), atol=2e-5, rtol=2e-4)
    untiled = told(loaded.native[0], given).predict_noise(x, t, condition)
    assert (whole - untiled).abs().max() > 1e-4
    alone = loaded.model.predict_noise(x, t, condition)
    assert (untiled - alone).abs().max() > 1e-3  # what is given matters, and the model that was there stays


@torch.no_grad()
def test_a_latent_no_larger_than_a_tile_is_computed_as_ever(loaded: Loaded):
    x, t, condition = random(1, 4, 8, 6), torch.tensor([300]), loaded.text.encode(["a red ball"])
    made = loaded.host.model(loaded.host.with_tiles(loaded.native[0], TILES))
    torch.testing.assert_close(
        made.predict_noise(x, t, condition), loaded.model.predict_noise(x, t, condition), atol=1e-6, rtol=1e-5
    )


def test_tiles_in_tiles_are_refused(loaded: Loaded):
    once = loaded.host.with_tiles(loaded.native[0], TILES)
    with pytest.raises(ValueError, match="in tiles already; set tile to 0"):
        loaded.host.with_tiles(once, TILES)


@torch.no_grad()
def test_features_are_of_the_whole_or_refused(loaded: Loaded):
    """Those of the last tile are not taken for the picture's."""
    made = loaded.host.model(loaded.host.with_tiles(loaded.native[0], TILES))
    t, condition = torch.tensor([300]), loaded.text.encode(["a red ball"])
    with made.taps("mid") as seen, loaded.model.taps("mid") as whole:
        for model in (made, loaded.model):
            model.predict_noise(random(1, 4, 8, 8), t, condition)
        torch.testing.assert_close(seen["mid"], whole["mid"])
        with pytest.raises(ValueError, match="reads features of the whole picture; set tile to 0"):
            made.predict_noise(random(1, 4, 12, 8), t, condition)
    assert made.predict_noise(random(1, 4, 12, 8), t, condition).isfinite().all()
