"""A node's editors, in the order in which workflow files list their values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
"""A node as `/object_info` describes it."""

EDITED = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
AFTER_GENERATE = frozenset({"fixed", "increment", "decrement", "randomize"})


def sockets(schema: Schema) -> Iterator[tuple[str, Any, dict[str, Any], bool]]:
    """(name, type, options, required) of every input, as the browser orders them. A combo's type may be its list."""
    for group in ("required", "optional"):
        for name, spec in schema["input"].get(group, {}).items():
            options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
            yield name, spec[0], options, group == "required"


def choices(type_: Any, options: Mapping[str, Any]) -> list[Any] | None:
    """What a combo offers; None if the input is no combo."""
    if isinstance(type_, (list, tuple)):
        return list(type_)
    return list(options.get("options") or []) if type_ == "COMBO" else None


def is_edited(type_: Any, options: Mapping[str, Any]) -> bool:
    """Does the input have an editor, and so a value in the file?"""
    if options.get("forceInput") or options.get("defaultInput"):
        return False
    return bool(options.get("widgetType")) or isinstance(type_, (list, tuple)) or type_ in EDITED


def values(schema: Schema, saved: Any) -> dict[str, Any]:
    """The values of a saved node by input name: `saved` is its `widgets_values`, a list or a dictionary.

    What the file does not have is filled in with the schema's defaults, as the browser does when it loads one.
    """
    where = places(schema, saved)
    found = {}
    for name, type_, options, _ in sockets(schema):
        if is_edited(type_, options):
            value = saved[where[name]] if name in where else default(type_, options)
            if name in where or value is not None:
                found[name] = wrapped(value)
    return found


def places(schema: Schema, saved: Any) -> dict[str, Any]:
    """Where in a node's `widgets_values` each input's value lies: an index, or a key."""
    editors = [(name, type_, options) for name, type_, options, _ in sockets(schema) if is_edited(type_, options)]
    if isinstance(saved, Mapping):
        return {name: name for name, *_ in editors if name in saved}
    found, place = {}, 0
    saved = saved or []
    for name, type_, options in editors:
        if place >= len(saved):
            break
        found[name] = place
        place += 1
        # A seed is followed by what to do with it after the run: a value of the browser's, not of the node's.
        if place < len(saved) and _has_control(name, type_, options) and saved[place] in AFTER_GENERATE:
            place += 1
    return found


def _has_control(name: str, type_: Any, options: Mapping[str, Any]) -> bool:
    asked = options.get("control_after_generate")
    return bool(asked) if asked is not None else type_ == "INT" and name in ("seed", "noise_seed")


def default(type_: Any, options: Mapping[str, Any]) -> Any:
    """An editor's first value; None if it has none."""
    if options.get("default") is not None:
        return options["default"]
    offered = choices(type_, options)
    if offered is not None:
        return offered[0] if offered else None
    return "" if type_ == "STRING" else None


def wrapped(value: Any) -> Any:
    """A constant as an API graph holds it."""
    # In an API graph a bare list is a link.
    return {"__value__": value} if isinstance(value, list) else value
