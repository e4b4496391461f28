"""What a server is told: where to listen, which folders are its own, how much it takes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from ...hosts.folders import Folders

PACK = Path(__file__).resolve().parents[2]
NAME = "velatura"
"""The pack's name in addresses, as the folder in custom_nodes is in ComfyUI's."""

MEGABYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """Upper bounds; whoever asks for more is refused with a reason. Sizes in bytes."""

    body: int = 16 * MEGABYTE
    """A JSON body: a graph, a setting, a saved workflow."""
    upload: int = 100 * MEGABYTE
    pixels: int = 2**26
    """Of one frame of an uploaded picture; of all its frames together, four times that."""
    nodes: int = 2000
    queued: int = 500
    queued_bytes: int = 256 * MEGABYTE
    history: int = 200
    """Finished jobs that are remembered."""
    clients: int = 200
    """Websockets at a time."""
    unread: int = 10_000
    """Messages that wait for one client before it is given up."""


def data_folder() -> Path:
    """Where a user's workflows and settings live unless `--user-dir` says otherwise."""
    base = os.environ.get("XDG_DATA_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    return (Path(base) if base else Path.home() / ".local" / "share") / NAME


@dataclass(frozen=True)
class Config:
    """One server. `names` are host names, besides the address itself, under which browsers may reach it."""

    host: str = "127.0.0.1"
    port: int = 8188
    user: Path = field(default_factory=data_folder)
    folders: Folders = field(default_factory=Folders)
    names: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    @property
    def documents(self) -> Path:
        """What the browser keeps: saved workflows, subgraphs, bookmarks."""
        return self.user / "files"

    @property
    def settings(self) -> Path:
        """The browser's settings."""
        return self.user / "settings.json"

    @property
    def history(self) -> Path:
        """One file for each finished job."""
        return self.user / "history"
