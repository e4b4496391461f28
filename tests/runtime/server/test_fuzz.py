"""Whatever is sent, the server answers without a fault of its own, and nothing outside its folders is read or changed.

A real server on a real socket: what is sent is not tidied up by a client first.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from velatura.hosts import schema as io
from velatura.hosts import ui
from velatura.hosts.folders import Folders
from velatura.runtime import registry
from velatura.runtime.server.app import API, create
from velatura.runtime.server.config import Config, Limits
from velatura.runtime.server.paths import BadPath, contained

TOKEN = b"the content of a file outside"


class Number(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema("Number", inputs=[io.Int.Input("value", default=1, min=0)], outputs=[io.Int.Output()])

    @classmethod
    def execute(cls, value):
        return io.NodeOutput(value)


class Show(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema("Show", inputs=[io.AnyType.Input("value")], is_output_node=True)

    @classmethod
    def execute(cls, value):
        return io.NodeOutput(ui=ui.PreviewText(str(value)[:100]))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A server in a thread: its `port`, the `home` around its folders, and the `outside`, which must stay as it is."""
    home = tmp_path_factory.mktemp("home")
    folders = Folders(input=home / "s" / "input", output=home / "s" / "output", temp=home / "s" / "temp")
    config = Config(user=home / "s" / "user", folders=folders, limits=Limits(body=2**16, upload=2**16, history=20))
    for folder in (folders.input, folders.output, folders.temp, config.documents):
        folder.mkdir(parents=True)
        (folder / "link").symlink_to(home)
        (folder / "inside.txt").write_text("inside")
    (home / "outside.txt").write_bytes(TOKEN)
    started, loop = threading.Event(), asyncio.new_event_loop()
    live = SimpleNamespace(home=home, port=0)

    async def begin() -> web.AppRunner:
        runner = web.AppRunner(create(config, registry.by_id([Number, Show])))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        live.port = runner.addresses[0][1]
        started.set()
        return runner

    def work() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(begin())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(60)
    yield live
    loop.call_soon_threadsafe(loop.stop)
    thread.join(60)


def ask(
    live: SimpleNamespace, method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> bytes:
    """The answer's body; what must hold of every answer is checked."""
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=60)
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
    assert answer.status < 500 or answer.status == 503, f"{method} {target}: {answer.status} {found[:300]!r}"
    assert TOKEN not in found
    around = {path.name for path in live.home.iterdir()}
    assert around == {"s", "outside.txt"} and (live.home / "outside.txt").read_bytes() == TOKEN
    return found


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
FUZZ = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@FUZZ
@example(PATHS[0], "link/outside.txt")
@example(PATHS[0], "..%2f..%2foutside.txt")
@example(PATHS[3], "link%2Foutside.txt")
@example(PATHS[3], "%2e%2e%2f%2e%2e%2f%2e%2e%2foutside.txt")
@given(st.sampled_from(PATHS), names())
def test_no_name_in_an_address_leads_out(live, route, name):
    method, pattern = route
    target = pattern.format(name).replace(" ", "+")
    ask(live, method, target, b"{}" if method == "POST" else b"")


@FUZZ
@given(names())
def test_what_is_contained_is_below(live, name):
    root = live.home / "s" / "input"
    try:
        path = contained(root, name)
    except BadPath:
        return
    assert Path(path).resolve().is_relative_to(root.resolve()) and path != root.resolve()


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


@FUZZ
@given(POSTED)
def test_any_graph_is_run_or_refused_in_words(live, posted):
    found = json.loads(ask(live, "POST", "/api/prompt", json.dumps(posted).encode()))
    assert "prompt_id" in found or found["error"]["message"]


@FUZZ
@given(
    st.sampled_from([route.path for route in API if route.method == "POST"]),
    JSON.map(json.dumps) | st.text(max_size=30),
)
def test_any_body_is_taken_or_refused_in_words(live, path, body):
    target = path.replace("{", "").replace("}", "")
    ask(live, "POST", f"/api{target}", body.encode("utf-8", "surrogatepass"))


@pytest.mark.filterwarnings("ignore::aiohttp.multipart.BadContentDispositionHeader")
@FUZZ
@given(
    st.binary(max_size=60)
    | st.sampled_from([b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8L", b"BM"]),
    st.binary(max_size=40),
    names(),
    st.sampled_from(["image", "type", "subfolder", "original_ref", "overwrite", ""]),
    st.sampled_from(["/api/upload/image", "/upload/mask"]),
)
def test_any_upload_is_a_picture_or_refused(live, start, rest, name, field, path):
    text = name.replace('"', "").replace("\r", "").replace("\n", "").encode("utf-8")
    parts = [b'--x\r\nContent-Disposition: form-data; name="image"; filename="' + text + b'"\r\n\r\n' + start + rest]
    parts.append(f'--x\r\nContent-Disposition: form-data; name="{field}"\r\n\r\n'.encode() + text)
    body = b"\r\n".join([*parts, b"--x--\r\n"])
    found = json.loads(ask(live, "POST", path, body, {"Content-Type": "multipart/form-data; boundary=x"}))
    assert "name" in found or found["error"]["message"]


HOSTS = st.sampled_from(["127.0.0.1", "localhost", "evil.example", "[::1]", "::1", "127.1", "0x7f.1", "2130706433", ""])
TAILS = st.sampled_from(
    ["", ":80", ":99999", ":x", ".", "@evil.example", "/", "?", "#", ".evil.example", " evil.example", "%00"]
)


@FUZZ
@given(HOSTS, TAILS)
def test_no_way_to_write_a_foreign_name_gets_in(live, host, tail):
    from velatura.runtime.server.guard import _is_ours

    if _is_ours(host + tail, Config()):
        assert host in ("127.0.0.1", "localhost", "[::1]") and tail in ("", ":80", ":99999")


@FUZZ
@given(st.lists(JSON.map(json.dumps) | st.text(max_size=20) | st.binary(max_size=20), min_size=1, max_size=20))
def test_a_websocket_bears_anything(live, said):
    """And the queue is still told to it."""
    import aiohttp

    async def talk():
        async with aiohttp.ClientSession() as session, session.ws_connect(f"http://127.0.0.1:{live.port}/ws") as socket:
            for each in said:
                await (socket.send_bytes(each) if isinstance(each, bytes) else socket.send_str(each))
            await socket.send_json({"type": "feature_flags", "data": {}})
            while (await socket.receive_json(timeout=60))["type"] != "feature_flags":
                pass

    asyncio.run(talk())
