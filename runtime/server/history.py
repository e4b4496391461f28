"""Finished jobs on disk, a file for each, so that they outlive the server however it ends."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from pathlib import Path
from typing import Any

from ...hosts.files import whole_file
from .bodies import BadBody, dumps, loads
from .jobs import CANCELLED, COMPLETED, FAILED, ID, Job

LOG = logging.getLogger(__name__)

_KEPT = ("id", "number", "prompt", "extra", "targets", "created", "started", "ended", "status", "outputs", "messages")
_UNFINISHED = re.compile(r"\..+-[0-9a-f]{32}\.part")
_HOUR = 3600


def save(folder: Path, job: Job) -> None:
    """Keep a finished job."""
    with whole_file(folder / f"{job.id}.json") as stream:
        stream.write(dumps({name: getattr(job, name) for name in (*_KEPT, "error")}).encode())


def load(folder: Path, most: int) -> list[Job]:
    """The last `most` finished jobs, oldest first. Older ones are removed; a damaged file is passed over and named."""
    files = list(folder.glob("*.json")) if folder.is_dir() else []
    files.sort(key=lambda each: each.stat().st_mtime)
    for each in files[: max(0, len(files) - most)]:
        each.unlink()
    found = [job for job in map(_read, files[-most:]) if job is not None]
    return sorted(found, key=lambda job: job.ended or 0)


def remove(folder: Path, id_: str) -> None:
    """Forget a job."""
    if ID.fullmatch(id_):
        (folder / f"{id_}.json").unlink(missing_ok=True)


def _read(path: Path) -> Job | None:
    try:
        saved = loads(path.read_bytes())
        job = Job(**{name: saved[name] for name in (*_KEPT, "error")})
        sound = ID.fullmatch(job.id) and job.status in (COMPLETED, FAILED, CANCELLED) and path.stem == job.id
        if not sound or not all(isinstance(each, dict) for each in (job.prompt, job.extra, job.outputs)):
            raise ValueError
    except (BadBody, OSError, KeyError, TypeError, ValueError):
        LOG.warning("%s is damaged and was passed over", path)
        return None
    job.outputs = {node: _lasting(output) for node, output in job.outputs.items()}
    return job


def _lasting(output: dict[str, Any]) -> dict[str, Any]:
    """What a node showed, without the files of the temporary folder: that one is emptied when the server ends."""
    kept = {}
    for kind, items in output.items():
        if isinstance(items, list):
            items = [each for each in items if not (isinstance(each, dict) and each.get("type") == "temp")]
        kept[kind] = items
    return kept


def sweep(folder: Path) -> None:
    """Remove what a killed process left half written. What is younger than an hour may still be at work."""
    for path in folder.rglob(".*.part") if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            if _UNFINISHED.fullmatch(path.name) and time.time() - path.stat().st_mtime > _HOUR:
                path.unlink()
