"""The layer viewer with real pointers and keys in the real frontend, in both of its renderers."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, ImageDraw

from .conftest import CLASSIC_FIRST, Studio

SIDE = 128
GREEN, RED, BLUE = (40, 160, 60), (200, 30, 40), (30, 60, 200)
CHAIN = "VelaturaCompositeLayers"
NODES: list[tuple[int, str, tuple[int, int], tuple[int, int], list[Any]]] = [
    (1, "LoadImage", (20, 90), (180, 240), ["ground.png", "image"]),
    (2, "LoadImage", (20, 380), (180, 240), ["ball.png", "image"]),
    (3, CHAIN, (220, 90), (260, 260), ["ground", 1.0, 0, 0, "normal"]),
    (4, CHAIN, (500, 90), (260, 260), ["ball", 1.0, 10, 20, "normal"]),
    (5, CHAIN, (780, 90), (360, 620), ["shade", 0.5, 60, 60, "multiply"]),
    (6, "LoadImage", (20, 660), (180, 200), ["shade.png", "image"]),
    (7, "PreviewImage", (1170, 90), (180, 240), []),
]
WIRES = [
    (1, 0, 3, "image"), (3, 0, 4, "layers"), (2, 0, 4, "image"), (2, 1, 4, "mask"), (4, 0, 5, "layers"),
    (6, 0, 5, "image"), (5, 1, 7, "images"),
]  # fmt: skip


def opened(studio: Studio, renderer: str, theme: str = "dark") -> None:
    """A graph of three layers that has run."""
    ball = Image.new("RGBA", (48, 48))
    ImageDraw.Draw(ball).ellipse((4, 4, 43, 43), fill=(*RED, 255))
    ground, shade = (Image.new("RGB", (side, side), colour) for side, colour in ((SIDE, GREEN), (40, BLUE)))
    studio.begin(renderer, theme, ground=ground, ball=ball, shade=shade)
    studio.put(NODES, WIRES)
    studio.run()
    studio.page.wait_for_function("document.querySelectorAll('.velatura-list').length === 3")
    studio.page.wait_for_timeout(1000)


def viewer(studio: Studio) -> Any:
    """The last node's: the only one that shows three layers."""
    layers = studio.page.get_by_role("group", name="Layers", exact=True)
    return layers.filter(has=studio.page.locator(".velatura-list > :nth-child(3)"))


def values(studio: Studio, id_: int, *names: str) -> list[Any]:
    return studio.page.evaluate(
        "([id, names]) => names.map((name) => app.graph.getNodeById(id).widgets.find((w) => w.name === name).value)",
        [id_, names],
    )


def colour(studio: Studio, x: float, y: float) -> tuple[int, int, int]:
    """What the viewer's picture shows at a pixel of the stack."""
    box = viewer(studio).locator(".velatura-frame").bounding_box()
    picture = Image.open(io.BytesIO(studio.page.screenshot(clip=box))).convert("RGB")
    found = picture.getpixel((int((x + 0.5) * picture.width / SIDE), int((y + 0.5) * picture.height / SIDE)))
    assert isinstance(found, tuple)
    return found[0], found[1], found[2]


def near(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(abs(x - y) < 12 for x, y in zip(a, b, strict=True))


def drag(studio: Studio, start: tuple[float, float], end: tuple[float, float]) -> None:
    box, mouse = viewer(studio).locator(".velatura-keys").bounding_box(), studio.page.mouse
    for k, (x, y) in enumerate((start, end)):
        at = box["x"] + (x + 0.5) * box["width"] / SIDE, box["y"] + (y + 0.5) * box["height"] / SIDE
        mouse.move(*at, steps=5 if k else 1)
        if not k:
            mouse.down()
    mouse.up()


def test_layers_are_looked_through_moved_and_mixed(studio: Studio, renderer: str) -> None:
    opened(studio, renderer)
    page, view = studio.page, viewer(studio)
    rows = view.locator(".velatura-layer")
    assert rows.all_inner_texts() == ["shade", "ball", "ground"]
    assert near(colour(studio, 34, 44), RED) and near(colour(studio, 100, 10), GREEN)
    half = tuple((g + g * b // 255) // 2 for g, b in zip(GREEN, BLUE, strict=True))
    assert near(colour(studio, 95, 95), half), "multiply at half opacity"
    # The eye and solo change what is looked at, and no node.
    before = [values(studio, id_, "opacity", "x", "y") for id_ in (3, 4, 5)]
    view.get_by_role("button", name="Visible").nth(1).click()
    assert near(colour(studio, 34, 44), GREEN)
    view.get_by_role("button", name="Visible").nth(1).click()
    view.get_by_role("button", name="Solo").nth(1).click()
    assert near(colour(studio, 34, 44), RED) and not near(colour(studio, 100, 10), GREEN)
    view.get_by_role("button", name="Alpha: white is opaque").click()
    assert near(colour(studio, 34, 44), (255, 255, 255)) and near(colour(studio, 100, 10), (0, 0, 0))
    view.get_by_role("button", name="Alpha: white is opaque").click()
    view.get_by_role("button", name="Solo").nth(1).click()
    assert [values(studio, id_, "opacity", "x", "y") for id_ in (3, 4, 5)] == before
    # A drag takes what is under the pointer, and its node upstream hears of it.
    offset = page.evaluate("[...app.canvas.ds.offset]")
    drag(studio, (34, 44), (74, 34))
    assert values(studio, 4, "x", "y") == [50, 10]
    assert near(colour(studio, 74, 34), RED) and near(colour(studio, 20, 44), GREEN)
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Shift+ArrowDown")
    assert values(studio, 4, "x", "y") == [49, 20]
    assert page.evaluate("[...app.canvas.ds.offset]") == offset, "the graph was dragged along"
    page.get_by_text("74, 34: #c81e28").wait_for(timeout=10_000)
    studio.shot(f"layers, {renderer}")
    # Opacity, both ways.
    view.get_by_role("slider", name="Opacity of ball").focus()
    page.keyboard.press("Home")
    assert values(studio, 4, "opacity") == [0] and near(colour(studio, 74, 50), GREEN)
    page.evaluate("app.graph.getNodeById(4).widgets.find((each) => each.name === 'opacity').value = 1")
    page.wait_for_timeout(1200)
    assert near(colour(studio, 74, 40), RED)
    assert view.get_by_role("slider", name="Opacity of ball").get_attribute("aria-valuenow") == "1"


@CLASSIC_FIRST
def test_reordered_layers_come_back_reordered(studio: Studio, renderer: str) -> None:
    opened(studio, renderer, theme="light")
    view = viewer(studio)
    up = view.get_by_role("button", name="Up", exact=True)
    # The lowest makes the canvas, and the ball is smaller.
    assert [up.nth(k).is_enabled() for k in range(3)] == [False, True, False]
    up.nth(1).click()
    assert view.locator(".velatura-layer").all_inner_texts() == ["ball", "shade", "ground"]
    assert values(studio, 5, "name", "x", "y", "opacity", "blend") == ["ball", 10, 20, 1, "normal"]
    assert values(studio, 4, "name", "blend") == ["shade", "multiply"]
    told = studio.run()
    outputs = {each["data"]["node"]: each["data"]["output"] for each in told if isinstance(each, dict)
               and each["type"] == "executed"}  # fmt: skip
    (stack,) = outputs["5"]["velatura_layers"]
    assert [each["name"] for each in stack["layers"]] == ["ground", "shade", "ball"]
    studio.page.wait_for_timeout(1000)
    assert near(colour(studio, 34, 44), RED), "the ball's mask went along"
    studio.shot(f"layers, light, {renderer}")
