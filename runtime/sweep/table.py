"""What a sweep has found: one Parquet table with a row for each picture, and the pictures.

A finished task is a small table of its own at once (`parts/KEY.parquet`), written whole or not at all, and later joined
to the rest. Whatever is killed when, what is there is sound, and a task that is there twice counts once.
"""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...hosts.files import whole_file
from .file import SweepError
from .plan import Task
from .render import Result

NAME = "results.parquet"
PARTS = 256
"""Parts that are joined at once; more where the table is large, so that joining stays cheap."""


def _arrow(name: str = "pyarrow") -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SweepError('a sweep keeps its results with pyarrow: pip install -e ".[sweep]" in the pack') from error


class Table:
    """The results in a folder. SweepError if they are damaged, or another sweep is writing there."""

    def __init__(self, folder: Path) -> None:
        _arrow()
        self.folder, self.parts, self.path = folder, folder / "parts", folder / NAME
        self.parts.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder / ".lock")
        rows = self._read(self.path) if self.path.exists() else None
        self.rows = 0 if rows is None else rows.num_rows
        self.done: set[str] = set() if rows is None else set(rows.column("key").to_pylist())
        there = [path.stem for path in self.parts.glob("*.parquet")]
        self.done |= set(there)
        self._unjoined = len(there)

    def add(self, task: Task, result: Result, *, save_pictures: bool = True) -> None:
        """Keep a task's pictures and figures."""
        arrow = _arrow()
        rows = []
        for number, picture in enumerate(result.pictures):
            name = f"pictures/{task.key}_{number:03}{picture.suffix}" if save_pictures else None
            if name is not None:
                with whole_file(self.folder / name) as stream:
                    stream.write(picture.data)
            fixed = {"key": task.key, "picture": number, "file": name, "seconds": result.seconds}
            fixed |= {"ended": result.ended, "worker": result.worker}
            rows.append({**fixed, **task.settings, **picture.figures})
        self._write(self.parts / f"{task.key}.parquet", arrow.Table.from_pylist(rows))
        self.done.add(task.key)
        self._unjoined += 1
        if self._unjoined > max(PARTS, self.rows // 4):
            self.join()

    def join(self) -> None:
        """Make one table of all, and drop the parts that are in it."""
        arrow = _arrow()
        parts = sorted(self.parts.glob("*.parquet"))
        if not parts:
            return
        tables = [self._read(self.path)] if self.path.exists() else []
        there = set(tables[0].column("key").to_pylist()) if tables else set()
        tables += [self._read(path) for path in parts if path.stem not in there]
        try:
            whole = arrow.concat_tables(tables, promote_options="permissive")
        except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
            raise SweepError(
                f"{self.path}: its columns are of other types than the new ones ({error}); name another `out`"
            ) from error
        self._write(self.path, whole)
        self.rows = whole.num_rows
        for path in parts:
            path.unlink()
        self._unjoined = 0

    def close(self) -> None:
        """Let others write here."""
        self._lock.close()

    def _write(self, path: Path, table: Any) -> None:
        parquet = _arrow("pyarrow.parquet")
        with whole_file(path) as stream:
            parquet.write_table(table, stream)

    def _read(self, path: Path) -> Any:
        arrow, parquet = _arrow(), _arrow("pyarrow.parquet")
        try:
            with open(path, "rb") as stream:
                return parquet.read_table(stream)
        except (arrow.ArrowInvalid, OSError) as error:
            raise SweepError(f"{path} is no whole table ({error}); move it away and run again") from error


def _locked(path: Path) -> Any:
    stream = open(path, "a")  # noqa: SIM115 - held until the sweep ends, however it does
    try:
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ModuleNotFoundError:  # Windows: two sweeps into one folder are not found out there
        pass
    except OSError as error:
        stream.close()
        raise SweepError(
            f"{path.parent}: another sweep is writing there; wait for it, or name another `out`"
        ) from error
    return stream


def failures(folder: Path, errors: Mapping[str, tuple[Task, str]]) -> Path:
    """Leave what failed, and why, in a file of its own."""
    path = folder / "failed.json"
    listed = [{"key": key, "error": error, "settings": task.settings} for key, (task, error) in errors.items()]
    with whole_file(path) as stream:
        stream.write(json.dumps(listed, indent=2, ensure_ascii=False).encode() + b"\n")
    return path


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Table]:
    """The results in a folder, joined at the end, whatever happened meanwhile."""
    table = Table(folder)
    try:
        yield table
    finally:
        try:
            table.join()
        finally:
            table.close()
