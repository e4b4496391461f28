"""The one door to the V3 schema: ComfyUI's own where ComfyUI is the host, ours elsewhere.

The rule is that of `hosts.host()`: the host is whoever imported us.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..hosts import schema as io
    from ..hosts import ui

    class ComfyExtension:
        """What ComfyUI expects of an entry point."""
elif "comfy" in sys.modules:
    from comfy_api.latest import ComfyExtension, io, ui
else:
    from ..hosts import schema as io
    from ..hosts import ui

    ComfyExtension = object

__all__ = ["ComfyExtension", "io", "schema", "ui"]


def schema(node_id: str, *, search_aliases: Sequence[str] = (), **fields: Any) -> io.Schema:
    """`io.Schema`, with the words that the node search also finds it by. ComfyUI before 0.4 has no such field: there
    they are left out."""
    if search_aliases and "search_aliases" in {each.name for each in dataclasses.fields(io.Schema)}:
        fields["search_aliases"] = list(search_aliases)
    return io.Schema(node_id=node_id, **fields)
