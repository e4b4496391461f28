"""Ours and other people's on one model, in ComfyUI's own samplers: both have their effect, in either order, and each is
gone at strength 0; or the one is refused for what it would do to the other."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from velatura import hosts
from velatura.core.frame_patch import frame_patch_from
from velatura.core.layer_patch import LayerPatch
from velatura.core.lora import LowRank, LowRankDeltas, Target
from velatura.core.tiles import Tiles

from ..hosts.test_frame_patch import file
from . import beside
from .beside import Other, Scene, close, differ, sample, seeded, start
from .matrix import refused, works

pytestmark = pytest.mark.usefixtures("executor")

Ours = Callable[[Any, Any, float], Any]
"""A node of ours: (host, MODEL, strength) -> MODEL."""

ATTENTION = "down_blocks_1_attentions_1_transformer_blocks_0_attn1_to_v"


def low(seed: int) -> LowRank:
    return LowRank(seeded(64, 4, seed=seed), seeded(4, 64, seed=seed + 1) / 4)


def deltas(seed: int) -> LowRankDeltas:
    return LowRankDeltas({Target("unet", ATTENTION): low(seed)})


def lora(host: Any, model: Any, strength: float) -> Any:
    return host.with_lora(model, None, deltas(51), strength, 0.0)[0]


def guidance(host: Any, model: Any, strength: float) -> Any:
    return host.with_guidance(model, 0.3 * strength * seeded(32, 16, seed=53), 4.0)


def patch(first: int = 0) -> LayerPatch:
    weights = {"conv_in": 0.2 * seeded(32, first, 3, 3, seed=55)} if first else {}
    return LayerPatch({ATTENTION: low(56)}, weights, {"down_blocks_1_resnets_0_norm1": seeded(32, seed=57)})


def whole(host: Any, model: Any, strength: float) -> Any:
    return host.with_layer_patch(model, patch(), strength, 0.0, 1.0)


def part(host: Any, model: Any, strength: float) -> Any:
    return host.with_layer_patch(model, patch(), strength, 0.0, 0.6)


def given(host: Any, model: Any, strength: float) -> Any:
    return host.with_layer_patch(model, patch(8), strength, 0.0, 1.0, seeded(1, 4, 16, 16, seed=58))


def frames(host: Any, model: Any, strength: float) -> Any:
    with torch.inference_mode(False):
        made = frame_patch_from(file(2, False))
    return host.with_frame_patch(model, made, 0.5 * strength, 0.0, 1.0)


def told_frames(host: Any, model: Any, strength: float) -> Any:
    with torch.inference_mode(False):
        made, picture = frame_patch_from(file(2, True)), seeded(1, 3, 128, 128, seed=59)
    return host.with_frame_patch(model, made, 0.5 * strength, 0.0, 1.0, picture)


def share(host: Any, model: Any, strength: float) -> Any:
    """At strength 0: one layer, which sees nobody else."""
    return host.with_layers(model, [deltas(61), None] if strength else [None], [3.0, 1.0] if strength else [1.0])


def spatial(host: Any, model: Any, strength: float) -> Any:
    """Told of a map or of a small picture."""
    return host.with_layer_patch(model, patch(16), strength, 0.0, 1.0, seeded(1, 12, 16, 16, seed=60))


def tiled(host: Any, model: Any, strength: float) -> Any:
    """The same in tiles, of more than one cell at the network's depth; at strength 0 as a whole."""
    return spatial(host, host.with_tiles(model, Tiles(12, 8)) if strength else model, strength)


TOOL = {
    lora: "lora", guidance: "lcm", whole: "transparency", part: "transparency", given: "transparency",
    frames: "frames", told_frames: "frames", share: "share", spatial: "spatial", tiled: "spatial",
}  # fmt: skip
"""Which column of the table each is in."""
WEIGHTS = (beside.stock_lora, beside.hook_lora)
CONTROL = "the picture holds for all layers of the batch"
UNTILED = "not in tiles, where the whole picture would be taken for a tile's, or a tile for the whole: refused"
NOTES = {("frames", "controlnet"): CONTROL, ("share", "controlnet"): CONTROL}
NOTES |= dict.fromkeys([("spatial", "controlnet"), ("spatial", "sag"), ("spatial", "easy_cache")], UNTILED)
OTHERS: tuple[Other, ...] = (
    beside.stock_lora, beside.controlnet, beside.ip_adapter, beside.ip_adapter_at_depths, beside.area, beside.mask,
    beside.steps, beside.hook_lora, beside.zero_snr, beside.lcm_levels, beside.rescale_cfg, beside.free_u,
    beside.free_u_v2, beside.pag, beside.sag, beside.hyper_tile, beside.token_merging, beside.scaled, beside.deep_cache,
    beside.easy_cache,
)  # fmt: skip
TILES = "what it does to the tokens of self attention would mix up the layers"
REFUSALS = {
    ("share", "sag"): ("by itself", "PerturbedAttentionGuidance works"),
    ("share", "hyper_tile"): ("HyperTile", TILES),
    ("frames", "hyper_tile"): ("HyperTile", TILES),
    ("frames", "token_merging"): ("token merging", TILES),
    ("share", "windows"): ("context windows", ""),
    ("frames", "windows"): ("context windows", ""),
}
WORDS = "computed in tiles, which %s.* does not fit; set tile to 0, or take that away"
IN_TILES = {
    "controlnet": WORDS % "a ControlNet's", "sag": WORDS % "SelfAttentionGuidance", "easy_cache": WORDS % "EasyCache",
}  # fmt: skip


def row(other: Other) -> str:
    return other.__name__.removesuffix("_at_depths")


LIKE: dict[Any, tuple[Other, ...]] = {
    part: (beside.stock_lora, beside.controlnet, beside.zero_snr, beside.pag, beside.easy_cache),
    told_frames: (beside.controlnet, beside.ip_adapter, beside.hyper_tile, beside.token_merging),
}
"""What goes the way of another one, and what is different there."""


def pairs(refusals: bool) -> Iterator[Any]:
    for ours, tool in TOOL.items():
        for other in (*LIKE.get(ours, OTHERS), *([beside.windows] if refusals else [])):
            words, note = REFUSALS.get((tool, row(other)), ("", NOTES.get((tool, row(other)), "")))
            name, untiled = f"{ours.__name__}-{other.__name__}", ours is tiled and IN_TILES.get(row(other))
            if untiled:
                if refusals:
                    yield pytest.param(ours, other, untiled, id=name)
            elif refusals and words:
                yield pytest.param(ours, other, words, id=name, marks=refused(tool, row(other), note))
            elif not refusals and not words:
                yield pytest.param(ours, other, id=name, marks=works(tool, row(other), note))


Draw = Callable[..., Tensor]


@pytest.fixture(scope="module")
def draw(host: Any, plain: Any) -> Draw:
    """draw(ours, a, other, b, which comes first): the picture with both on the model, at their strengths."""
    known: dict[Any, Tensor] = {}

    def drawn(ours: Ours | None, a: float, other: Other | None, b: float, other_first: bool, count: int) -> Tensor:
        scene = start(plain)
        if other is not None and other_first:
            scene = other(scene, b)
        if ours is not None:
            scene = scene._replace(model=ours(host, scene.model, a))
        if other is not None and not other_first:
            scene = other(scene, b)
        # Caches need some steps; and this one does not hold two prompts as one batch of several pictures.
        return sample(scene, cfg=3.0 if count == 2 else 1.0, count=count)

    def draw(
        ours: Ours | None, a: float, other: Other | None, b: float, count: int, other_first: bool = True
    ) -> Tensor:
        key = (ours, a, other, b, count)
        if None not in (ours, other):
            return drawn(ours, a, other, b, other_first, count)
        if key not in known:
            known[key] = drawn(*key[:4], other_first, count)
        return known[key]

    return draw


@pytest.mark.parametrize(("ours", "other"), list(pairs(False)))
def test_both_have_their_effect(draw: Draw, ours: Ours, other: Other) -> None:
    n = 5 if other is beside.easy_cache else 2
    mine, theirs = draw(ours, 1.0, None, 0.0, n), draw(None, 0.0, other, 1.0, n)
    made = draw(ours, 1.0, other, 1.0, n)
    assert differ(theirs, draw(None, 0.0, None, 0.0, n)) and differ(made, mine) and differ(made, theirs)
    close(draw(ours, 1.0, other, 1.0, n, other_first=False), made)
    close(draw(ours, 0.0, other, 1.0, n), theirs)
    if other is not beside.lcm_levels:  # has no strength
        close(draw(ours, 1.0, other, 0.0, n, other_first=False), mine)


@pytest.mark.parametrize(("ours", "other", "words"), list(pairs(True)))
def test_what_cannot_be_is_refused(host: Any, plain: Any, ours: Ours, other: Other, words: str) -> None:
    # One prompt at once, as EasyCache would have it.
    scene = other(start(plain), 1.0)
    cfg = 1.0 if other is beside.easy_cache else 3.0
    with pytest.raises(ValueError, match=words):
        sample(scene._replace(model=ours(host, scene.model, 1.0)), cfg=cfg)
    scene = start(plain)
    with pytest.raises(ValueError, match=words):
        sample(other(scene._replace(model=ours(host, plain, 1.0)), 1.0), cfg=cfg)


TWICE = "two that put layers into one batch, or that are each told of a layer, are refused"
TWO = ((lora, guidance), (lora, given), (guidance, share), (whole, share), (given, share), (part, whole),
       (lora, frames), (guidance, told_frames), (lora, spatial), (guidance, tiled), (whole, tiled), (part, spatial),
       (share, spatial), (share, tiled), (frames, spatial), (frames, tiled), (told_frames, spatial))  # fmt: skip


def two() -> Iterator[Any]:
    for a, b in TWO:
        marks = [works(TOOL[each], "ours", "" if TOOL[each] in ("lora", "lcm") else TWICE) for each in (a, b)]
        yield pytest.param(a, b, id=f"{a.__name__}-{b.__name__}", marks=marks)


@pytest.mark.parametrize(("a", "b"), list(two()))
def test_two_of_ours_are_on_one_model(draw: Draw, a: Ours, b: Ours) -> None:
    def other(host: Any) -> Other:
        return lambda scene, strength: scene._replace(model=b(host, scene.model, strength))

    ours = other(hosts.load("comfyui"))
    made = draw(a, 1.0, ours, 1.0, 2)
    assert all(differ(made, draw(each, 1.0, None, 0.0, 2)) for each in (a, b))
    close(draw(a, 1.0, ours, 1.0, 2, other_first=False), made)
    close(draw(a, 0.0, ours, 1.0, 2), draw(b, 1.0, None, 0.0, 2))


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (share, share, "draws 2 layers together already"),
        (share, frames, "draws 2 layers together already"),
        (frames, share, "draws 2 layers together already"),
        (frames, told_frames, "draws 2 layers together already"),
        (given, given, "another patch with a given latent"),
        (given, spatial, "another patch with a given latent"),
        (spatial, given, "another patch with a given latent"),
        (spatial, spatial, "another patch with a given latent"),
        (tiled, tiled, "in tiles already; set tile to 0"),
    ],
    ids=lambda each: getattr(each, "__name__", "refused"),
)
def test_what_a_model_has_once_is_refused_twice(host: Any, plain: Any, a: Ours, b: Ours, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        b(host, a(host, plain, 1.0), 1.0)


@pytest.fixture(scope="module")
def inpainting(host: Any) -> Scene:
    """A model that is told a masked picture, and prompts that bring it, as the stock node makes them."""
    with torch.inference_mode():
        scene = start(beside.network(9))
        picture, hole = seeded(1, 4, 16, 16, seed=81), torch.zeros(1, 1, 128, 128)
        hole[..., 64:] = 1
        told = {"concat_latent_image": picture, "concat_mask": hole}
        positive, negative = ([[each[0][0], {**each[0][1], **told}]] for each in (scene.positive, scene.negative))
        return scene._replace(positive=positive, negative=negative, latent={**scene.latent, "noise_mask": hole})


TOLD = "patches that are told of a layer are refused: the inpainting model reads its own picture there"


@pytest.mark.parametrize(
    "ours",
    [
        pytest.param(each, id=each.__name__,
                     marks=works(TOOL[each], "inpaint", TOLD if TOOL[each] == "transparency" else ""))
        for each in (lora, guidance, whole, part, frames, share)
    ],
)  # fmt: skip
def test_inpainting_models_take_ours(host: Any, inpainting: Scene, ours: Ours) -> None:
    before = sample(inpainting)
    made = sample(inpainting._replace(model=ours(host, inpainting.model, 1.0)))
    assert differ(made, before)
    left, right = ((before - made).abs()[..., part].max() for part in (slice(7), slice(9, None)))
    assert float(left) < 1e-3 < float(right)  # outside of the hole the latent is the given one
    untold = [[[each[0][0], {}]] for each in (inpainting.positive, inpainting.negative)]
    model = ours(host, inpainting.model, 1.0)
    assert differ(sample(inpainting._replace(model=model, positive=untold[0], negative=untold[1])), made)
    close(sample(inpainting._replace(model=ours(host, inpainting.model, 0.0))), before)


def test_a_given_layer_is_refused_by_an_inpainting_model(host: Any, inpainting: Scene) -> None:
    with pytest.raises(ValueError, match="reads 9 channels, 4 of which are the latent"):
        host.with_layer_patch(inpainting.model, patch(12), 1.0, 0.0, 1.0, seeded(1, 8, 16, 16, seed=58))


def test_another_patchs_channels_are_not_taken_for_a_given_layers(host: Any, plain: Any) -> None:
    model = given(host, plain, 1.0)
    model.add_object_patch("concat_cond", lambda **known: seeded(1, 5, 16, 16, seed=82))
    with pytest.raises(ValueError, match="5 channels beside the noise in place of the given layer's 4"):
        sample(start(model))
