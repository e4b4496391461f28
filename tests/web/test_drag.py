"""The drag editor with real pointers and keys in the real frontend, in both of its renderers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from PIL import Image

from .conftest import CLASSIC_FIRST, Studio

WIDTH, HEIGHT = 128, 96
ARROW = {"from": [30, 20], "to": [90, 60]}


class Editor:
    """The editor on a page: places on its picture, and what came of them."""

    def __init__(self, studio: Studio, node: str = "VelaturaDragEditor"):
        self.studio, self.page, self.node = studio, studio.page, node
        self.keys = self.page.locator(".velatura-keys")
        self.keys.wait_for(timeout=60_000)
        self.page.wait_for_timeout(400)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the whole picture is on the screen."""
        box = self.keys.bounding_box()
        scale = min(box["width"] / WIDTH, box["height"] / HEIGHT)
        left = box["x"] + (box["width"] - scale * WIDTH) / 2
        top = box["y"] + (box["height"] - scale * HEIGHT) / 2
        return left + scale * (x + 0.5), top + scale * (y + 0.5)

    def drag(self, *places: tuple[float, float], button: str = "left") -> None:
        mouse = self.page.mouse
        mouse.move(*self.at(*places[0]))
        mouse.down(button=button)
        for place in places[1:]:
            mouse.move(*self.at(*place), steps=5)
        mouse.up(button=button)

    def value(self) -> dict[str, Any]:
        text = self.page.evaluate(
            "(type) => app.graph.nodes.find((each) => each.type === type).widgets.find((w) => w.name === 'drag').value",
            self.node,
        )
        return json.loads(text) if text else {}

    def points(self) -> list[list[float]]:
        return [[*each["from"], *each["to"]] for each in self.value().get("points", [])]

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def button(self, name: str) -> Any:
        return self.page.get_by_role("group", name="Drag editor").get_by_role("button", name=re.compile(f"^{name}"))


def near(points: list[list[float]], *wanted: list[float]) -> bool:
    """A screen's pixel is less than one of the picture."""
    return len(points) == len(wanted) and all(
        abs(a - b) <= 1 for one, other in zip(points, wanted, strict=True) for a, b in zip(one, other, strict=True)
    )


def opened(
    studio: Studio, renderer: str = "classic", theme: str = "dark", drag: str = "", wired: bool = True
) -> Editor:
    """A page with Load Image and an editor on it, at zoom 1.5."""
    picture = Image.radial_gradient("L").resize((WIDTH, HEIGHT))
    coloured = Image.merge("RGB", (picture, picture.rotate(180), Image.new("L", picture.size, 90)))
    studio.begin(renderer, theme, round=coloured)
    nodes = [(1, "LoadImage", (20, 90), (200, 300), ["round.png", "image"]),
             (2, "VelaturaDragEditor", (260, 90), (330, 480), [drag]),
             (3, "PreviewImage", (630, 90), (200, 240), [])]  # fmt: skip
    studio.put(nodes, [(1, 0, 2, "image"), (2, 2, 3, "images")], zoom=1.5)
    return Editor(studio)


def test_an_arrow_is_drawn_moved_and_removed_and_all_of_it_undone(studio: Studio, renderer: str) -> None:
    editor = opened(studio, renderer)
    offset = studio.page.evaluate("[...app.canvas.ds.offset]")
    editor.drag((30, 20), (90, 60))
    assert near(editor.points(), [30, 20, 90, 60]) and editor.value()["size"] == [WIDTH, HEIGHT]
    editor.drag((100, 80), (20, 80))
    editor.drag((90, 60), (110, 30))  # the first one's target
    assert near(editor.points(), [30, 20, 110, 30], [100, 80, 20, 80])
    editor.drag((30, 20), (40, 50))  # and its handle
    assert near(editor.points(), [40, 50, 110, 30], [100, 80, 20, 80])
    editor.page.mouse.click(*editor.at(64, 5))  # beside everything
    assert len(editor.points()) == 2
    studio.shot(f"drag, {renderer}")
    editor.page.mouse.click(*editor.at(60, 80), button="right")  # on a line
    assert near(editor.points(), [40, 50, 110, 30])
    assert editor.page.locator(".litecontextmenu, .p-contextmenu, [role=menu]").count() == 0, "the graph's menu opened"
    editor.drag((40, 50), (-50, 500))
    assert near(editor.points(), [0, 95, 110, 30]), "a point must stay on the picture"
    editor.press("Control+z", "Control+z")
    assert near(editor.points(), [40, 50, 110, 30], [100, 80, 20, 80])
    editor.press("Control+z", "Control+z", "Control+z", "Control+z", "Control+z")
    assert editor.value() == {}
    assert sorted(studio.types()) == ["LoadImage", "PreviewImage", "VelaturaDragEditor"], "the graph was undone with it"
    editor.press("Control+Shift+z")
    assert near(editor.points(), [30, 20, 90, 60])
    editor.button("Clear").click()
    assert editor.value() == {}
    editor.button("Undo").click()
    assert near(editor.points(), [30, 20, 90, 60])
    assert studio.page.evaluate("[...app.canvas.ds.offset]") == offset, "the graph was dragged along"


@CLASSIC_FIRST
def test_the_keyboard_does_all_of_it(studio: Studio, renderer: str) -> None:
    editor = opened(studio, renderer)
    editor.keys.focus()
    editor.press("n")
    ((x, y, tx, ty),) = editor.points()
    assert near([[x, y, tx, ty]], [64, 48, 77, 48])
    editor.press("ArrowRight", "Shift+ArrowDown")
    assert editor.points() == [[x, y, tx + 1, ty + 10]]
    editor.press("PageUp", "ArrowLeft")
    assert editor.points() == [[x - 1, y, tx + 1, ty + 10]]
    assert editor.page.get_by_text(f"handle 1 of 1: {round(x - 1)}, {round(y)}").count() == 1
    editor.press("Control+z", "Control+z")
    assert editor.points() == [[x, y, tx, ty]], "nudges of one end are one step"
    editor.press("b", "]", "Enter", "Shift+ArrowRight", "Enter", "e", "Enter")
    strokes = editor.value()["mask"]
    assert [each["paint"] for each in strokes] == [True, True, False]
    assert strokes[1]["path"][0][0] - strokes[0]["path"][0][0] == pytest.approx(10, abs=0.2)
    editor.press("PageDown", "Delete")
    assert editor.points() == [] and len(editor.value()["mask"]) == 3
    editor.press("Delete")
    assert "VelaturaDragEditor" in studio.types(), "the node itself was removed"
    # Tab leaves it.
    editor.press("Tab")
    assert editor.page.evaluate("document.activeElement.className") != "velatura-keys"


def test_a_mask_is_painted_and_a_reload_keeps_it(studio: Studio, renderer: str) -> None:
    editor = opened(studio, renderer)
    editor.drag((30, 20), (90, 60))
    editor.button("Brush").click()
    editor.drag((20, 50), (60, 50), (100, 70))
    editor.press("e")
    editor.drag((60, 30), (60, 70))
    strokes = editor.value()["mask"]
    assert [each["paint"] for each in strokes] == [True, False] and all(each["size"] > 2 for each in strokes)
    assert len(strokes[0]["path"]) < 60 and near([strokes[0]["path"][-1]], [100, 70])
    studio.shot(f"drag, mask, {renderer}")
    editor.page.wait_for_timeout(1500)  # drafts are saved a little later
    before = editor.value()
    editor.page.reload()
    editor.page.wait_for_function("window.app?.graph?.nodes?.length === 3", timeout=120_000)
    again = Editor(studio)
    assert again.value() == before
    again.page.wait_for_timeout(500)
    assert again.page.get_by_text("1 arrow, painted may move").count() == 1
    studio.shot(f"drag, reloaded, {renderer}")


def test_what_is_drawn_runs(studio: Studio, renderer: str) -> None:
    editor = opened(studio, renderer)
    editor.drag((30, 20), (90, 60))
    prompt = editor.page.evaluate("async () => (await app.graphToPrompt()).output")
    assert near([[*p["from"], *p["to"]] for p in json.loads(prompt["2"]["inputs"]["drag"])["points"]], [30, 20, 90, 60])
    assert set(prompt["2"]["inputs"]) == {"image", "drag"}
    told = studio.run()
    (output,) = [each["data"]["output"] for each in told if isinstance(each, dict) and each["type"] == "executed"
                 and each["data"]["node"] == "2"]  # fmt: skip
    assert output["velatura_editor"][0]["image"]["type"] == "temp"


@CLASSIC_FIRST
def test_a_picture_that_the_graph_makes_is_shown_by_the_run_that_lacks_a_drawing(studio: Studio, renderer: str) -> None:
    address, page = studio.server.address, studio.page
    page.request.post(f"{address}api/settings/Comfy.VueNodes.Enabled", data=json.dumps(renderer == "nodes 2.0"))
    studio.open()
    studio.load("text_to_image")
    page.evaluate(_GENERATED)
    page.wait_for_timeout(500)
    assert page.locator(".velatura-keys:visible").count() == 0
    studio.run(until="execution_error")
    page.locator(".velatura-keys:visible").wait_for(timeout=60_000)
    texts = [each["data"]["exception_message"] for each in studio.told if isinstance(each, dict)
             and each["type"] == "execution_error"]  # fmt: skip
    assert "nothing is drawn yet" in texts[0]
    page.keyboard.press("Escape")
    page.evaluate("document.querySelector('.velatura-keys').focus()")
    page.keyboard.press("n")
    told = studio.run()
    assert [each for each in told if isinstance(each, dict) and each["type"] == "executed"]
    studio.shot(f"drag, generated, {renderer}")


_GENERATED = """(() => {
  const find = (type) => app.graph.nodes.find((each) => each.type === type)
  find('KSampler').widgets.find((each) => each.name === 'steps').value = 2
  const editor = LiteGraph.createNode('VelaturaDragEditor')
  app.graph.remove(find('SaveImage'))
  editor.pos = [900, 500]
  app.graph.add(editor)
  app.canvas.ds.scale = 1
  app.canvas.ds.offset = [-800, -420]
  find('VAEDecode').connect(0, editor, 'image')
})()"""


@CLASSIC_FIRST
def test_a_finger_a_pen_the_wheel_and_the_middle_button(studio: Studio, renderer: str) -> None:
    editor = opened(studio, renderer, theme="light", drag=json.dumps({"points": [ARROW], "size": [WIDTH, HEIGHT]}))
    page, session = editor.page, editor.page.context.new_cdp_session(editor.page)
    for kind, place in (("mousePressed", (90, 60)), ("mouseMoved", (70, 60)), ("mouseReleased", (60, 40))):
        x, y = editor.at(*place)
        pen = {"type": kind, "x": x, "y": y, "button": "left", "buttons": 1, "clickCount": 1, "pointerType": "pen"}
        session.send("Input.dispatchMouseEvent", pen)
        if kind == "mouseMoved":
            x, y = editor.at(60, 40)
            session.send("Input.dispatchMouseEvent", {**pen, "x": x, "y": y})
    assert near(editor.points(), [30, 20, 60, 40])
    session.send("Emulation.setTouchEmulationEnabled", {"enabled": True})

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [dict(zip("xy", editor.at(*place), strict=True)) | {"id": k} for k, place in enumerate(places)]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", (60, 42))  # a finger does not hit exactly
    touch("touchMove", (70, 52))
    touch("touchMove", (100, 62))
    touch("touchEnd")
    assert near(editor.points(), [30, 20, 100, 60])
    # Two fingers: the picture grows, nothing is drawn.
    before, graph = editor.value(), page.evaluate("[...app.canvas.ds.offset, app.canvas.ds.scale]")
    touch("touchStart", (50, 80))
    touch("touchStart", (50, 80), (70, 80))
    touch("touchMove", (40, 80), (80, 80))
    touch("touchEnd")
    session.send("Emulation.setTouchEmulationEnabled", {"enabled": False})
    assert editor.value() == before
    page.wait_for_timeout(300)
    studio.shot(f"drag, light, {renderer}")
    editor.drag((60, 80), (70, 80))  # both fingers' middle: still (60, 80), but twice as large
    assert near(editor.points()[1:], [60, 80, 65, 80])
    editor.press("Control+z", "0")
    page.mouse.move(*editor.at(30, 20))
    page.mouse.wheel(0, -278)  # twice as large around the first handle
    page.wait_for_timeout(300)
    editor.drag((30, 20), (50, 20), button="middle")
    editor.drag((50, 20), (60, 20))
    assert near(editor.points(), [35, 20, 100, 60]), "zoom around the pointer, and the middle button moves the picture"
    page.keyboard.down(" ")
    editor.drag((60, 20), (50, 20))
    page.keyboard.up(" ")
    assert near(editor.points(), [35, 20, 100, 60])
    editor.press("0")
    editor.drag((35, 20), (30, 20))
    assert near(editor.points(), [30, 20, 100, 60])
    assert page.evaluate("[...app.canvas.ds.offset, app.canvas.ds.scale]") == graph, "the graph moved along"


def test_text_by_hand_and_pictures_of_another_size(studio: Studio) -> None:
    double = {"points": [{"from": [60.5, 40.5], "to": [180.5, 120.5]}], "size": [2 * WIDTH, 2 * HEIGHT]}
    editor = opened(studio, drag=json.dumps(double))
    editor.page.get_by_text("1 arrow, all may move").wait_for(timeout=30_000)
    editor.drag((90, 60), (80, 60))
    assert near(editor.points(), [30, 20, 80, 60]) and editor.value()["size"] == [WIDTH, HEIGHT]
    studio.set("VelaturaDragEditor", drag="arrows")
    editor.page.get_by_text("is no drawing").wait_for(timeout=30_000)
    studio.set("VelaturaDragEditor", drag=json.dumps({"points": [ARROW], "size": [WIDTH, WIDTH]}))
    editor.page.get_by_text("Drawn on a picture of 128×128", exact=False).wait_for(timeout=30_000)
    studio.shot("drag, another shape")
    studio.run(until="execution_error")
    failed = [each["data"] for each in studio.told if isinstance(each, dict) and each["type"] == "execution_error"]
    assert "drawn on, 128x128" in failed[0]["exception_message"]


@CLASSIC_FIRST
def test_what_goes_takes_its_listeners_along(studio: Studio, renderer: str) -> None:
    editor = opened(studio, renderer)
    editor.page.evaluate("app.graph.clear()")
    editor.page.wait_for_timeout(300)
    assert editor.page.locator(".velatura-panel").count() == 0
    editor.page.mouse.click(600, 400, button="middle")


@CLASSIC_FIRST
def test_a_drag_is_watched_and_what_it_did_stays(studio: Studio, renderer: str) -> None:
    picture = Image.radial_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB")
    studio.begin(renderer, round=picture)
    drag = {"points": [ARROW], "mask": [{"paint": True, "size": 40, "path": [ARROW["from"]]}], "size": [WIDTH, HEIGHT]}
    values = ["quality", 4, 0.7, 3, 0.02, True, True, 2, 0.46, len(renderer), "fixed", False]
    nodes = [
        (1, "VelaturaDemoModel", (20, 90), (200, 110), ["sprites"]),
        (2, "CLIPTextEncode", (20, 260), (200, 110), ["a red ball"]),
        (3, "LoadImage", (20, 430), (200, 240), ["round.png", "image"]),
        (4, "VelaturaDragEditor", (250, 90), (300, 480), [json.dumps(drag)]),
        (5, "VelaturaDrag", (580, 60), (360, 800), values),
        (6, "PreviewImage", (970, 90), (200, 240), []),
    ]
    wires = [(1, 1, 2, "clip"), (3, 0, 4, "image"), (1, 0, 5, "model"), (2, 0, 5, "positive"), (1, 2, 5, "vae"),
             (4, 0, 5, "points"), (4, 1, 5, "mask"), (4, 2, 5, "image"), (5, 0, 6, "images")]  # fmt: skip
    studio.put(nodes, wires)
    told = studio.run()
    steps = [each["data"] for each in told if isinstance(each, dict) and each["type"] == "velatura.drag"]
    assert steps and {each["node"] for each in steps} == {"5"}
    assert near([[*steps[0]["targets"][0], 0, 0]], [*ARROW["to"], 0, 0]), "the editor's points arrived"
    live = studio.page.get_by_role("group", name="Drag, as it goes on")
    live.get_by_text("px to go", exact=False).wait_for(timeout=30_000)
    studio.page.get_by_role("slider", name="Step to read out").wait_for(timeout=30_000)
    studio.page.wait_for_timeout(500)
    shown = live.locator("canvas").evaluate(
        "(canvas) => canvas.getContext('2d').getImageData(canvas.width / 2, canvas.height / 2, 1, 1).data[3]"
    )
    assert shown == 255, "there is no picture in the middle of it"
    studio.shot(f"drag, done, {renderer}")
