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
    page.keyboard.press("Escape")
    for name in EXAMPLES:
        document = json.loads((ROOT / "example_workflows" / f"{name}.json").read_text())
        assert sorted(studio.load_another(name)) == sorted(each["type"] for each in document["nodes"])
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

FEW: dict[str, dict[str, Any]] = {
    "KSampler": {"steps": 2},
    "VelaturaInvert": {"steps": 2, "iterations": 1},
    "VelaturaInvertPair": {"steps": 2, "iterations": 1},
    "VelaturaMorph": {"frames": 3, "strip": 3},
    "VelaturaSmoothnessMeter": {"steps": 2, "frames": 3},
    "VelaturaDrag": {"steps": 4, "iterations": 1},
    "VelaturaJointLayers": {"steps": 2},
    "VelaturaConditionOnLayer": {"steps": 2},
    "VelaturaLayerStack": {"steps": 2},
    "EmptyLatentImage": {"batch_size": 1},
}
"""What makes an example quick. Those that train are loaded, not run."""
RUN = [name for name in EXAMPLES if name != "text_to_image" and not name.startswith("train_") and "distill" not in name]
ALWAYS = ("edit_by_prompt", "drag_fast", "layer_stack_to_psd", "lcm_four_steps", "morph_two_images")
"""One of each family; the rest in the slow lane."""


@pytest.mark.parametrize(
    "name", [name if name in ALWAYS else pytest.param(name, marks=pytest.mark.slow) for name in RUN]
)
def test_every_example_that_does_not_train_runs_and_shows_its_pictures(studio: Studio, name: str) -> None:
    studio.page.request.post(f"{studio.server.address}api/settings/Comfy.VueNodes.Enabled", data="false")
    studio.open()
    studio.load(name)
    for node in set(studio.types()) & set(FEW):
        studio.set(node, **FEW[node])
    told = studio.run()
    names = [each["type"] for each in told if isinstance(each, dict)]
    assert names.count("progress") >= 2 and "executed" in names
    assert any(isinstance(each, bytes) for each in told), "no preview"
    studio.page.wait_for_function(_ALL_SHOWN, timeout=60_000)
    studio.page.wait_for_timeout(500)
    studio.shot(name)


# Every node that saves or previews has its pictures.
_ALL_SHOWN = """(() => {
  const ends = app.graph.nodes.filter((each) => ['SaveImage', 'PreviewImage', 'SaveAnimatedWEBP'].includes(each.type))
  return ends.length > 0 && ends.every((each) => each.imgs?.length && each.imgs.every((img) => img.naturalWidth))
})()"""


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


def test_a_failure_while_it_runs_is_shown_on_its_node(studio: Studio, renderer: str) -> None:
    page = studio.page
    vue = json.dumps(renderer == "nodes 2.0")
    page.request.post(f"{studio.server.address}api/settings/Comfy.VueNodes.Enabled", data=vue)
    studio.open()
    studio.load("text_to_image")
    # Only the loading of the model runs besides it.
    page.evaluate(_SHORT_CUT)
    studio.set("EmptyLatentImage", width=64, height=64, batch_size=1)
    studio.set("SaveImage", filename_prefix="../../outside")
    told = studio.run(until="execution_error")
    (failure,) = [each["data"] for each in told if isinstance(each, dict) and each["type"] == "execution_error"]
    assert failure["node_type"] == "SaveImage" and "must name a file inside" in failure["exception_message"]
    page.get_by_text("Save Image failed", exact=False).first.wait_for(timeout=120_000)
    marked = "app.graph.getNodeById(Number(app.lastExecutionError.node_id)).type"
    assert page.evaluate(marked) == "SaveImage"
    page.wait_for_timeout(500)
    studio.shot(f"failure, {renderer}")


# The empty latent goes into the decoder directly.
_SHORT_CUT = """(() => {
  const find = (type) => app.graph.nodes.find((each) => each.type === type)
  find('EmptyLatentImage').connect(0, find('VAEDecode'), 0)
})()"""


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
    # And what was changed since, and not saved.
    studio.set("CLIPTextEncode", text="a red heart")
    page.evaluate("app.graph.change(); app.extensionManager.workflow?.activeWorkflow?.changeTracker?.checkState?.()")
    page.wait_for_timeout(1500)
    page.reload()
    page.wait_for_function("window.app?.graph?.nodes?.length > 3", timeout=120_000)
    assert _text(page) == "a red heart" and "a blue feather" in saved.read_text()


def test_a_saved_picture_dropped_on_the_canvas_brings_its_graph_back(studio: Studio) -> None:
    page = studio.page
    studio.open()
    studio.load("text_to_image")
    studio.set("KSampler", steps=1, seed=424242)
    studio.set("EmptyLatentImage", batch_size=1)
    studio.set("SaveImage", filename_prefix="dropped")
    studio.run()
    types = studio.types()
    (picture,) = (studio.server.home / "output").glob("dropped*.png")
    page.evaluate("app.graph.clear()")
    assert studio.types() == []
    page.evaluate(_DROP, [list(picture.read_bytes()), picture.name])
    page.wait_for_function("app.graph.nodes.length > 3", timeout=60_000)
    assert sorted(studio.types()) == sorted(types) and "MarkdownNote" in types, "notes come with the saved form alone"
    seed = "app.graph.nodes.find((each) => each.type === 'KSampler').widgets.find((each) => each.name === 'seed').value"
    assert page.evaluate(seed) == 424242


_DROP = """([bytes, name]) => {
  const data = new DataTransfer()
  data.items.add(new File([new Uint8Array(bytes)], name, { type: 'image/png' }))
  const options = { dataTransfer: data, bubbles: true, cancelable: true, clientX: 700, clientY: 500 }
  document.querySelector('#graph-canvas').dispatchEvent(new DragEvent('drop', options))
}"""


def _text(page: Any) -> str:
    return page.evaluate("app.graph.nodes.find((each) => each.type === 'CLIPTextEncode').widgets[0].value")
