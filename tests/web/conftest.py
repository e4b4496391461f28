"""The real frontend in a real browser, on a server of its own.

Needed are `playwright` and `comfyui-frontend-package` (both in the project's extras) and a Chromium: VELATURA_BROWSER
names one, else it is looked for on the path. Screenshots are left in output/screenshots. Where a browser must be there,
VELATURA_REQUIRE_BROWSER=1 makes its lack a failure.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from velatura.benchmarks import _chromium, _served

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "output" / "screenshots"
EXPECTED = ("userdata/comfy.templates.json",)
"""Asked for at every start, and not there before the user made one: ComfyUI answers 404 as well."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser."""
    lacking = _chromium.lacking()
    if lacking:
        if os.environ.get("VELATURA_REQUIRE_BROWSER"):
            pytest.fail(lacking)
        pytest.skip(lacking)
    with _chromium.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_served.Served]:
    """`velatura serve` in a process of its own."""
    with _served.served(tmp_path_factory.mktemp("server")) as server:
        yield server


class Studio:
    """A page, and what came of it: requests to anywhere else, errors, what the server told."""

    def __init__(self, chromium: Any, server: _served.Served):
        self.server = server
        self.context = chromium.new_context(viewport={"width": 1500, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_navigation_timeout(120_000)
        self.outside: list[str] = []
        self.errors: list[str] = []
        self.told: list[Any] = []
        self.page.on("request", self._asked)
        self.page.on("response", self._answered)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("websocket", lambda socket: socket.on("framereceived", self._heard))

    def _asked(self, request: Any) -> None:
        own = (self.server.address, self.server.address.replace("http", "ws", 1), "data:", "blob:")
        if not request.url.startswith(own):
            self.outside.append(request.url)

    def _answered(self, response: Any) -> None:
        # That every example has its thumbnail is tested without a browser.
        expected = response.url.endswith(EXPECTED) or "/workflow_templates/" in response.url
        if response.status >= 400 and not expected:
            self.errors.append(f"{response.status} {response.request.method} {response.url}")

    def _heard(self, frame: str | bytes) -> None:
        self.told.append(json.loads(frame) if isinstance(frame, str) else frame)

    def open(self) -> None:
        """Load the page, up to where a graph can be put on it."""
        self.page.goto(self.server.address)
        self.page.wait_for_function("window.app?.graph?.nodes", timeout=300_000)

    def begin(self, renderer: str, theme: str = "dark", **pictures: Image.Image) -> None:
        """The page with an empty graph, and pictures `NAME.png` for Load Image."""
        address, post = self.server.address, self.page.request.post
        for name, value in (("VueNodes.Enabled", renderer == "nodes 2.0"), ("ColorPalette", theme)):
            post(f"{address}api/settings/Comfy.{name}", data=json.dumps(value))
        for name, picture in pictures.items():
            stream = io.BytesIO()
            picture.save(stream, "PNG")
            upload = {"name": f"{name}.png", "mimeType": "image/png", "buffer": stream.getvalue()}
            post(f"{address}api/upload/image", multipart={"image": upload, "overwrite": "true"})
        self.open()
        self.page.get_by_text("text_to_image", exact=True).first.wait_for(timeout=120_000)
        self.page.keyboard.press("Escape")

    def put(self, nodes: Sequence[Sequence[Any]], wires: Sequence[Sequence[Any]], zoom: float = 1) -> None:
        """A graph of nodes (id, class, place, size, values) and wires (from, slot, to, input's name)."""
        documents = [
            {"id": id_, "type": type_, "pos": pos, "size": size, "flags": {}, "mode": 0, "order": id_,
             "widgets_values": values, "properties": {}}
            for id_, type_, pos, size, values in nodes
        ]  # fmt: skip
        graph = {"version": 0.4, "last_node_id": 99, "last_link_id": 0, "nodes": documents, "links": [], "groups": []}
        self.page.evaluate(_PUT, [graph, wires, zoom])
        self.page.wait_for_timeout(500)

    def load(self, name: str) -> None:
        """An example, out of the dialog that the page opens with."""
        self.page.get_by_text(name, exact=True).first.click(timeout=300_000)
        self.page.wait_for_function("app.graph.nodes.length > 3", timeout=300_000)

    def load_another(self, name: str) -> list[str]:
        """An example, out of the same dialog opened again; the classes of its nodes."""
        self.page.evaluate("app.graph.clear(); app.extensionManager.command.execute('Comfy.BrowseTemplates')")
        self.load(name)
        self.page.get_by_role("dialog").wait_for(state="hidden", timeout=60_000)
        return self.types()

    def set(self, node: str, **values: Any) -> None:
        """Values of the widgets of a node, by its class."""
        self.page.evaluate(
            "([type, values]) => { const node = app.graph.nodes.find((each) => each.type === type);"
            "  for (const [name, value] of Object.entries(values))"
            "    node.widgets.find((each) => each.name === name).value = value; }",
            [node, values],
        )

    def run(self, until: str | None = "execution_success") -> list[Any]:
        """Press Run; what the server told, up to a message of this type."""
        start = len(self.told)
        self.page.get_by_role("button", name="Run", exact=True).first.click()
        return self.wait(until, start) if until else []

    def wait(self, until: str, start: int = 0) -> list[Any]:
        """What the server told from `start` on, once there is a message of this type among it."""
        for _ in range(3000):
            names = [each["type"] for each in self.told[start:] if isinstance(each, dict)]
            if until in names:
                return self.told[start:]
            assert until == "execution_error" or "execution_error" not in names, self.told[-3:]
            self.page.wait_for_timeout(100)
        raise AssertionError(f"no {until} in five minutes; the last messages: {self.told[-3:]}")

    def shot(self, name: str) -> None:
        """Leave a screenshot."""
        self.page.screenshot(path=SHOTS / f"{name}.png")

    def types(self) -> list[str]:
        """The classes of the nodes on the canvas."""
        return self.page.evaluate("app.graph.nodes.map((each) => each.type)")


_PUT = """async ([graph, wires, zoom]) => {
  await app.loadGraphData(graph)
  for (const [from, slot, to, name] of wires) {
    const [source, target] = [app.graph.getNodeById(from), app.graph.getNodeById(to)]
    source.connect(slot, target, target.inputs.findIndex((each) => each.name === name))
  }
  app.canvas.ds.scale = zoom
  app.canvas.ds.offset = [90 / zoom - 20, 20 / zoom]
  app.canvas.setDirty(true, true)
}"""


CLASSIC_FIRST = pytest.mark.parametrize(
    "renderer", ["classic", pytest.param("nodes 2.0", marks=pytest.mark.slow)], indirect=True
)
"""For what hardly depends on who draws the node: in the slow lane both."""


@pytest.fixture(params=["classic", "nodes 2.0"])
def renderer(request: pytest.FixtureRequest) -> str:
    """Each of the frontend's two ways to draw nodes."""
    return request.param


@pytest.fixture
def studio(chromium: Any, server: _served.Served) -> Iterator[Studio]:
    """A browser that was never here before. Nothing may go wrong that a test did not ask for."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    opened = Studio(chromium, server)
    yield opened
    opened.context.close()
    assert opened.outside == [], "the page asked other hosts"
    assert opened.errors == []
