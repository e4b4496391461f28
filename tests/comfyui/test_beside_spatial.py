"""Maps and small pictures that a model is told of, in tiles and as a whole, where others cut the latent, or the batch,
or want the whole of it."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

import pytest

from velatura.core.tiles import Tiles

from . import beside
from .beside import close, differ, sample, seeded, start
from .matrix import refused, works
from .test_beside_samplers import TOOL, Ours, given, guidance, lora, part, patch, spatial, tiled, told_frames, whole

pytestmark = pytest.mark.usefixtures("executor")


def test_a_given_layers_picture_is_none_of_a_tiles(host: Any, plain: Any) -> None:
    for model in (tiled(host, told_frames(host, plain, 1.0), 1.0), told_frames(host, tiled(host, plain, 1.0), 1.0)):
        with pytest.raises(ValueError, match="computed in tiles, which a given layer's whole picture does not fit"):
            sample(start(model))


def test_what_does_not_fit_tiles_fits_a_picture_of_one(host: Any, plain: Any) -> None:
    """A picture no larger than a tile is computed as a whole, beside all that wants the whole."""
    for other in (beside.controlnet, beside.sag):
        made = []
        for model in (plain, host.with_tiles(plain, Tiles(16, 8))):
            scene = other(start(spatial(host, model, 1.0)), 1.0)
            made.append(sample(scene))
        close(*made)


def rows_of_maps(host: Any, model: Any, strength: float) -> Any:
    """Every row of the batch is told another map."""
    return host.with_layer_patch(model, patch(16), strength, 0.0, 1.0, seeded(5, 12, 16, 16, seed=60))


@pytest.mark.parametrize(
    "ours",
    [
        pytest.param(each, id=each.__name__, marks=works(tool, "windows"))
        for each, tool in (*((one, TOOL[one]) for one in (lora, guidance, whole, part, given, spatial, tiled)),
                           (rows_of_maps, "spatial"))
    ],
)  # fmt: skip
def test_context_windows_cut_batches_and_each_row_keeps_its_own(host: Any, plain: Any, ours: Ours) -> None:
    """Rows know nothing of each other, so the windows that they are computed in are not seen in them."""
    # ComfyUI finds out which step it is for as many rows as levels only.
    scene, steps, sizes = start(ours(host, plain, 1.0), rows=5), 4, []
    hook = plain.model.diffusion_model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    whole_batch = sample(scene, count=steps)
    assert set(sizes) == {10}
    sizes.clear()
    windowed = sample(beside.windows(scene, 1.0), count=steps)
    hook.remove()
    assert max(sizes) <= 6
    close(windowed, whole_batch)
    assert differ(windowed, sample(start(plain, rows=5), count=steps))
    before = beside.windows(start(plain, rows=5), 1.0)
    close(sample(before._replace(model=ours(host, before.model, 1.0)), count=steps), whole_batch)


def test_context_windows_over_the_width_cut_the_map_as_well(host: Any, plain: Any) -> None:
    """ComfyUI's node may cut any side: each window is told its part."""

    def cut(model: Any) -> Any:
        node = beside.extra("nodes_context_windows").ContextWindowsManualNode
        return beside.first(node.execute(model, 8, 4, "standard_static", 1, False, "pyramid", 3))

    seen: list[tuple[int, ...]] = []
    hook = plain.model.diffusion_model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    made = sample(start(cut(spatial(host, plain, 1.0)), rows=1))
    hook.remove()
    assert {shape[1:] for shape in seen} == {(16, 16, 8)}
    close(sample(start(spatial(host, cut(plain), 1.0), rows=1)), made)
    assert differ(made, sample(start(cut(plain), rows=1)))


@pytest.mark.parametrize(
    "ours", [pytest.param(each, id=each.__name__, marks=refused("spatial", "inpaint")) for each in (spatial, tiled)]
)
def test_a_map_is_refused_by_an_inpainting_model(host: Any, ours: Ours) -> None:
    with pytest.raises(ValueError, match="reads 9 channels, 4 of which are the latent"):
        ours(host, beside.network(9), 1.0)
