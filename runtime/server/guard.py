"""Who may speak to the server. A page of another site must not, though the browser that shows it could.

Such a page can post to an address on this machine, embed its pictures, and open websockets to it; and with a domain
name of its own that it points here for a moment it is even "the same origin" (DNS rebinding). Three headers that no
page can forge tell: Host, Origin and Sec-Fetch-Site. Programs send the first alone and pass.
"""

from __future__ import annotations

import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable

from aiohttp import web

from .config import Config
from .paths import BadPath

LOG = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Nothing is fetched from, or told to, any other host, whatever a page's script tries.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
}


# The only way a browser writes it. What is more lenient here is a gap there.
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>[0-9]{1,5}))?")


class Refused(ValueError):
    """A request that another site may be behind."""


def middleware(config: Config):
    """Refuses what a foreign page may have sent, and words the errors of bad input."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            check(request, config)
            return await handler(request)
        except Refused as error:
            LOG.warning("refused %s %s: %s", request.method, ascii(request.path[:200]), error)
            return refusal(403, str(error))
        except BadPath as error:
            return refusal(400, str(error))

    return guard


def refusal(status: int, reason: str) -> web.Response:
    """An error as the frontend and ComfyUI's other clients read it."""
    error = {"type": "bad_request", "message": reason, "details": "", "extra_info": {}}
    return web.json_response({"error": error, "node_errors": {}}, status=status)


async def add_headers(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """A signal for every response: what the browser must not do with it."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


def check(request: web.BaseRequest, config: Config) -> None:
    """Refused if the request may come from another site's page."""
    hosts = request.headers.getall("Host", [])
    if len(hosts) != 1 or not _is_ours(hosts[0], config):
        shown = ascii(hosts[0][:80]) if hosts else "nothing"
        raise Refused(f"the Host header names {shown}; if that is a name of this machine, add --allow-host NAME")
    origins = request.headers.getall("Origin", [])
    if any(not _same(origin, hosts[0]) for origin in origins):
        raise Refused("the request comes from a page of another site (its Origin is not this server)")
    site = request.headers.get("Sec-Fetch-Site", "none")
    if site not in ("none", "same-origin") and not _is_visit(request):
        raise Refused(f"the request comes from a page of another site (Sec-Fetch-Site: {site[:20]!a})")


def _is_visit(request: web.BaseRequest) -> bool:
    # Following a link to the start page: nothing is done, and the other page sees nothing of it.
    mode, goal = request.headers.get("Sec-Fetch-Mode"), request.headers.get("Sec-Fetch-Dest")
    return request.method == "GET" and request.path == "/" and mode == "navigate" and goal == "document"


def _is_ours(host: str, config: Config) -> bool:
    parsed = _parsed(host)
    if parsed is None:
        return False
    name = parsed[0]
    if name in {"localhost", config.host.lower(), *(each.lower() for each in config.names)}:
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    # A page can only be at an address that the machine really has: no name can be turned to it.
    return address.is_loopback or not is_local(config.host)


def is_local(host: str) -> bool:
    """Does listening there reach no other machine?"""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _parsed(host: str) -> tuple[str, int | None] | None:
    """Name or address, and port, of "name:port"; None if it is written in any other way."""
    found = _HOST.fullmatch(host)
    if found is None:
        return None
    name, port = found["name"].lower().strip("[]"), found["port"]
    return name, int(port) if port else None


def _same(origin: str, host: str) -> bool:
    scheme, _, rest = origin.partition("://")
    default = {"http": 80, "https": 443}.get(scheme)
    theirs, ours = _parsed(rest), _parsed(host)
    if default is None or theirs is None or ours is None:
        return False
    return theirs[0] == ours[0] and (theirs[1] or default) == (ours[1] or default)
