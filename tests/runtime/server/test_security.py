"""What another site's page, a crafted name or a crafted picture must not achieve."""

import gzip
import io
import json
import socket
import struct
import zlib

import aiohttp
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from velatura.runtime.server.app import API
from velatura.runtime.server.config import Config
from velatura.runtime.server.guard import Refused, check
from velatura.runtime.server.paths import BadPath, contained

from .conftest import slow

FOREIGN = [
    {"Host": "evil.example"},
    {"Host": "evil.example:8188"},
    {"Host": "127.0.0.1.evil.example"},
    {"Host": "localhost.evil.example"},
    {"Host": "localhost@evil.example"},
    {"Host": "192.168.1.10"},
    {"Host": "127.0.0.1:port"},
    {"Host": "[::1"},
    {"Host": ""},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://localhost"},
    {"Origin": "file://127.0.0.1"},
    {"Origin": "garbage"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
async def test_a_foreign_page_gets_and_does_nothing(serving, headers):
    """DNS rebinding, cross-site posts, embedded pictures, foreign websockets."""
    async with serving() as browser:
        for route in API:
            path = route.path.replace("{", "").replace("}", "").replace(":.+", "")
            async with browser.client.request(route.method, f"/api{path}", headers=headers) as answer:
                assert answer.status in (400, 403), f"{route.method} {path}"
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await browser.client.ws_connect("/ws", headers=headers)
        async with browser.client.post("/api/prompt", json={"prompt": slow()}, headers=headers) as answer:
            assert answer.status in (400, 403)
        assert browser.server.queue.finished == {} and browser.server.queue.running is None


async def test_the_page_itself_may_do_everything(serving):
    async with serving() as browser:
        port = browser.client.port
        for name in ("127.0.0.1", "localhost", "[::1]"):
            own = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}", "Sec-Fetch-Site": "same-origin"}
            await browser.post("/api/settings/A", 1, headers=own)
            socket = await browser.client.ws_connect("/ws", headers=own)
            assert (await socket.receive_json())["type"] == "status"
        follows = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        async with browser.client.get("/", headers=follows) as answer:
            assert answer.status in (200, 404), "a link to the page must open it"
        async with browser.client.get("/api/history", headers=follows) as answer:
            assert answer.status == 403


def test_a_server_on_the_network_is_reached_by_address_and_by_names_that_it_was_told():
    class Request:
        method, path = "POST", "/api/prompt"

        def __init__(self, host):
            from multidict import CIMultiDict

            self.headers = CIMultiDict({"Host": host})

    config = Config(host="0.0.0.0", names=("paint.example",))
    for host in ("192.168.1.10:8188", "[fe80::1]:8188", "localhost:8188", "paint.example", "PAINT.example:443"):
        check(Request(host), config)
    for host in ("evil.example", "paint.example.evil.example", "x:y@192.168.1.10"):
        with pytest.raises(Refused):
            check(Request(host), config)


async def test_every_answer_tells_the_browser_what_it_must_not_do(serving):
    async with serving() as browser:
        for path in ("/", "/api/users", "/api/nothing", "/api/view?filename=../a"):
            async with browser.client.get(path) as answer:
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                policy = answer.headers["Content-Security-Policy"]
                assert "frame-ancestors 'none'" in policy and "http" not in policy, "another host is let in"
                assert "Access-Control-Allow-Origin" not in answer.headers


OUTSIDE = [
    "../secret.png", "a/../../secret.png", "..", ".", "/etc/passwd", "//etc/passwd", "a//b", "a/./b",
    "\\..\\secret.png", "..\\secret.png", "C:\\secret.png",
    "C:secret.png", "C:/secret.png", "\\\\server\\share", "file.png:stream",
    "con",
    "CON.png", "nul", "com1.txt", "a/aux/b", "a\0.png", "a\nb", "trailing.", "trailing ", " leading", "", "a" * 300,
    "a/" * 600 + "b", "\ud800", "link/secret.png", "link", "linked.png", "~root/\x7f",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE, ids=ascii)
def test_no_name_leads_out(tmp_path, name):
    root, secret = tmp_path / "root", tmp_path / "secret.png"
    root.mkdir()
    secret.write_text("secret")
    (root / "link").symlink_to(tmp_path)
    (root / "linked.png").symlink_to(secret)
    with pytest.raises(BadPath):
        contained(root, name)


def test_ordinary_names_are_left_as_they_are(tmp_path):
    for name in ("a.json", "my flow (2).json", "ünïcode/日本.png", ".index.json", "a%2e%2e.json", "..a/b..c"):
        assert contained(tmp_path, name) == tmp_path.resolve() / name


@pytest.fixture
def secret(config):
    """A file that no request may read or change, and a way to it through a link; its content."""
    for folder in (config.folders.output, config.folders.input, config.folders.temp, config.documents):
        folder.mkdir(parents=True)
        (folder / "link").symlink_to(config.user.parent)
    path = config.user.parent / "secret.png"
    path.write_bytes(picture())
    (config.user.parent / "neighbour").touch()
    yield path
    assert path.read_bytes() == picture()


ENCODED = [
    "..%2fsecret.png", "%2e%2e%2fsecret.png", "%2e%2e/secret.png", "..%252fsecret.png", "%252e%252e%252fsecret.png",
    "..%5csecret.png", "..%c0%afsecret.png", "link%2fsecret.png", "%2fetc%2fpasswd", "..%2f..%2f..%2fetc%2fpasswd",
    "a%00.png", "%00", "....//secret.png", "..;/secret.png", "%ff%fe",
]  # fmt: skip


@pytest.mark.parametrize("name", ENCODED)
async def test_no_encoding_of_a_name_leads_out(serving, secret, name):
    """Sent byte for byte: a client library would tidy it up first."""
    targets = [
        f"GET /api/view?filename={name}", f"GET /api/view?filename=secret.png&subfolder={name}",
        f"GET /api/view?filename={name}&type=temp&preview=webp", f"GET /api/userdata/{name}", f"GET /userdata/{name}",
        f"GET /api/userdata?dir={name}", f"GET /api/v2/userdata?path={name}", f"DELETE /api/userdata/{name}",
        f"POST /api/userdata/{name}", f"POST /api/userdata/{name}/move/a.json", f"POST /api/userdata/a/move/{name}",
        f"GET /extensions/velatura/{name}", f"GET /api/workflow_templates/velatura/{name}", f"GET /{name}",
        f"GET /assets/{name}", f"GET /api/models/{name}",
    ]  # fmt: skip
    async with serving() as browser:
        for target in targets:
            status, body = await _raw(browser.client.port, target)
            assert 200 <= status < 500, target
            assert secret.read_bytes() not in body and b"root:" not in body and b"neighbour" not in body, target


async def _raw(port, target):
    import asyncio

    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    length = "Content-Length: 0\r\n" if target.startswith("POST") else ""
    writer.write(f"{target} HTTP/1.1\r\nHost: localhost\r\n{length}Connection: close\r\n\r\n".encode("latin-1"))
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def picture(format="PNG", size=(8, 6), mode="RGB", **options):
    """A small picture's bytes."""
    stream = io.BytesIO()
    Image.new(mode, size, (200, 30, 60, 90)[: len(mode)]).save(stream, format, **options)
    return stream.getvalue()


def form(data, name="a.png", **fields):
    """A posted form."""
    result = aiohttp.FormData(quote_fields=False)
    result.add_field("image", data, filename=name, content_type="image/png")
    for field, value in fields.items():
        result.add_field(field, value)
    return result


async def test_a_picture_is_kept_as_it_is_and_never_over_another(serving, config):
    """Its text too: dropping it on the canvas must bring its graph back."""
    info = PngInfo()
    info.add_text("workflow", "{}")
    first, other = picture(pnginfo=info), picture(size=(4, 4))
    async with serving() as browser:
        kept = await browser.post("/api/upload/image", form(first))
        assert kept == {"name": "a.png", "subfolder": "", "type": "input"}
        assert (config.folders.input / "a.png").read_bytes() == first
        assert (await browser.post("/api/upload/image", form(first)))["name"] == "a.png"
        assert (await browser.post("/api/upload/image", form(other)))["name"] == "a (1).png"
        assert (await browser.post("/api/upload/image", form(other, overwrite="true")))["name"] == "a.png"
        assert (config.folders.input / "a.png").read_bytes() == other
        placed = await browser.post("/api/upload/image", form(first, subfolder="pasted/x", type="temp"))
        assert placed == {"name": "a.png", "subfolder": "pasted/x", "type": "temp"}
        assert (config.folders.temp / "pasted" / "x" / "a.png").is_file()
        assert (await browser.post("/api/upload/image", form(picture("JPEG"), "b.html")))["name"] == "b.jpg"
        async with browser.client.get("/api/view?filename=b.jpg&type=input") as answer:
            assert answer.content_type == "image/jpeg"


def bomb(width=60000, height=60000):
    """A PNG of some hundred bytes that claims billions of pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


NOT_PICTURES = {
    "html": b"<html><script>alert(1)</script>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "pickle": b"\x80\x04\x95\x1c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
    "empty": b"",
    "truncated": picture(size=(64, 64))[:-40],
    "damaged": picture(size=(64, 64)).replace(b"IDAT", b"IDAT\xff", 1),
    "bomb": bomb(),
    "wide bomb": bomb(2**31 - 1, 1),
    "tiff": picture("TIFF"),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(hello) print\n",
}


@pytest.mark.parametrize("kind", NOT_PICTURES)
async def test_what_is_no_picture_is_not_kept(serving, config, kind):
    async with serving() as browser:
        answer = await browser.post("/api/upload/image", form(NOT_PICTURES[kind]), 400)
        assert answer["error"]["message"]
        assert not config.folders.input.exists()


async def test_an_animation_of_too_many_pixels_is_not_kept(serving):
    frames = [Image.new("L", (200, 200), i) for i in range(12)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    async with serving(pixels=200 * 200 * 2) as browser:
        await browser.post("/api/upload/image", form(stream.getvalue(), "a.gif"), 400)
    async with serving(pixels=200 * 200 * 3) as browser:
        await browser.post("/api/upload/image", form(stream.getvalue(), "a.gif"))


@pytest.mark.parametrize(
    "name", ["../a.png", "x/../../a.png", "C:\\a.png", "a\\..\\b.png", "link/a.png", "con.png", "."]
)
async def test_an_upload_stays_in_its_folder(serving, secret, config, name):
    before = sorted(config.user.parent.iterdir())
    async with serving() as browser:
        await browser.post("/api/upload/image", form(picture(), name), 400)
        await browser.post("/api/upload/image", form(picture(), subfolder=name), 400)
        await browser.post("/api/upload/image", form(picture(), type=name), 400)
        reference = json.dumps({"filename": name, "type": "input"})
        await browser.post("/api/upload/mask", form(picture(), original_ref=reference), 400)
    assert sorted(config.user.parent.iterdir()) == sorted({*before, config.user})


async def test_a_mask_becomes_the_alpha_of_its_picture(serving, config):
    info = PngInfo()
    info.add_text("workflow", '{"a": 1}')
    mask = picture(mode="RGBA")
    async with serving() as browser:
        await browser.post("/api/upload/image", form(picture(pnginfo=info)))
        reference = json.dumps({"filename": "a.png", "subfolder": "", "type": "input"})
        kept = await browser.post(
            "/api/upload/mask", form(mask, "clipspace-mask.png", original_ref=reference, subfolder="clipspace")
        )
        assert kept == {"name": "clipspace-mask.png", "subfolder": "clipspace", "type": "input"}
        with Image.open(config.folders.input / "clipspace" / "clipspace-mask.png") as made:
            assert made.mode == "RGBA" and made.getpixel((0, 0)) == (200, 30, 60, 90)
            assert made.info["workflow"] == '{"a": 1}'
        await browser.post("/api/upload/mask", form(picture(size=(3, 3)), original_ref=reference), 400)
        await browser.post("/api/upload/mask", form(mask), 400)
        for broken in ("[]", "nothing", json.dumps({"filename": 5})):
            await browser.client.post("/api/upload/mask", data=form(mask, original_ref=broken))
        missing = json.dumps({"filename": "missing.png"})
        async with browser.client.post("/api/upload/mask", data=form(mask, original_ref=missing)) as answer:
            assert answer.status == 404


async def test_a_page_in_the_output_folder_is_not_shown_as_one(serving, config):
    """It would run with all rights of the frontend's own page."""
    config.folders.output.mkdir()
    for name in ("a.html", "a.svg", "a.js", "a.xhtml", "a.css", "a"):
        (config.folders.output / name).write_text("<script>alert(1)</script>")
    async with serving() as browser:
        for name in ("a.html", "a.svg", "a.js", "a.xhtml", "a.css", "a"):
            async with browser.client.get(f"/api/view?filename={name}") as answer:
                assert answer.content_type == "application/octet-stream"
                assert answer.headers["Content-Disposition"] == "attachment"
                assert answer.headers["Content-Security-Policy"].startswith("sandbox")


async def test_too_much_is_refused(serving, small):
    import threading

    async with serving(body=10_000, upload=2000, nodes=5, queued=2, clients=2) as browser:
        big = b'"' + b"a" * 20_000 + b'"'
        for path in ("prompt", "settings/A", "userdata/a.json"):
            async with browser.client.post(f"/api/{path}", data=big) as answer:
                assert answer.status == 413, path
            packed = {"Content-Encoding": "gzip"}
            squeezed = gzip.compress(b"a" * 5_000_000)
            async with browser.client.post(f"/api/{path}", data=squeezed, headers=packed) as answer:
                assert 400 <= answer.status < 500, path
        async with browser.client.post("/api/upload/image", data=form(b"a" * 3000)) as answer:
            assert answer.status == 413
        many = {str(i): {"class_type": "Number", "inputs": {"value": i}} for i in range(6)}
        assert "at most 5 nodes" in (await browser.queue(many, 400))["error"]["message"]
        reached, gate = threading.Event(), threading.Event()
        small.state.on_step = lambda step: (reached.set(), gate.wait(60))
        try:
            await browser.queue(slow(1))
            import asyncio

            await asyncio.to_thread(reached.wait, 60)
            for _ in range(2):
                await browser.queue(slow(1))
            assert (await browser.queue(slow(1), 503))["error"]["type"] == "queue_full"
        finally:
            gate.set()
        sockets = [await browser.client.ws_connect("/ws") for _ in range(2)]
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await browser.client.ws_connect("/ws")
        await sockets[0].close()


async def test_deep_and_strange_json_is_refused_in_words(serving):
    strange = [b"[" * 100_000, b'{"prompt": NaN}', b'{"prompt": ' + b"9" * 10_000 + b"}", b"\xff\xfe", b"", b"nonsense"]
    async with serving() as browser:
        for body in strange:
            answer = await browser.post("/api/prompt", body, 400)
            assert answer["error"]["message"]


async def test_keys_to_other_services_are_not_kept(serving, config):
    """The frontend adds them for nodes that call such services; a history of them would be a leak."""
    async with serving() as browser:
        extra = {
            "api_key_comfy_org": "TOKEN",
            "auth_token_comfy_org": "TOKEN",
            "extra_pnginfo": {"workflow": {"id": "w"}},
        }
        id_ = await browser.run(slow(1), extra_data=extra)
        assert "TOKEN" not in json.dumps(await browser.get(f"/api/history/{id_}"))
    assert all(b"TOKEN" not in each.read_bytes() for each in config.history.iterdir())


async def test_a_job_cannot_be_named_like_a_path(serving):
    async with serving() as browser:
        for id_ in ("../a", "a/b", "", "a" * 65, 5, "con.json", ".."):
            await browser.queue(slow(1), 200 if id_ == "" else 400, prompt_id=id_)
        await browser.queue(slow(2), prompt_id="mine")
        await browser.queue(slow(2), 400, prompt_id="mine")


def test_the_server_listens_to_this_machine_alone_unless_told():
    assert Config().host == "127.0.0.1"
    from velatura.runtime.cli import parser

    assert parser().parse_args(["serve"]).host == "127.0.0.1"
    assert socket.inet_aton(Config().host)
