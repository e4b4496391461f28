"""The graph in the browser, as a person and as many programs meet it: how soon the page is there and the first preview
shown, what is lost when much is asked at once, what nonsense does, and whether anything leaves the machine.

Needed are the `serve` and `dev` extras and a Chromium (VELATURA_BROWSER names one).
"""

from __future__ import annotations

import asyncio
import copy
import time
from pathlib import Path
from typing import Any

from ..core.protocols import Progress, no_progress
from ..runtime import registry, workflow

PROMPTS, CLIENTS, CASES, CLICKS = 200, 50, 5000, 7
QUICK = 20, 5, 100, 1
EXAMPLE = Path(__file__).resolve().parent.parent / "example_workflows" / "text_to_image.json"
STEPS = 2
REPORTED = STEPS + 1
"""The sampler's steps, and the decoder's one."""


def run(
    progress: Progress = no_progress,
    *,
    quick: bool = False,
    prompts: int = PROMPTS,
    clients: int = CLIENTS,
    cases: int = CASES,
    clicks: int = CLICKS,
) -> dict[str, Any]:
    """The figures of `velatura bench studio`. `quick` takes few of everything. RuntimeError says what is not here.

    `first_preview_ms` is the example as it ships, four pictures at once, from the click on Run to the frame that shows
    the preview; beside it the same for one picture, and when each part of the way was done. `boot_seconds`: from
    starting the process to the graph in an open browser, `boot_seconds_server` of it until the server answers.
    """
    if quick:
        prompts, clients, cases, clicks = QUICK
    from ._chromium import lacking
    from ._served import served

    missing = lacking()
    if missing:
        raise RuntimeError(f"the benchmark needs a browser: {missing}")
    from ._crowd import crowd
    from ._fuzz import fuzz

    done = _Parts(progress, {"page": 2 * (clicks + 1), "queue": prompts, "fuzz": cases})
    figures: dict[str, Any] = {}
    with served() as server:
        figures |= _page(server, clicks, done)

        def each_end(count: int) -> float:
            done.tell("queue", count)
            return server.memory()

        found = asyncio.run(crowd(server.address, _graphs(prompts), clients, REPORTED, each_end))
    figures |= {"queue_prompts": prompts, "queue_clients": clients, "queue_lost": found.lost}
    figures |= {"memory_mb": round(max(found.memory)), "memory_growth_mb": round(found.growth(), 1)}
    sent, wrong = fuzz(cases, lambda step, total, preview=None: done.tell("fuzz", step))
    return figures | {"fuzz_cases": sent, "fuzz_failures": len(wrong), "fuzz_wrong": wrong[:10]}


def _page(server: Any, clicks: int, done: _Parts) -> dict[str, Any]:
    from ._chromium import chromium
    from ._clicks import Page, first_previews, load_example

    answering = time.perf_counter()
    with chromium() as browser:
        opening = time.perf_counter()
        opened = Page(browser, server.address)
        load_example(opened.page)
        one = first_previews(opened.page, clicks, 1, lambda step, *rest: done.tell("page", step))
        four = first_previews(opened.page, clicks, 4, lambda step, *rest: done.tell("page", clicks + 1 + step))
        opened.close()
    return {
        # Starting the browser is not the server's.
        "boot_seconds": round(answering - server.started + opened.ready - opening, 2),
        "boot_seconds_server": round(answering - server.started, 2),
        "first_preview_ms": four["shown"],
        "first_preview_ms_one_picture": one["shown"],
        "first_preview_parts_ms": four,
        "first_preview_parts_ms_one_picture": one,
        "outside_requests": len(opened.outside),
    }


def _graphs(count: int) -> list[dict[str, Any]]:
    """The example, small and of few steps, each with another seed."""
    found = workflow.load(EXAMPLE, registry.object_info(registry.all_nodes())).prompt
    by_class = {node["class_type"]: id_ for id_, node in found.items()}
    graphs = []
    for seed in range(count):
        graph = copy.deepcopy(found)
        graph[by_class["EmptyLatentImage"]]["inputs"].update(batch_size=1, width=64, height=64)
        graph[by_class["KSampler"]]["inputs"].update(seed=seed, steps=STEPS)
        graphs.append(graph)
    return graphs


class _Parts:
    """One progress bar for parts that count by themselves."""

    def __init__(self, progress: Progress, sizes: dict[str, int]):
        self.progress, self.sizes = progress, sizes

    def tell(self, part: str, step: int) -> None:
        names = list(self.sizes)
        before = sum(self.sizes[name] for name in names[: names.index(part)])
        self.progress(min(before + step, self.total), self.total, None)

    @property
    def total(self) -> int:
        return sum(self.sizes.values())
