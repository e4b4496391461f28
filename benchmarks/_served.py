"""`velatura serve` in a process of its own, as a user starts it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Served:
    """A server at work: its address, its folders below `home`, when it was started (of `time.perf_counter`)."""

    process: subprocess.Popen[str]
    address: str
    home: Path
    started: float

    def memory(self) -> float:
        """What the process holds in memory, in megabytes."""
        import psutil

        return psutil.Process(self.process.pid).memory_info().rss / 2**20


@contextlib.contextmanager
def served(home: Path | None = None) -> Iterator[Served]:
    """A server on a free port with folders of its own, in `home` or else in ones that are gone afterwards.

    RuntimeError with what it wrote if it does not start.
    """
    with tempfile.TemporaryDirectory() if home is None else contextlib.nullcontext(str(home)) as folder:
        home = Path(folder)
        command = [sys.executable, "-m", "velatura.runtime", "serve", "--port", "0"]
        command += ["--user-dir", str(home / "user"), "--out", str(home / "output"), "--input", str(home / "input")]
        started = time.perf_counter()
        with open(home / "log", "w") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
            )
            assert process.stdout is not None
            try:
                found = re.search(r"http://\S+/", process.stdout.readline())
                if found is None:
                    raise RuntimeError(f"the server did not start:\n{(home / 'log').read_text()}")
                yield Served(process, found[0], home, started)
            finally:
                process.terminate()
                try:
                    process.communicate(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
