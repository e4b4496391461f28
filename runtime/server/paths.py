"""Names that come from outside, as paths that stay inside."""

from __future__ import annotations

import re
from pathlib import Path

# Refused on every system, so that a folder that is shared or moved means the same everywhere: ":" names a drive or a
# second stream on Windows, "\" is its separator, and these names are its devices.
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|conin\$|conout\$)(\..*)?", re.IGNORECASE)
_LONGEST_NAME, _LONGEST_PATH = 200, 1000


class BadPath(ValueError):
    """A name that leads out of its folder, or that some system cannot hold."""


def contained(root: Path, name: str) -> Path:
    """The path of `name`, parts joined by "/", below `root`; neither need exist. No part may be a way up or a link that
    leads out. BadPath says why not."""
    if not name or len(name) > _LONGEST_PATH:
        raise BadPath("expected the name of a file, of at most 1000 letters")
    for part in name.split("/"):
        _check(part, name)
    home = root.resolve()
    path = home.joinpath(name).resolve()
    if not path.is_relative_to(home) or path == home:
        raise BadPath(f"{name[:80]!r} leads out of its folder")
    return path


def below(root: Path, name: str) -> Path:
    """As `contained`, but an empty name is `root` itself, and a slash may end the name."""
    name = name.removesuffix("/")
    return contained(root, name) if name else root.resolve()


def joined(folder: str, name: str) -> str:
    """A file's name below the subfolder that came with it, which may be empty."""
    folder = folder.removesuffix("/")
    return f"{folder}/{name}" if folder else name


def _check(part: str, name: str) -> None:
    shown = ascii(name[:80])
    if part in ("", ".", ".."):
        raise BadPath(f"{shown}: expected names joined by single slashes, without “..”")
    if _FORBIDDEN.search(part):
        raise BadPath(f'{shown}: a name may hold none of \\ : * ? " < > | and no control characters')
    if part[-1] in " ." or part[0] == " " or _DEVICE.fullmatch(part):
        raise BadPath(f"{shown}: not every system can hold this name")
    try:
        size = len(part.encode())
    except UnicodeEncodeError:
        raise BadPath(f"{shown}: the name is not text") from None
    if size > _LONGEST_NAME:
        raise BadPath(f"{shown}: the name is longer than {_LONGEST_NAME} bytes")
