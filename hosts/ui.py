"""ComfyUI's `ui` of the V3 schema, as much of it as our nodes use, for where ComfyUI is not.

A preview only holds its pictures: the executor, which knows the folders, writes them to the temporary one and tells the
browser their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .schema import FolderType, UiOutput

if TYPE_CHECKING:
    from torch import Tensor


class SavedResult(dict[str, str]):
    """One file, by its name, the folder inside the output (or temporary, or input) folder, and which of these it is."""

    def __init__(self, filename: str, subfolder: str, type: FolderType):
        super().__init__(filename=filename, subfolder=subfolder, type=FolderType(type).value)


class SavedImages(UiOutput):
    """Pictures that the node has saved."""

    def __init__(self, results: Sequence[SavedResult], is_animated: bool = False):
        self.results, self.is_animated = list(results), is_animated

    def as_dict(self) -> dict[str, Any]:
        """Their files."""
        return {"images": self.results} | ({"animated": (True,)} if self.is_animated else {})


class PreviewImage(UiOutput):
    """Pictures to show: `image` is an IMAGE [B, H, W, 3] in 0 .. 1. `cls` is the node that shows them."""

    def __init__(self, image: Tensor, animated: bool = False, cls: Any = None):
        self.image, self.animated = image, animated
        self.results: list[SavedResult] = []

    def as_dict(self) -> dict[str, Any]:
        """Their files, once the executor has written them."""
        return {"images": self.results, "animated": (self.animated,)}


class PreviewMask(PreviewImage):
    """A MASK [B, H, W] shown in grey."""

    def __init__(self, mask: Tensor, animated: bool = False, cls: Any = None):
        grey = mask.reshape(-1, 1, mask.shape[-2], mask.shape[-1]).movedim(1, -1)
        super().__init__(grey.expand(-1, -1, -1, 3), animated, cls)


class PreviewText(UiOutput):
    """Text shown on the node."""

    def __init__(self, value: str):
        self.value = value

    def as_dict(self) -> dict[str, Any]:
        """The text."""
        return {"text": (self.value,)}
