"""A Chromium that is driven by Playwright, for the page's benchmark and its tests."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PACKAGES = ("playwright", "comfyui_frontend_package", "aiohttp")
_QUIET = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run"]


def lacking() -> str | None:
    """What is not here that the page needs to be opened, None if all is."""
    for package in _PACKAGES:
        if importlib.util.find_spec(package) is None:
            return f"the Python package {package} is not installed"
    if _path() is None:
        return "there is no Chromium (VELATURA_BROWSER names one, or install Debian's `chromium`)"
    return None


def _path() -> str | None:
    return os.environ.get("VELATURA_BROWSER") or next(filter(None, map(shutil.which, _NAMES)), None)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The browser, without a window."""
    from playwright.sync_api import sync_playwright

    # Root, as in a container, has no sandbox.
    rooted = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_path(), args=[*_QUIET, *rooted])
        try:
            yield browser
        finally:
            browser.close()
