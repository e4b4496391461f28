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
from pathlib import Path

import pytest

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


def ask(port: int, method: str, path: str, body: bytes = b"") -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body=body)
    answer = connection.getresponse()
    assert answer.status == 200
    found = answer.read()
    connection.close()
    return found


def workflow(version: int) -> bytes:
    """Large enough to be written in many pieces; it knows what it must look like."""
    return json.dumps({"version": version, "nodes": [version] * 200_000}).encode()


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
