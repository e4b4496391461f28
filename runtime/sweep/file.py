"""Sweep files: what varies, what is measured, and where it runs. Whatever is misspelt is found before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..problems import did_you_mean
from .measures import MEASURES

MOST = 1_000_000
"""Values of one setting, and tasks of one sweep."""
NUMBER = (int, float)
Axis = tuple[tuple[str, ...], list[tuple[Any, ...]]]
KNOWN: dict[str, dict[str, Any]] = {
    "": {
        "workflow": str,
        "out": str,
        "input": str,
        "pictures": str,
        "rows": str,
        "save_pictures": bool,
        "attempts": int,
        "set": dict,
        "grid": dict,
        "measure": dict,
        "workers": dict,
        "cluster": dict,
        "servers": dict,
    },
    "workers": {"count": int, "threads": int},
    "cluster": {"ray": str, "workers": int, "cpus": NUMBER, "gpus": NUMBER},
    "servers": {"urls": list, "patience": NUMBER},
}
RANGE = {"from": NUMBER, "to": NUMBER, "step": NUMBER}
WORDS: dict[Any, str] = {
    str: "text", bool: "true or false", int: "a whole number", NUMBER: "a number", dict: "a table", list: "a list"
}  # fmt: skip


class SweepError(ValueError):
    """A sweep that cannot run, or that did not come to its end."""


@dataclass(frozen=True)
class Workers:
    """Processes on this machine; `threads` of each, 0 for its share of the cores."""

    count: int = 1
    threads: int = 0


@dataclass(frozen=True)
class Cluster:
    """Actors on the Ray cluster at `ray`: an address, "auto" or "local". Each asks for so many `cpus` and `gpus`."""

    ray: str
    workers: int = 1
    cpus: float = 1
    gpus: float = 0


@dataclass(frozen=True)
class Servers:
    """Running ComfyUI servers. One that is away for longer than `patience` seconds is given up."""

    urls: tuple[str, ...]
    patience: float = 300


@dataclass(frozen=True)
class Sweep:
    """A sweep file, checked as far as that goes without its workflow. `axes` are what varies: names of inputs, and the
    values that they take together. `fixed` are inputs of one value."""

    path: Path
    workflow: Path
    out: Path
    input: Path
    fixed: dict[str, Any]
    axes: list[Axis]
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)
    where: Workers | Cluster | Servers = field(default_factory=Workers)
    pictures: str = ""
    save_pictures: bool = True
    attempts: int = 3

    @property
    def home(self) -> str:
        """What the file's paths are relative to."""
        return str(self.path.parent.absolute())


def read(path: str | Path) -> Sweep:
    """A sweep file, whose paths are relative to it; `out` and `input` are the working folder's where it does not say
    them. SweepError names what is wrong, and the nearest name."""
    path = Path(path)
    try:
        return _sweep(path, _toml(path))
    except SweepError as error:
        raise SweepError(f"{path}: {error}") from error


def _toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    if not path.is_file():
        raise SweepError("there is no such sweep file")
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SweepError(f"it is not TOML: {error}") from error


def _sweep(path: Path, given: Mapping[str, Any]) -> Sweep:
    _known(given, KNOWN[""], "")
    if "workflow" not in given:
        raise SweepError("workflow: expected the workflow file to run")
    home = path.parent
    axes: list[Axis] = [((name,), [(each,) for each in values]) for name, values in _grid(given, home)]
    if "rows" in given:
        axes.append(_rows(home / given["rows"]))
    fixed = {name: _scalar(f"set: “{name}”", value) for name, value in _flat(given.get("set", {}))}
    _once([*fixed, *(name for names, _ in axes for name in names)])
    attempts = given.get("attempts", 3)
    if attempts < 1:
        raise SweepError(f"attempts: expected at least 1, got {attempts}")
    return Sweep(
        path,
        home / given["workflow"],
        home / given["out"] if "out" in given else Path("output", path.stem),
        home / given["input"] if "input" in given else Path("input"),
        fixed,
        axes,
        _measures(given.get("measure", {})),
        _where(given),
        given.get("pictures", ""),
        given.get("save_pictures", True),
        attempts,
    )


def _known(table: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """SweepError if a setting of this table is not known, or of another type."""
    place = f"[{where}] " if where else ""
    for name, value in table.items():
        if name not in known:
            raise SweepError(f"{place}there is no setting “{name}”.{did_you_mean(name, known)}")
        wanted = known[name]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise SweepError(f"{place}{name}: expected {WORDS[wanted]}, got {value!r}")


def _where(given: Mapping[str, Any]) -> Workers | Cluster | Servers:
    places = [name for name in ("workers", "cluster", "servers") if name in given]
    if len(places) > 1:
        raise SweepError(f"[{places[0]}] and [{places[1]}]: a sweep runs in one place; leave one out")
    table = given[places[0]] if places else {}
    _known(table, KNOWN[places[0]] if places else {}, places[0] if places else "")
    for name, low in (("count", 1), ("threads", 0), ("workers", 1), ("cpus", 0), ("gpus", 0), ("patience", 0)):
        if table.get(name, low) < low:
            raise SweepError(f"[{places[0]}] {name}: expected at least {low}, got {table[name]}")
    if "servers" in places:
        return Servers(_urls(table.get("urls")), table.get("patience", 300))
    if "cluster" in places:
        if not table.get("ray"):
            raise SweepError('[cluster] ray: expected an address, "auto" or "local"')
        return Cluster(**table)
    return Workers(**table)


def _urls(urls: Any) -> tuple[str, ...]:
    if not urls:
        raise SweepError('[servers] urls: expected addresses of servers, such as ["http://127.0.0.1:8188"]')
    for each in urls:
        try:
            parts = urlsplit(each) if isinstance(each, str) else None
            good = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good:
            raise SweepError(f"[servers] urls: expected addresses such as http://127.0.0.1:8188, got {each!r}")
    if len(set(urls)) < len(urls):
        raise SweepError("[servers] urls: a server is named twice; it runs one graph at a time")
    return tuple(each.rstrip("/") for each in urls)


def _measures(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = {}
    for name, options in given.items():
        if name not in MEASURES:
            raise SweepError(f"[measure.{name}] there is no such measure.{did_you_mean(name, MEASURES)}")
        if not isinstance(options, dict):
            raise SweepError(f"measure: {name}: expected a table, such as [measure.{name}]")
        _known(options, MEASURES[name].options, f"measure.{name}")
        lacking = sorted(MEASURES[name].needs - set(options))
        if lacking:
            raise SweepError(f"[measure.{name}] {lacking[0]}: it has no value; {MEASURES[name].about}")
        for each in {"frames", "rows"} & set(options):
            if options[each] < 1:
                raise SweepError(f"[measure.{name}] {each}: expected at least 1, got {options[each]}")
        found[name] = dict(options)
    return found


def _flat(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(NODE.INPUT, value) of `"Node.input" = value`, and of `Node.input = value`, which TOML reads as a table."""
    for name, value in table.items():
        if "." not in name and isinstance(value, dict):
            yield from ((f"{name}.{input_}", each) for input_, each in value.items())
        else:
            yield name, value


def _grid(given: Mapping[str, Any], home: Path) -> Iterator[tuple[str, list[Any]]]:
    for name, value in _flat(given.get("grid", {})):
        values = list(_values(f"grid: “{name}”", value, home))
        if not values:
            raise SweepError(f"grid: “{name}”: it has no values")
        yield name, values


def _values(name: str, value: Any, home: Path) -> Iterator[Any]:
    """The values of a list, of a range `{ from, to, step }` with both ends, or of the lines of a `{ file }`."""
    if isinstance(value, list):
        yield from (_scalar(name, each) for each in value)
    elif isinstance(value, dict) and "file" in value:
        _known(value, {"file": str}, name)
        yield from _lines(name, home / value["file"])
    elif isinstance(value, dict):
        _known(value, RANGE, name)
        if not {"from", "to"} <= set(value):
            raise SweepError(f"{name}: expected a list, {{ from = 0, to = 9, step = 1 }} or {{ file = … }}")
        low, high, step = value["from"], value["to"], value.get("step", 1)
        count = math.floor((high - low) / step + 1e-9) + 1 if step else 0
        if not 0 < count <= MOST:
            raise SweepError(f"{name}: expected 1 to {MOST} values from {low} to {high}, step {step}")
        whole = all(isinstance(each, int) for each in (low, step))
        yield from (low + n * step if whole else round(low + n * step, 12) for n in range(count))
    else:
        yield _scalar(name, value)


def _lines(name: str, path: Path) -> list[str]:
    try:
        return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SweepError(f"{name}: {path} cannot be read as text ({error})") from error


def _scalar(name: str, value: Any) -> Any:
    if not isinstance(value, (str, int, float, bool)):
        raise SweepError(f"{name}: expected text, a number, true or false, got {value!r}")
    return value


def _rows(path: Path) -> Axis:
    """Inputs that vary together: a CSV whose first line names them."""
    import csv

    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            head, *lines = [line for line in csv.reader(stream) if line]
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        raise SweepError(f"rows: {path} cannot be read as a CSV with a line of names ({error})") from error
    for number, line in enumerate(lines, 2):
        if len(line) != len(head):
            raise SweepError(f"rows: {path}, line {number}: expected {len(head)} values, got {len(line)}")
    if not lines:
        raise SweepError(f"rows: {path} has no line but its names")
    return tuple(head), [tuple(line) for line in lines]


def _once(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SweepError(f"“{name}” is set twice; [set], [grid] and rows are for different inputs")
