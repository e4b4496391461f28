"""The real frontend in a real browser, on a server of its own.

Needed are `playwright` and `comfyui-frontend-package` (both in the project's extras) and a Chromium: VELATURA_BROWSER
names one, else it is looked for on the path. Screenshots are left in output/screenshots. Where a browser must be there,
VELATURA_REQUIRE_BROWSER=1 makes its lack a failure.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "output" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
EXPECTED = ("userdata/comfy.templates.json",)
"""Asked for at every start, and not there before the user made one: ComfyUI answers 404 as well."""


def _lacking() -> str | None:
    for package in ("playwright", "comfyui_frontend_package", "aiohttp"):
        if importlib.util.find_spec(package) is None:
            return f"the Python package {package} is not installed"
    return None if _browser() else "there is no Chromium (VELATURA_BROWSER names one, or install Debian's `chromium`)"


def _browser() -> str | None:
    return os.environ.get("VELATURA_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The browser."""
    lacking = _lacking()
    if lacking:
        if os.environ.get("VELATURA_REQUIRE_BROWSER"):
            pytest.fail(lacking)
        pytest.skip(lacking)
    from playwright.sync_api import sync_playwright

    quiet = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run"]
    # Root, as in a container, has no sandbox.
    rooted = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_browser(), args=[*quiet, *rooted])
        yield browser
        browser.close()


class Serving(NamedTuple):
    """A server: its address and its folders."""

    address: str
    home: Path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """`velatura serve` in a process of its own."""
    home = tmp_path_factory.mktemp("server")
    command = [sys.executable, "-m", "velatura.runtime", "serve", "--port", "0"]
    command += ["--user-dir", str(home / "user"), "--out", str(home / "output"), "--input", str(home / "input")]
    with open(home / "log", "w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+/", line)
        assert found, (line, (home / "log").read_text())
        yield Serving(found[0], home)
        process.terminate()
        process.communicate(timeout=60)


class Studio:
    """A page, and what came of it: requests to anywhere else, errors, what the server told."""

    def __init__(self, chromium: Any, server: Serving):
        self.server = server
        self.context = chromium.new_context(viewport={"width": 1500, "height": 900})
        self.page = self.context.new_page()
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
        self.page.wait_for_function("window.app?.graph?.nodes", timeout=120_000)

    def load(self, name: str) -> None:
        """An example, out of the dialog that the page opens with."""
        self.page.get_by_text(name, exact=True).first.click(timeout=120_000)
        self.page.wait_for_function("app.graph.nodes.length > 3", timeout=120_000)

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
        for _ in range(1200):
            names = [each["type"] for each in self.told[start:] if isinstance(each, dict)]
            if until in names:
                return self.told[start:]
            assert until == "execution_error" or "execution_error" not in names, self.told[-3:]
            self.page.wait_for_timeout(100)
        raise AssertionError(f"no {until} in two minutes; the last messages: {self.told[-3:]}")

    def shot(self, name: str) -> None:
        """Leave a screenshot."""
        self.page.screenshot(path=SHOTS / f"{name}.png")

    def types(self) -> list[str]:
        """The classes of the nodes on the canvas."""
        return self.page.evaluate("app.graph.nodes.map((each) => each.type)")


@pytest.fixture(params=["classic", "nodes 2.0"])
def renderer(request: pytest.FixtureRequest) -> str:
    """Each of the frontend's two ways to draw nodes."""
    return request.param


@pytest.fixture
def studio(chromium: Any, server: Serving) -> Iterator[Studio]:
    """A browser that was never here before. Nothing may go wrong that a test did not ask for."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    opened = Studio(chromium, server)
    yield opened
    opened.context.close()
    assert opened.outside == [], "the page asked other hosts"
    assert opened.errors == []
