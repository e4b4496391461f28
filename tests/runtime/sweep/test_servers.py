"""Sweeps by servers at a distance: ours, in processes of their own, one of which vanishes; and what is no server."""

import asyncio
import contextlib
import threading

import pytest

from velatura.benchmarks import scale
from velatura.benchmarks._served import served
from velatura.runtime.cli import main
from velatura.runtime.sweep import run as sweeps

web = pytest.importorskip("aiohttp.web")


@contextlib.contextmanager
def answering(handler):
    """A small HTTP server in this process, and its address."""
    loop, started, address = asyncio.new_event_loop(), threading.Event(), []

    async def start():
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        started.set()
        return runner

    def serve():
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve)
    thread.start()
    started.wait()
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def said_of(path, capsys):
    assert main(["sweep", str(path)]) == 2
    return capsys.readouterr().err.strip().splitlines()


@pytest.mark.slow
def test_a_server_that_vanishes_loses_nothing(tmp_path):
    told = []
    with served() as first, served() as second:
        path = scale.write_sweep(tmp_path, scale.servers(first, second, patience=2), 8)
        seen = []

        def kill(task, result):
            if not seen:
                other = second if result.worker == first.address.rstrip("/") else first
                other.process.kill()
            seen.append(result.worker)

        figures = sweeps.run(path, watch=kill, told=told.append)
    rows = scale.rows(path)
    assert figures["done"] == 8 and len({row["key"] for row in rows}) == 8
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    assert any("is gone" in line or "is not there" in line for line in told)
    # Wherever it was done, it is done.
    scale.write_sweep(tmp_path, "[workers]\ncount = 1", 8)
    assert sweeps.run(path)["had"] == 8


@pytest.mark.slow
def test_a_graph_that_the_server_refuses_is_said_once(tmp_path, capsys):
    """Its models are not the server's: what the sweep does not set, the server judges."""
    with served() as server:
        path = scale.write_sweep(tmp_path, scale.servers(server), 4)
        flow = tmp_path / "flow.json"
        flow.write_text(scale.WORKFLOW.read_text().replace('"sprites-lcm (demo)"', '"nobody has this.safetensors"'))
        path.write_text(path.read_text().replace(scale.WORKFLOW.as_posix(), "flow.json"))
        lines = said_of(path, capsys)
    assert sum("nobody has this" in line for line in lines) == 2  # when it happens, and at the end
    assert "4 tasks are left and nobody does them" in lines[-1] and "VelaturaLcmModel (node 2)" in lines[-1]


def test_no_server_is_one_clear_error(tmp_path, capsys):
    path = scale.write_sweep(tmp_path, '[servers]\nurls = ["http://127.0.0.1:9", "http://localhost:9/"]', 2)
    *_, last = said_of(path, capsys)
    assert "[servers] urls: no server answers" in last and "http://127.0.0.1:9: " in last and "localhost" in last


def test_what_is_no_comfyui_server_is_said(tmp_path, capsys):
    async def page(request):
        return web.Response(text="<p>welcome</p>")

    with answering(page) as address:
        *_, last = said_of(scale.write_sweep(tmp_path, f'[servers]\nurls = ["{address}"]', 2), capsys)
    assert f"{address} is no ComfyUI server: it answers 200 on /object_info" in last


def test_nobody_is_followed_to_another_address(tmp_path, capsys):
    asked = []

    async def elsewhere(request):
        asked.append(request.path)
        raise web.HTTPFound("http://127.0.0.1:9/secret")

    with answering(elsewhere) as address:
        *_, last = said_of(scale.write_sweep(tmp_path, f'[servers]\nurls = ["{address}"]', 2), capsys)
    assert "it points to another address" in last and asked == ["/object_info"]
