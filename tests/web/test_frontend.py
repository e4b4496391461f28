"""The frontend as a person meets it: open, look, run, go wrong, come back tomorrow."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import ROOT, Studio

EXAMPLES = sorted(each.stem for each in (ROOT / "example_workflows").glob("*.json"))


def test_the_first_visit_opens_on_our_examples_and_every_one_of_them_loads(studio: Studio) -> None:
    studio.open()
    page = studio.page
    page.get_by_text("text_to_image", exact=True).first.wait_for(timeout=120_000)
    # Those further down are loaded when they are scrolled to.
    shown = "[...document.images].filter((each) => each.src.startsWith('blob:') && each.naturalWidth > 0).length >= 4"
    page.wait_for_function(shown, timeout=120_000)
    page.wait_for_timeout(500)
    studio.shot("templates")
    studio.load("text_to_image")
    for name in EXAMPLES:
        document = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text())
        page.evaluate("async (graph) => { await app.loadGraphData(graph) }", document)
        assert sorted(studio.types()) == sorted(each["type"] for each in document["nodes"])
        unknown = page.evaluate("app.graph.nodes.filter((each) => each.has_errors).map((each) => each.type)")
        assert unknown == [], f"{name}: nodes that the frontend does not know"
        assert page.get_by_text("Missing Node", exact=False).count() == 0


def test_an_example_runs_with_progress_and_previews_and_shows_its_picture(studio: Studio, renderer: str) -> None:
    page = studio.page
    vue = json.dumps(renderer == "nodes 2.0")
    page.request.post(f"{studio.server.address}api/settings/Comfy.VueNodes.Enabled", data=vue)
    studio.open()
    studio.load("text_to_image")
    studio.set("KSampler", steps=6, seed=len(renderer))
    told = studio.run()
    assert any(isinstance(each, bytes) for each in told), "no preview"
    names = [each["type"] for each in told if isinstance(each, dict)]
    assert names.count("progress") >= 6 and "executed" in names
    page.wait_for_function(_SHOWN if renderer == "classic" else _SHOWN_IN_VUE, timeout=60_000)
    page.wait_for_timeout(500)
    studio.shot(f"result, {renderer}")


# Four pictures: the batch that the example makes.
_SHOWN = (
    "app.graph.nodes.find((each) => each.type === 'SaveImage').imgs?.filter((each) => each.naturalWidth).length === 4"
)
_SHOWN_IN_VUE = (
    "[...document.images].filter((each) => each.src.includes('text_to_image_') && each.naturalWidth).length >= 1"
)


def test_what_is_wrong_is_shown_on_its_node(studio: Studio) -> None:
    page = studio.page
    studio.open()
    studio.load("text_to_image")
    page.evaluate("app.graph.nodes.find((each) => each.type === 'VAEDecode').disconnectInput(1)")
    studio.run(until=None)
    page.get_by_text("missing a required input", exact=False).first.wait_for(timeout=60_000)
    wrong = page.evaluate("app.graph.nodes.filter((each) => each.has_errors).map((each) => each.type)")
    assert wrong == ["VAEDecode"]
    studio.shot("error")
    (refusal,) = studio.errors
    assert refusal.startswith("400 POST") and refusal.endswith("/api/prompt")
    studio.errors.clear()


def test_a_run_is_cancelled_from_the_page(studio: Studio) -> None:
    studio.open()
    studio.load("text_to_image")
    studio.set("KSampler", steps=2000, seed=5)
    start = len(studio.told)
    studio.run(until=None)
    studio.wait("progress", start)
    studio.page.evaluate("app.extensionManager.command.execute('Comfy.Interrupt')")
    studio.wait("execution_interrupted", start)
    queue = studio.page.request.get(f"{studio.server.address}api/queue").json()
    assert queue == {"queue_running": [], "queue_pending": []}


def test_the_draft_and_what_was_saved_are_there_after_a_reload(studio: Studio) -> None:
    page = studio.page
    studio.open()
    studio.load("text_to_image")
    studio.set("CLIPTextEncode", text="a blue feather, cold night from the left")
    page.evaluate("app.graph.change(); app.extensionManager.workflow?.activeWorkflow?.changeTracker?.checkState?.()")
    page.keyboard.press("Control+s")
    page.get_by_label("Enter the filename").or_(page.locator("input.p-inputtext, [role=dialog] input")).first.fill(
        "mine"
    )
    page.keyboard.press("Enter")
    saved = studio.server.home / "user" / "files" / "workflows" / "mine.json"
    for _ in range(100):
        if saved.is_file():
            break
        page.wait_for_timeout(100)
    assert "a blue feather" in saved.read_text()
    page.reload()
    page.wait_for_function("window.app?.graph?.nodes?.length > 3", timeout=120_000)
    assert _text(page) == "a blue feather, cold night from the left"


def test_a_saved_picture_dropped_on_the_canvas_brings_its_graph_back(studio: Studio) -> None:
    page = studio.page
    pictures = sorted((studio.server.home / "output").rglob("*.png"))
    if not pictures:
        pytest.skip("no run has left a picture")
    studio.open()
    page.get_by_text("text_to_image", exact=True).first.wait_for(timeout=120_000)
    page.keyboard.press("Escape")
    assert studio.types() == []
    page.evaluate(_DROP, [list(pictures[0].read_bytes()), pictures[0].name])
    page.wait_for_function("app.graph.nodes.length > 3", timeout=60_000)
    assert "KSampler" in studio.types() and "MarkdownNote" in studio.types(), "notes come with the saved form alone"


_DROP = """([bytes, name]) => {
  const data = new DataTransfer()
  data.items.add(new File([new Uint8Array(bytes)], name, { type: 'image/png' }))
  const options = { dataTransfer: data, bubbles: true, cancelable: true, clientX: 700, clientY: 500 }
  document.querySelector('#graph-canvas').dispatchEvent(new DragEvent('drop', options))
}"""


def _text(page: Any) -> str:
    return page.evaluate("app.graph.nodes.find((each) => each.type === 'CLIPTextEncode').widgets[0].value")
