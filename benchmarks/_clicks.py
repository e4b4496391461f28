"""From the click on Run to the first preview on the node, timed by the browser itself."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from ..core.protocols import Progress, no_progress

# Installed before the page's own scripts. The first binary message after the click is the preview; the page makes a
# picture of it, and draws that on the canvas (classic) or in an <img> (Nodes 2.0). The frame after that shows it.
_CLOCK = """() => {
  const clock = (window.clock = { made: new Set(), at: {}, refused: [] })
  const mark = (name) => { if (clock.at.clicked !== undefined) clock.at[name] ??= performance.now() }
  const begin = () => { clock.armed = false; clock.made.clear(); clock.at = { clicked: performance.now() } }
  document.addEventListener('click', () => { if (clock.armed) begin() }, true)
  document.addEventListener('securitypolicyviolation', (event) => clock.refused.push(event.blockedURI))
  const post = window.fetch
  window.fetch = async (...given) => {
    const posts = given[1]?.method === 'POST' && String(given[0]?.url ?? given[0]).endsWith('/api/prompt')
    if (posts) mark('posted')
    const answer = await post(...given)
    if (posts) mark('queued')
    return answer
  }
  window.WebSocket = class extends window.WebSocket {
    constructor(...given) {
      super(...given)
      this.addEventListener('message', (event) => { if (typeof event.data !== 'string') mark('received') })
    }
  }
  const make = URL.createObjectURL
  URL.createObjectURL = (blob) => {
    const url = make.call(URL, blob)
    if (clock.at.received !== undefined) clock.made.add(url)
    return url
  }
  const shown = () => requestAnimationFrame(() => mark('shown'))
  const draw = CanvasRenderingContext2D.prototype.drawImage
  CanvasRenderingContext2D.prototype.drawImage = function (image, ...rest) {
    if (clock.made.has(image?.src)) shown()
    return draw.call(this, image, ...rest)
  }
  document.addEventListener('load', (event) => { if (clock.made.has(event.target?.src)) shown() }, true)
}"""
_PARTS = ("posted", "queued", "received", "shown")
_PATIENCE = 120_000


EXAMPLE = "text_to_image"


class Page:
    """The real frontend in a browser that was never here before; `outside` notes what it asked of any other host, and
    `ready` when its graph was there (of `time.perf_counter`)."""

    def __init__(self, browser: Any, address: str):
        self.outside: list[str] = []
        self.own = (address, address.replace("http", "ws", 1), "data:", "blob:")
        self.context = browser.new_context(viewport={"width": 1500, "height": 900})
        self.page = self.context.new_page()
        for event in ("request", "websocket"):
            self.page.on(event, self._asked)
        self.page.add_init_script(f"({_CLOCK})()")
        self.page.goto(address, timeout=_PATIENCE)
        self.page.wait_for_function("window.app?.graph?.nodes", timeout=_PATIENCE)
        self.ready = time.perf_counter()

    def _asked(self, asked: Any) -> None:
        if not asked.url.startswith(self.own):
            self.outside.append(asked.url)

    def close(self) -> None:
        """Leave. What the page's security policy held back is among the `outside` from then on."""
        self.outside += self.page.evaluate("clock.refused")
        self.context.close()


def first_previews(page: Any, clicks: int, pictures: int | None, progress: Progress = no_progress) -> dict[str, float]:
    """Median milliseconds from the click on Run, to each of _PARTS, for the example that is loaded, with as many
    `pictures` at once as it says or these. Each click has a new seed; one before them warms up."""
    if pictures is not None:
        _set(page, "EmptyLatentImage", {"batch_size": pictures})
    laps = []
    for k in range(clicks + 1):
        laps.append(_lap(page, 100 * (pictures or 0) + k))
        progress(k + 1, clicks + 1, None)
    return {name: round(median(lap[name] for lap in laps[1:]), 1) for name in _PARTS}


def load_example(page: Any) -> None:
    """Out of the dialog that the page opens with. Three steps: only the time before the first is measured."""
    page.get_by_text(EXAMPLE, exact=True).first.click(timeout=_PATIENCE)
    page.wait_for_function("app.graph.nodes.length > 3", timeout=_PATIENCE)
    _set(page, "KSampler", {"steps": 3})


def _set(page: Any, node: str, values: dict[str, Any]) -> None:
    page.evaluate(
        "([type, values]) => { const node = app.graph.nodes.find((each) => each.type === type);"
        "  for (const [name, value] of Object.entries(values))"
        "    node.widgets.find((each) => each.name === name).value = value; }",
        [node, values],
    )


def _lap(page: Any, seed: int) -> dict[str, float]:
    """One click: milliseconds after it."""
    _set(page, "KSampler", {"seed": seed})
    page.evaluate("clock.armed = true")
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.wait_for_function("clock.at.shown !== undefined", timeout=_PATIENCE)
    at = page.evaluate("clock.at")
    # The run's end, and the page at rest again.
    idle = "async () => (await (await fetch('/api/prompt')).json()).exec_info.queue_remaining === 0"
    page.wait_for_function(idle, timeout=_PATIENCE, polling=200)
    page.wait_for_timeout(300)
    return {name: at[name] - at["clicked"] for name in _PARTS if name in at}
