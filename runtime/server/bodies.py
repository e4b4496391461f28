"""JSON, in and out."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from aiohttp import web


class BadBody(web.HTTPBadRequest):
    """A body that is not what was asked for."""

    def __init__(self, reason: str):
        error = {"type": "bad_request", "message": reason, "details": "", "extra_info": {}}
        super().__init__(text=dumps({"error": error, "node_errors": {}}), content_type="application/json")


async def read(request: web.Request, limit: int) -> bytes:
    """The body, as long as it is not larger than `limit` bytes: HTTPRequestEntityTooLarge."""
    if (request.content_length or 0) > limit:
        raise web.HTTPRequestEntityTooLarge(limit, request.content_length or 0)
    found = bytearray()
    async for part in request.content.iter_any():
        found += part
        if len(found) > limit:
            raise web.HTTPRequestEntityTooLarge(limit, len(found))
    return bytes(found)


async def read_json(request: web.Request, limit: int) -> Any:
    """The body decoded, whatever type it says it is: the frontend sends JSON as text. BadBody if it is not JSON."""
    return loads(await read(request, limit))


async def read_object(request: web.Request, limit: int, *, optional: bool = False) -> dict[str, Any]:
    """The body as an object; with `optional` an empty body is an empty one."""
    body = await read(request, limit)
    value = {} if optional and not body else loads(body)
    if not isinstance(value, dict):
        raise BadBody("expected a JSON object")
    return value


def loads(body: bytes) -> Any:
    """Strict JSON. BadBody if it is not."""
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadBody(f"the body is not JSON ({type(error).__name__})") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def dumps(value: Any) -> str:
    """JSON that a browser can read, whatever a node shows: no NaN, and what JSON does not know as text."""
    try:
        return json.dumps(value, default=_plain, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), default=_plain)


def _plain(value: Any) -> Any:
    return repr(value)[:1000]


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def answer(value: Any, status: int = 200) -> web.Response:
    """A JSON response."""
    return web.Response(text=dumps(value), content_type="application/json", status=status)


def whole_number(text: str | None, default: int, low: int, high: int) -> int:
    """A number in a query, brought into its range. BadBody if it is none."""
    if text is None or text == "":
        return default
    try:
        return min(high, max(low, int(text)))
    except ValueError:
        raise BadBody(f"expected a whole number, got {text[:40]!a}") from None
