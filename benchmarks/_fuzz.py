"""Whatever is sent, the server answers without a fault of its own, and nothing outside its folders is read or changed.

A real server on a real socket: what is sent is not tidied up by a client first. The strategies and the checks are those
of the tests; `fuzz` runs them for as many cases as one likes and counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import logging
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, web
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ..core.protocols import Progress, no_progress
from ..hosts import schema as io
from ..hosts import ui
from ..hosts.folders import Folders
from ..runtime import registry
from ..runtime.server.app import API, create
from ..runtime.server.config import Config, Limits

TOKEN = b"the content of a file outside"
HANGS = 60
"""Seconds without an answer that count as a hang."""


class Number(io.ComfyNode):
    """A constant."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema("Number", inputs=[io.Int.Input("value", default=1, min=0)], outputs=[io.Int.Output()])

    @classmethod
    def execute(cls, value: int) -> io.NodeOutput:
        return io.NodeOutput(value)


class Show(io.ComfyNode):
    """An end."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema("Show", inputs=[io.AnyType.Input("value")], is_output_node=True)

    @classmethod
    def execute(cls, value: Any) -> io.NodeOutput:
        return io.NodeOutput(ui=ui.PreviewText(str(value)[:100]))


@dataclass
class Live:
    """A server in a thread: its `port`, and the `home` around its folders, with a file that nobody may reach."""

    home: Path
    port: int = 0


@contextlib.contextmanager
def live(home: Path) -> Iterator[Live]:
    """A server on two small nodes, with links in its folders that lead out of them."""
    folders = Folders(input=home / "s" / "input", output=home / "s" / "output", temp=home / "s" / "temp")
    config = Config(user=home / "s" / "user", folders=folders, limits=Limits(body=2**16, upload=2**16, history=20))
    for folder in (folders.input, folders.output, folders.temp, config.documents):
        folder.mkdir(parents=True)
        (folder / "link").symlink_to(home)
        (folder / "inside.txt").write_text("inside")
    (home / "outside.txt").write_bytes(TOKEN)
    started, loop, found = threading.Event(), asyncio.new_event_loop(), Live(home)

    async def begin() -> web.AppRunner:
        runner = web.AppRunner(create(config, registry.by_id([Number, Show])))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        found.port = runner.addresses[0][1]
        started.set()
        return runner

    def work() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(begin())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=work)
    thread.start()
    if not started.wait(60):
        raise RuntimeError("the server did not start")
    try:
        yield found
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)


def ask(server: Live, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """The answer's body; AssertionError if something is wrong that must not be of any answer."""
    connection: Any = http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANGS)
    # The client would refuse to send what it finds ill-formed.
    connection._validate_path = lambda url: None
    connection._encode_request = lambda request: request.encode("utf-8", "surrogatepass")
    try:
        connection.request(method, target, body=body or None, headers=headers or {})
        answer = connection.getresponse()
        found = answer.read()
    except http.client.BadStatusLine:
        return b""
    finally:
        connection.close()
    _expect(answer.status < 500 or answer.status == 503, f"{method} {target}: {answer.status} {found[:300]!r}")
    _expect(TOKEN not in found, f"{method} {target}: a file outside was read")
    around = {path.name for path in server.home.iterdir()}
    kept = around == {"s", "outside.txt"} and (server.home / "outside.txt").read_bytes() == TOKEN
    _expect(kept, f"{method} {target}: what is outside was changed")
    return found


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


PIECES = [
    "..", ".", "", "link", "outside.txt", "inside.txt", "workflows", "a.json", "C:", "con", "nul.txt", "~", "%00",
    "%2e%2e", "%252e%252e", "%c0%ae", "%u002e", "..;", "....", "%ff", " ", "%20", "é", "%0d%0a", "*", "[input]",
    "x [temp]",
]  # fmt: skip
SLASHES = ["/", "/", "%2f", "%2F", "\\", "%5c", "%252f", "//", "%c0%af"]


@st.composite
def names(draw: st.DrawFn) -> str:
    """Names that try to get out, some of them beyond any sense."""
    slash = st.sampled_from(SLASHES)
    if draw(st.booleans()):
        pieces = st.sampled_from(["link", "..", "%2e%2e", "workflows", "x"])
        ways = draw(st.just(["link"]) | st.just([".."]) | st.lists(pieces, min_size=1, max_size=4))
        return "".join(way + draw(slash) for way in ways) + "outside.txt"
    count = draw(st.integers(1, 5))
    pieces = st.sampled_from(PIECES) | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=6)
    return "".join(draw(pieces) + (draw(slash) if i < count - 1 else "") for i in range(count))


PATHS = [
    ("GET", "/api/view?filename={}"), ("GET", "/view?filename=outside.txt&subfolder={}&type=input"),
    ("GET", "/api/view?filename={}&preview=webp;50"), ("GET", "/api/userdata/{}"), ("POST", "/api/userdata/{}"),
    ("DELETE", "/api/userdata/{}"), ("POST", "/api/userdata/{}/move/b.json"), ("POST", "/api/userdata/a.json/move/{}"),
    ("GET", "/api/userdata?dir={}&recurse=true"), ("GET", "/api/v2/userdata?path={}"),
    ("GET", "/extensions/velatura/{}"),
    ("GET", "/api/workflow_templates/velatura/{}"), ("GET", "/{}"), ("GET", "/assets/{}"), ("GET", "/api/models/{}"),
    ("GET", "/internal/files/{}"), ("GET", "/api/history/{}"), ("POST", "/api/settings/{}"),
    ("GET", "/api/jobs?limit={}"),
]  # fmt: skip

WORDS = [
    "prompt", "client_id", "extra_data", "extra_pnginfo", "workflow", "number", "front", "prompt_id", "class_type",
    "inputs", "_meta", "title", "partial_execution_targets", "delete", "clear", "job_ids", "nodes", "links", "1", "2",
]  # fmt: skip
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
LEAVES |= st.sampled_from(["Number", "Show", "1", "2", "value"])
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
NODE = st.fixed_dictionaries(
    {
        "class_type": st.sampled_from(["Number", "Show", "Nothing"]) | LEAVES,
        "inputs": st.fixed_dictionaries({"value": JSON}) | JSON,
    },
    optional={"_meta": JSON},
)
GRAPH = st.dictionaries(st.sampled_from(["1", "2", "3"]), NODE | JSON, max_size=3)
POSTED = st.fixed_dictionaries(
    {"prompt": GRAPH | JSON}, optional=dict.fromkeys([*WORDS[1:8], "partial_execution_targets"], JSON)
)
POSTS = [route.path for route in API if route.method == "POST"]
STARTS = [b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8L", b"BM"]
FIELDS = ["image", "type", "subfolder", "original_ref", "overwrite", ""]


def address(server: Live, route: tuple[str, str], name: str) -> None:
    """A name in an address leads nowhere outside."""
    method, pattern = route
    ask(server, method, pattern.format(name).replace(" ", "+"), b"{}" if method == "POST" else b"")


def graph(server: Live, posted: Any) -> None:
    """A graph is run, or refused in words."""
    found = json.loads(ask(server, "POST", "/api/prompt", json.dumps(posted).encode()))
    _expect("prompt_id" in found or bool(found["error"]["message"]), f"{posted!r}: {found!r}")


def body(server: Live, path: str, content: str) -> None:
    """A body is taken, or refused in words."""
    target = path.replace("{", "").replace("}", "")
    ask(server, "POST", f"/api{target}", content.encode("utf-8", "surrogatepass"))


def upload(server: Live, start: bytes, rest: bytes, name: str, field: str, path: str) -> None:
    """An upload is a picture and kept, or refused in words."""
    text = name.replace('"', "").replace("\r", "").replace("\n", "").encode("utf-8")
    parts = [b'--x\r\nContent-Disposition: form-data; name="image"; filename="' + text + b'"\r\n\r\n' + start + rest]
    parts.append(f'--x\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n'.encode() + text)
    content = b"\r\n".join([*parts, b"--x--\r\n"])
    found = json.loads(ask(server, "POST", path, content, {"Content-Type": "multipart/form-data; boundary=x"}))
    _expect("name" in found or bool(found["error"]["message"]), f"{name!r}: {found!r}")


def websocket(server: Live, said: list[str | bytes]) -> None:
    """A websocket bears it, and is still answered."""

    async def talk() -> None:
        async with ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{server.port}/ws") as socket:
            for each in said:
                await (socket.send_bytes(each) if isinstance(each, bytes) else socket.send_str(each))
            await socket.send_json({"type": "feature_flags", "data": {}})
            while (await socket.receive_json(timeout=HANGS))["type"] != "feature_flags":
                pass

    asyncio.run(talk())


KINDS: dict[Callable[..., None], tuple[st.SearchStrategy[Any], ...]] = {
    address: (st.sampled_from(PATHS), names()),
    graph: (POSTED,),
    body: (st.sampled_from(POSTS), JSON.map(json.dumps) | st.text(max_size=30)),
    upload: (
        st.binary(max_size=60) | st.sampled_from(STARTS),
        st.binary(max_size=40),
        names(),
        st.sampled_from(FIELDS),
        st.sampled_from(["/api/upload/image", "/upload/mask"]),
    ),
    websocket: (
        st.lists(JSON.map(json.dumps) | st.text(max_size=20) | st.binary(max_size=20), min_size=1, max_size=20),
    ),
}
"""What is sent, by what must hold of it."""


def fuzz(cases: int, progress: Progress = no_progress) -> tuple[int, list[str]]:
    """Send so many things, the same ones at each call: how many were sent, and what went wrong."""
    sent, wrong = 0, []

    def note(check: Callable[..., None], what: tuple[Any, ...]) -> None:
        nonlocal sent
        sent += 1
        progress(min(sent, cases), cases, None)
        try:
            check(server, *what)
        except Exception as error:
            wrong.append(f"{check.__name__}: {type(error).__name__}: {error}")

    with tempfile.TemporaryDirectory() as home, live(Path(home)) as server, _quiet():
        for check, strategies in KINDS.items():
            _each(st.tuples(st.just(check), st.tuples(*strategies)), cases // len(KINDS), note)
    return sent, wrong


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what aiohttp has to say of ill-formed requests."""
    log = logging.getLogger("aiohttp")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def _each(strategy: st.SearchStrategy[Any], count: int, call: Callable[..., None]) -> None:
    slow_is_fine = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]

    @seed(0)
    @settings(
        max_examples=count, phases=[Phase.generate], database=None, deadline=None, suppress_health_check=slow_is_fine
    )
    @given(strategy)
    def case(drawn: tuple[Any, ...]) -> None:
        call(*drawn)

    case()
