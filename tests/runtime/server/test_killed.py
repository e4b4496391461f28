"""The plug is pulled: what was saved is whole, before or after, never half."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")


@pytest.fixture
def start(tmp_path: Path):
    """Start `velatura serve` in a process of its own: (process, port)."""
    running = []

    def begin() -> tuple[subprocess.Popen, int]:
        command = [
            sys.executable,
            "-m",
            "velatura.runtime",
            "serve",
            "--port",
            "0",
            "--user-dir",
            str(tmp_path / "user"),
        ]
        command += ["--out", str(tmp_path / "output"), "--input", str(tmp_path / "input")]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", process.stdout.readline())
        assert found, process.communicate(timeout=60)
        return process, int(found[1])

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def ask(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body=body, headers=headers)
    answer = connection.getresponse()
    assert answer.status == 200
    found = answer.read()
    connection.close()
    return found


def workflow(version: int) -> bytes:
    """Large enough to be written in many pieces; it knows what it must look like."""
    return json.dumps({"version": version, "text": f"{version:04}" * 2_000_000}).encode()


def test_a_saved_workflow_outlives_a_kill_in_the_middle_of_saving(start, tmp_path):
    path = "/api/userdata/workflows%2Fmine.json"
    process, port = start()
    saved, stop = [], threading.Event()

    def save_on_and_on() -> None:
        version = 0
        while not stop.is_set():
            version += 1
            try:
                ask(port, "POST", path, workflow(version))
                ask(port, "POST", "/api/settings", json.dumps({"version": version}).encode())
            except (OSError, http.client.HTTPException):
                return
            saved.append(version)

    saver = threading.Thread(target=save_on_and_on)
    saver.start()
    while len(saved) < 5 and saver.is_alive():
        stop.wait(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stop.set()
    saver.join()
    files = list((tmp_path / "user" / "files" / "workflows").glob("*.json"))
    assert [each.name for each in files] == ["mine.json"]
    kept = json.loads(files[0].read_bytes())
    assert kept["version"] in (saved[-1], saved[-1] + 1), "a save that was confirmed is gone"
    assert files[0].read_bytes() == workflow(kept["version"])
    assert json.loads((tmp_path / "user" / "settings.json").read_bytes())["version"] in (saved[-1], saved[-1] + 1)

    process, port = start()
    assert ask(port, "GET", path) == files[0].read_bytes()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, "an ordinary end is no failure"


@pytest.mark.parametrize("half", ["workflow", "picture"])
def test_a_kill_while_a_file_is_half_written_leaves_every_file_whole(start, tmp_path, half):
    """Workflows and pictures are saved on and on, and the plug is pulled when one of the two is seen half written."""
    process, port = start()
    upload(port, "noise.png", NOISE)
    seen: dict[str, int] = {}
    savers = [
        threading.Thread(target=on_and_on, args=(seen, each, saving))
        for each, saving in (
            ("workflow", lambda k: save_workflow(port, k)),
            ("picture", lambda k: save_picture(port, k)),
        )
    ]
    for each in savers:
        each.start()
    folder = tmp_path / ("user/files/workflows" if half == "workflow" else "output/kept")
    while any(each.is_alive() for each in savers):
        time.sleep(0.0005)
        enough = all(seen.get(each, 0) >= 3 for each in ("workflow", "picture"))
        if enough and folder.is_dir() and any(name.endswith(".part") for name in os.listdir(folder)):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    for each in savers:
        each.join()
    (kept,) = (tmp_path / "user" / "files" / "workflows").glob("*.json")
    version = json.loads(kept.read_bytes())["version"]
    assert version in (seen["workflow"], seen["workflow"] + 1), "a save that was confirmed is gone"
    assert kept.read_bytes() == workflow(version)
    pictures = sorted((tmp_path / "output" / "kept").glob("*.png"))
    assert len(pictures) >= seen["picture"], "a picture of a job that is done is gone"
    original = Image.open(BytesIO(NOISE)).tobytes()
    for each in pictures:
        with Image.open(each) as picture:
            assert picture.tobytes() == original, f"{each.name} is half a picture"
            assert json.loads(picture.info["prompt"])["2"]["class_type"] == "SaveImage"

    _, port = start()
    assert ask(port, "GET", "/api/userdata/workflows%2Fmine.json") == kept.read_bytes()
    assert json.loads(ask(port, "GET", "/api/userdata?dir=workflows")) == ["mine.json"], "half a file is listed"
    done = json.loads(ask(port, "GET", "/api/history"))
    assert len(done) >= seen["picture"], "a job that was told as done is not remembered"
    for entry in done.values():
        (shown,) = entry["outputs"]["2"]["images"]
        assert (tmp_path / "output" / shown["subfolder"] / shown["filename"]) in pictures


def on_and_on(seen: dict[str, int], name: str, save: Callable[[int], None]) -> None:
    """Save versions 1, 2, 3 … until the server is gone; `seen` holds the last that was confirmed."""
    for version in range(1, 1000):
        try:
            save(version)
        except (OSError, http.client.HTTPException):
            return
        seen[name] = version


def save_workflow(port: int, version: int) -> None:
    ask(port, "POST", "/api/userdata/workflows%2Fmine.json", workflow(version))


def save_picture(port: int, version: int) -> None:
    """Run a graph that saves the uploaded picture once more, to its end."""
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "noise.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": f"kept/{version:03}"}},
    }
    id_ = json.loads(ask(port, "POST", "/api/prompt", json.dumps({"prompt": graph}).encode()))["prompt_id"]
    while not json.loads(ask(port, "GET", f"/api/history/{id_}")):
        time.sleep(0.01)


def upload(port: int, name: str, data: bytes) -> None:
    head = f'--x\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode()
    ask(port, "POST", "/api/upload/image", head + data + b"\r\n--x--\r\n", **FORM)


FORM = {"Content-Type": "multipart/form-data; boundary=x"}


def noise(size: int = 400) -> bytes:
    """A picture that takes a while to write."""
    stream = BytesIO()
    Image.effect_noise((size, size), 80).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


NOISE = noise()
