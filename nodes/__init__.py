"""The pack's nodes. One module for each family; a node unwraps, calls one function of the engine, and wraps."""

from __future__ import annotations

import logging

from ._api import ComfyExtension, io


class VelaturaExtension(ComfyExtension):
    """What ComfyUI loads."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The pack's nodes."""
        # ComfyUI reports an error of an entry point in one line, without saying where it happened.
        try:
            from .catalog import NODES
        except Exception:
            logging.getLogger(__name__).exception("Velatura's nodes cannot be loaded")
            raise
        return list(NODES)
