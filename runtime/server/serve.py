"""Running a server until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable

from aiohttp import web

from . import frontend, guard
from .app import create
from .config import Config


def serve(config: Config, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl+C or SIGTERM. `ready` gets the address once it answers. OSError if the port is not free."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(config, ready))


async def _serve(config: Config, ready: Callable[[str], None]) -> None:
    stop = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        # Windows' loop knows no signals; there Ctrl+C is a KeyboardInterrupt.
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            asyncio.get_running_loop().add_signal_handler(each, stop.set)
    runner = web.AppRunner(create(config), access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, config.host, config.port)
        try:
            await site.start()
        except OSError as error:
            where = f"{config.host}:{config.port}"
            raise OSError(f"cannot listen on {where} ({error.strerror}); choose another with --port") from error
        if not guard.is_local(config.host):
            logging.warning("anyone who reaches %s can run graphs here and read the pictures", config.host)
        if frontend.static_folder() is None:
            logging.warning('there is no page, only the API: pip install -e ".[serve]" in the pack brings it')
        ready(_address(runner, config))
        await stop.wait()
    finally:
        await runner.cleanup()


def _address(runner: web.AppRunner, config: Config) -> str:
    port = runner.addresses[0][1]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(config.host, config.host)
    return f"http://{f'[{host}]' if ':' in host and not host.startswith('[') else host}:{port}/"
