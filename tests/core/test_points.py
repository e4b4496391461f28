"""Drawn drags: what is written by hand or by the editor means what it says, and what is wrong says where."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from velatura.core.points import Drawing, Points, Stroke, parse, write

SIDES = st.integers(1, 64)


def places(width: int, height: int) -> st.SearchStrategy:
    return st.tuples(st.floats(0, width - 1), st.floats(0, height - 1))


@st.composite
def drawings(draw) -> Drawing:
    width, height = draw(SIDES), draw(SIDES)
    arrows = draw(st.lists(st.tuples(places(width, height), places(width, height)), min_size=1, max_size=4))
    around = st.tuples(st.floats(-20, width + 20), st.floats(-20, height + 20))
    stroke = st.builds(Stroke, st.booleans(), st.floats(0.5, 40), st.lists(around, min_size=1, max_size=4).map(tuple))
    return Drawing(tuple(arrows), tuple(draw(st.lists(stroke, max_size=3))), width, height)


@given(drawings())
def test_what_is_written_is_read_again(drawing):
    assert parse(write(drawing), 7, 9) == drawing


@given(drawings())
def test_points_are_those_that_were_drawn_and_lie_on_the_picture(drawing):
    points = drawing.points()
    assert (points.height, points.width) == (drawing.height, drawing.width)
    assert points.handles.tolist() == [pytest.approx(start) for start, _ in drawing.arrows]
    assert points.targets.tolist() == [pytest.approx(end) for _, end in drawing.arrows]


def by_hand(drawing: Drawing) -> list[list[float]]:
    """The mask, pixel by pixel: the last stroke that covers it decides."""

    def far(x, y, a, b):
        length = (b[0] - a[0]) ** 2 + (b[1] - a[1]) ** 2
        share = ((x - a[0]) * (b[0] - a[0]) + (y - a[1]) * (b[1] - a[1])) / length if length else 0
        share = min(max(share, 0), 1)
        return math.hypot(x - a[0] - share * (b[0] - a[0]), y - a[1] - share * (b[1] - a[1]))

    def value(x, y):
        for stroke in reversed(drawing.strokes):
            lines = list(zip(stroke.path, stroke.path[1:], strict=False)) or [(stroke.path[0], stroke.path[0])]
            least = min(far(x, y, *line) for line in lines)
            if abs(least - stroke.size / 2) < 1e-9:
                return None  # on the edge: rounding decides
            if least < stroke.size / 2:
                return float(stroke.paint)
        return 0.0

    return [[value(x, y) for x in range(drawing.width)] for y in range(drawing.height)]


@settings(max_examples=40)
@given(drawings())
def test_a_pixel_is_painted_within_half_a_brush_of_the_path_unless_erased_later(drawing):
    for got, wanted in zip(drawing.mask().tolist(), by_hand(drawing), strict=True):
        assert all(b is None or a == b for a, b in zip(got, wanted, strict=True))


def test_strokes_erase_and_paint_over_in_their_order():
    def mask(*strokes):
        return Drawing((), tuple(Stroke(paint, 9, ((8.0, 8.0),)) for paint in strokes), 17, 17).mask()

    assert mask(True).sum() == sum(x * x + y * y <= 4.5**2 for x in range(-8, 9) for y in range(-8, 9))
    assert mask(True, False).sum() == 0 and mask(False).sum() == 0
    assert torch.equal(mask(True, False, True), mask(True))


@given(drawings(), st.integers(2, 5))
def test_a_larger_picture_scales_and_comes_back(drawing, factor):
    width, height = drawing.width, drawing.height
    large = drawing.on(width * factor, height * factor)
    # The centre of a pixel is the centre of what it becomes.
    for (start, _), (there, _) in zip(drawing.arrows, large.arrows, strict=True):
        assert there[0] + 0.5 == pytest.approx((start[0] + 0.5) * factor)
    back = large.on(width, height)
    for (a, b), (c, d) in zip(drawing.arrows, back.arrows, strict=True):
        assert [*c, *d] == pytest.approx([*a, *b], abs=1e-9)
    for a, b in zip(drawing.strokes, back.strokes, strict=True):
        assert a.size == pytest.approx(b.size) and a.paint is b.paint


@given(drawings(), st.integers(2, 5))
def test_on_a_smaller_picture_every_point_still_lies_on_it(drawing, factor):
    width, height = drawing.width, drawing.height
    Drawing(drawing.arrows, (), width * factor, height * factor).on(width, height).points()


def test_sizes_are_rounded_and_another_shape_is_another_picture():
    text = '{"points": [{"from": [0, 0], "to": [1023, 341]}], "size": [1024, 683]}'
    small = parse(text, 768, 512).on(768, 512)
    assert small.arrows == (((0.0, 0.0), (767.0, pytest.approx(341.5 * 512 / 683 - 0.5))),)
    with pytest.raises(ValueError, match=r"drawn on, 1024x683, .*got 512x512"):
        parse(text, 512, 512).on(512, 512)


def test_by_hand_the_size_and_the_mask_may_be_left_out():
    drawing = parse('{"points": [{"from": [1, 2.5], "to": [3, 4]}]}', 8, 6)
    assert drawing == Drawing((((1.0, 2.5), (3.0, 4.0)),), (), 8, 6)


ARROW = {"from": [1, 1], "to": [2, 2]}
STROKE = {"paint": True, "size": 4, "path": [[1, 1]]}
WRONG = {
    "nothing": ("", "drag: this is no JSON"),
    "no JSON": ("{points}", "drag: this is no JSON"),
    "too deep": ("[" * 100_000, "drag: this is no JSON"),
    "a list": ([], 'the drag: expected an object with "points", got \\[\\]'),
    "no points": ({"mask": []}, 'the drag: expected an object with "points"'),
    "points of another kind": ({"points": {}}, "points: expected a list"),
    "nothing to drag": ({"points": []}, "points is empty"),
    "no target": ({"points": [ARROW, {"from": [1, 1]}]}, r'points\[1\]: expected an object with "from" and "to"'),
    "three numbers": ({"points": [{"from": [1, 1, 1], "to": [2, 2]}]}, r"points\[0\].from: expected \[x, y\]"),
    "a word": ({"points": [{"from": ["1", 1], "to": [2, 2]}]}, r"points\[0\].from: expected \[x, y\]"),
    "true": ({"points": [{"from": [True, 1], "to": [2, 2]}]}, r"points\[0\].from: expected \[x, y\]"),
    "NaN": ('{"points": [{"from": [NaN, 1], "to": [2, 2]}]}', r"points\[0\].from: expected \[x, y\]"),
    "right of it": ({"points": [{"from": [1, 1], "to": [8, 2]}]}, r"points\[0\].to: expected a place on the picture"),
    "above it": ({"points": [{"from": [1, -0.1], "to": [2, 2]}]}, r"points\[0\].from: .* \[0, 0\] to \[7, 5\]"),
    "outside of its own": ({"points": [ARROW], "size": [2, 2]}, r"points\[0\].to: .* \[0, 0\] to \[1, 1\]"),
    "one side": ({"points": [ARROW], "size": [8]}, r"size: expected \[width, height\]"),
    "half a pixel": ({"points": [ARROW], "size": [8.5, 6]}, r"size: expected \[width, height\]"),
    "no size at all": ({"points": [ARROW], "size": [0, 6]}, r"size: expected \[width, height\]"),
    "a mask of another kind": ({"points": [ARROW], "mask": "all"}, "mask: expected a list"),
    "no path": ({"points": [ARROW], "mask": [{"paint": True, "size": 4}]}, r'mask\[0\]: expected .*"path"'),
    "an empty path": ({"points": [ARROW], "mask": [STROKE | {"path": []}]}, r"mask\[0\].path: expected at least one"),
    "a broken path": (
        {"points": [ARROW], "mask": [STROKE, STROKE | {"path": [[0, 0], None]}]},
        r"mask\[1\].path\[1\]: expected \[x, y\]",
    ),
    "neither paint nor erase": (
        {"points": [ARROW], "mask": [STROKE | {"paint": 1}]},
        r"mask\[0\].paint: expected true",
    ),
    "no brush": ({"points": [ARROW], "mask": [STROKE | {"size": 0}]}, r"mask\[0\].size: expected .*above 0"),
    "far away": ({"points": [ARROW], "mask": [STROKE | {"path": [[1e9, 0]]}]}, r"mask\[0\].path\[0\]: expected"),
}


@pytest.mark.parametrize("given, message", WRONG.values(), ids=WRONG)
def test_what_is_wrong_says_where_and_what_was_expected(given, message):
    text = given if isinstance(given, str) else json.dumps(given)
    with pytest.raises(ValueError, match=message) as raised:
        parse(text, 8, 6)
    assert str(raised.value).startswith("drag: ") and len(str(raised.value)) < 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["points", "mask", "size", "from", "to", "paint", "path"]), inner)
    ),
    max_leaves=12,
)


@given(st.text() | JSON.map(json.dumps))
def test_whatever_is_given_is_a_drawing_or_one_clear_error(text):
    try:
        drawing = parse(text, 8, 6)
    except ValueError as error:
        assert str(error).startswith("drag: ")
    else:
        assert drawing.arrows


def test_points_made_elsewhere_are_checked_too():
    inside = torch.zeros(2, 2)
    with pytest.raises(ValueError, match=r"handles and targets \[N, 2\]"):
        Points(inside, torch.zeros(1, 2), 6, 8)
    with pytest.raises(ValueError, match="at least one"):
        Points(inside[:0], inside[:0], 6, 8)
    with pytest.raises(ValueError, match="targets lie outside of the picture of 8x6"):
        Points(inside, torch.tensor([[0.0, 0.0], [0.0, 5.1]]), 6, 8)
    with pytest.raises(ValueError, match="handles lie outside"):
        Points(inside * math.nan, inside, 6, 8)
