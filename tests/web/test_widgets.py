"""The widgets on their nodes, by mouse, pen, finger and keyboard, in both of the frontend's renderers."""

from __future__ import annotations

import io
import json
from typing import Any

from PIL import Image

from .conftest import CLASSIC_FIRST, ROOT, Studio

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
RED, BLUE = (200, 30, 40), (30, 60, 200)
STEPS, FRAMES = 3, 5
NODES: list[tuple[int, str, tuple[int, int], tuple[int, int], list[Any]]] = [
    (1, "VelaturaDemoModel", (20, 90), (260, 110), ["sprites"]),
    (2, "CLIPTextEncode", (20, 250), (260, 110), ["a red ball"]),
    (3, "LoadImage", (20, 410), (200, 60), ["red.png", "image"]),
    (4, "LoadImage", (20, 650), (200, 60), ["blue.png", "image"]),
    (5, "VelaturaInvertPair", (310, 90), (300, 690), ["negative prompt", STEPS, 2.0, 0, "fixed", 0, 0.005, 1, True, 0]),
    (6, "VelaturaMorph", (640, 90), (300, 480), [FRAMES, "linear", 8, 2]),
    (7, "VelaturaCompareImages", (970, 90), (300, 460), [4.0]),
    (8, "VelaturaLcmSchedule", (970, 600), (300, 250), [4, 1.0, 50, "paper"]),
    (9, "PreviewImage", (640, 640), (300, 200), []),
]
WIRES = [
    (1, 0, 5, "model"), (2, 0, 5, "positive_a"), (2, 0, 5, "positive_b"), (3, 0, 5, "image_a"), (4, 0, 5, "image_b"),
    (1, 1, 2, "clip"), (1, 2, 5, "vae"), (1, 0, 6, "model"), (5, 0, 6, "inversion"), (1, 2, 6, "vae"),
    (3, 0, 7, "image_a"), (4, 0, 7, "image_b"), (6, 1, 9, "images"),
]  # fmt: skip


def opened(studio: Studio, renderer: str = "classic", theme: str = "dark") -> None:
    """A page with the graph on it: nodes at their places, at zoom 1."""
    address, page = studio.server.address, studio.page
    for name, value in (("VueNodes.Enabled", renderer == "nodes 2.0"), ("ColorPalette", theme)):
        page.request.post(f"{address}api/settings/Comfy.{name}", data=json.dumps(value))
    for name, colour in (("red", RED), ("blue", BLUE)):
        stream = io.BytesIO()
        Image.new("RGB", (64, 64), colour).save(stream, "PNG")
        picture = {"name": f"{name}.png", "mimeType": "image/png", "buffer": stream.getvalue()}
        page.request.post(f"{address}api/upload/image", multipart={"image": picture, "overwrite": "true"})
    page.set_default_navigation_timeout(120_000)
    studio.open()
    page.get_by_text("text_to_image", exact=True).first.wait_for(timeout=120_000)
    page.keyboard.press("Escape")
    nodes = [{"id": id_, "type": type_, "pos": pos, "size": size, "flags": {}, "mode": 0, "order": id_,
              "widgets_values": values, "properties": {}} for id_, type_, pos, size, values in NODES]  # fmt: skip
    graph = {"version": 0.4, "last_node_id": 9, "last_link_id": 0, "nodes": nodes, "links": [], "groups": []}
    page.evaluate(_PUT, [graph, WIRES])
    page.get_by_role("group", name="Schedule").wait_for(timeout=60_000)
    page.wait_for_timeout(300)


_PUT = """async ([graph, wires]) => {
  await app.loadGraphData(graph)
  for (const [from, slot, to, name] of wires) {
    const [source, target] = [app.graph.getNodeById(from), app.graph.getNodeById(to)]
    source.connect(slot, target, target.inputs.findIndex((each) => each.name === name))
  }
  app.canvas.ds.scale = 1
  app.canvas.ds.offset = [60, 0]
  app.canvas.setDirty(true, true)
}"""


def slider(studio: Studio, name: str) -> Any:
    return studio.page.get_by_role("slider", name=name, exact=True)


def at(element: Any) -> float:
    return float(element.get_attribute("aria-valuenow"))


def colours(studio: Studio, box: dict[str, float], *shares: float) -> list[tuple[int, int, int]]:
    """The colours at shares of a box's width, half way down, as the screen shows them."""
    picture = Image.open(io.BytesIO(studio.page.screenshot(clip=box))).convert("RGB")  # pyright: ignore
    return [picture.getpixel((int(share * picture.width), picture.height // 4)) for share in shares]  # pyright: ignore


def near(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    return all(abs(x - y) < 12 for x, y in zip(a, b, strict=True))


def test_all_of_them_on_one_graph(studio: Studio, renderer: str) -> None:
    opened(studio, renderer)
    page = studio.page
    studio.set("VelaturaInvertPair", seed=len(renderer))
    told = studio.run()
    assert [each for each in told if isinstance(each, dict) and each["type"] == "velatura.curves"], "no curve was told"
    divider, frame = slider(studio, "Divider"), slider(studio, "Frame")
    page.wait_for_function("[...document.querySelectorAll('.velatura-frame img')].every((each) => each.naturalWidth)")
    page.wait_for_timeout(500)
    # The divider: red on its left, blue on its right, wherever it is dragged.
    box = divider.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.5, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, y, steps=4)
    page.mouse.up()
    assert abs(at(divider) - 0.2) < 0.02
    left, right = colours(studio, box, 0.1, 0.4)
    assert near(left, RED) and near(right, BLUE), (left, right)
    page.keyboard.press("End")
    assert at(divider) == 1 and near(colours(studio, box, 0.6)[0], RED)
    page.keyboard.press("PageDown")
    assert divider.get_attribute("aria-valuetext") == "90 % A, 10 % B"
    # The film.
    assert frame.get_attribute("aria-valuetext") == f"frame 1 of {FRAMES}"
    frame.focus()
    page.keyboard.press("ArrowRight")
    assert at(frame) == 1
    before = at(frame)
    page.get_by_role("button", name="Play", exact=True).click()
    page.wait_for_function("(before) => document.querySelector('.velatura-track').ariaValueNow != before", arg=before)
    page.get_by_role("button", name="Pause", exact=True).click()
    stopped = at(frame)
    page.wait_for_timeout(400)
    assert at(frame) == stopped
    # The curve: a point for each step, read out where the pointer is.
    step = slider(studio, "Step to read out")
    assert step.get_attribute("aria-valuemax") == str(STEPS - 1)
    box = step.bounding_box()
    page.mouse.move(box["x"] + 1, box["y"] + box["height"] / 2)
    assert (step.get_attribute("aria-valuetext") or "").startswith("step of the reconstruction 1, picture 1 ")
    page.get_by_role("button", name="log", exact=True).click()
    # The schedule follows its values without a run.
    studio.set("VelaturaLcmSchedule", steps=2)
    page.get_by_text("t 999 · 499", exact=False).wait_for()
    studio.set("VelaturaLcmSchedule", original_steps=30)
    page.get_by_text("expected a divisor of 1000", exact=False).wait_for()
    studio.set("VelaturaLcmSchedule", original_steps=50, steps=4)
    page.wait_for_timeout(800)
    studio.shot(f"widgets, {renderer}")
    # Far out the pictures are still there, and the divider is where the pointer is.
    page.evaluate("app.canvas.ds.scale = 0.4; app.canvas.setDirty(true, true)")
    page.wait_for_timeout(600)
    box = divider.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
    assert abs(at(divider) - 0.5) < 0.05
    left, right = colours(studio, box, 0.2, 0.8)
    assert near(left, RED) and near(right, BLUE), (left, right)
    # What goes takes all of it along.
    page.evaluate("app.graph.clear()")
    page.wait_for_timeout(300)
    assert page.locator(".velatura-panel").count() == 0


@CLASSIC_FIRST
def test_a_finger_and_a_pen_drag_as_a_mouse_does(studio: Studio, renderer: str) -> None:
    opened(studio, renderer, theme="light")
    page = studio.page
    page.evaluate(_SHOW, [{"filename": name, "subfolder": "", "type": "input"} for name in ("red.png", "blue.png")])
    divider = slider(studio, "Divider")
    divider.wait_for()
    page.wait_for_timeout(500)
    box, session = divider.bounding_box(), page.context.new_cdp_session(page)
    y = box["y"] + box["height"] / 2
    offset = page.evaluate("[...app.canvas.ds.offset]")

    def touch(kind: str, *points: float) -> None:
        places = [{"x": box["x"] + box["width"] * x, "y": y} for x in points]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    session.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    touch("touchStart", 0.5)
    touch("touchMove", 0.6)
    touch("touchMove", 0.8)
    touch("touchEnd")
    assert abs(at(divider) - 0.8) < 0.03
    for kind, x in (("mousePressed", 0.8), ("mouseMoved", 0.5), ("mouseMoved", 0.3), ("mouseReleased", 0.3)):
        pen = {"type": kind, "x": box["x"] + box["width"] * x, "y": y, "button": "left", "buttons": 1}
        session.send("Input.dispatchMouseEvent", {**pen, "clickCount": 1, "pointerType": "pen"})
    assert abs(at(divider) - 0.3) < 0.03
    assert page.evaluate("[...app.canvas.ds.offset]") == offset, "the graph was dragged along"
    # The wheel is the graph's.
    scale = page.evaluate("app.canvas.ds.scale")
    page.mouse.move(box["x"] + 20, y)
    page.mouse.wheel(0, 200)
    page.wait_for_function("(scale) => app.canvas.ds.scale < scale", arg=scale)
    studio.shot(f"widgets, light, {renderer}")


_SHOW = """([a, b]) => app.graph.nodes.find((each) => each.type === 'VelaturaCompareImages')
  .onExecuted({ velatura_compare: [{ a: [a], b: [b], names: ['A', 'B'] }] })"""


def test_saved_workflows_keep_their_values_in_their_places(studio: Studio, renderer: str) -> None:
    opened(studio, renderer)
    for path in EXAMPLES:
        document = json.loads(path.read_text())
        saved, prompt = studio.page.evaluate(
            "async (graph) => { await app.loadGraphData(graph);"
            "  return [app.graph.serialize(), (await app.graphToPrompt()).output] }",
            document,
        )
        values = {each["id"]: each.get("widgets_values") or [] for each in saved["nodes"]}
        for each in document["nodes"]:
            assert values[each["id"]] == (each.get("widgets_values") or []), (path.stem, each["type"])
        names = {name for each in prompt.values() for name in each["inputs"]}
        assert not {name for name in names if name.startswith("velatura")}, path.stem
    hints = {"VelaturaReconstruct": "With a VAE", "VelaturaPromptSwitchEdit": "With a VAE"}
    hints |= {"VelaturaDistillLcm": "While it runs", "VelaturaTrainSmoothLora": "While it runs"}
    for class_, hint in (
        hints | {"VelaturaTrainSmoothLora": "While it runs", "VelaturaMorph": "Run the graph"}
    ).items():
        studio.page.evaluate(_ALONE, class_)
        studio.page.locator(".velatura-hint", has_text=hint).wait_for(timeout=30_000)


_ALONE = """(type) => {
  app.graph.clear()
  const node = LiteGraph.createNode(type)
  node.pos = [300, 200]
  app.graph.add(node)
}"""


def test_what_was_shown_is_there_when_one_comes_back_to_a_workflow(studio: Studio) -> None:
    opened(studio)
    page = studio.page
    studio.set("VelaturaInvertPair", seed=1)
    studio.run()
    page.evaluate("app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.wait_for_function("app.graph.nodes.length === 0")
    page.evaluate("app.extensionManager.command.execute('Workspace.PreviousOpenedWorkflow')")
    page.wait_for_function("app.graph.nodes.length > 3")
    for name in ("Divider", "Frame", "Step to read out"):
        slider(studio, name).wait_for(timeout=30_000)
