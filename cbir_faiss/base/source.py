"""Where images, vectors, labels and payload come from."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from cbir_faiss.base.plugin import Plugin
from cbir_faiss.errors import InputError
from cbir_faiss.types import Payload

Stamp = tuple[int, int]
"""Bytes of a file, and when it was changed, in nanoseconds."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to index: ``path`` names it uniquely in its source; ``labels``: no class, one or several.

    ignored: labels to whose queries the item is neither right nor wrong: a comparison takes it out of their rankings.
    """

    path: str
    labels: tuple[str, ...] = ()
    payload: Payload = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


class Content(NamedTuple):
    """What an item holds, read once: its key, and ``read(min_side)``, which does of the same bytes what
    ``Source.read`` does."""

    key: bytes
    read: Callable[[int | None], Any]


class Source(Plugin):
    """Where images (or ready vectors), labels and payload come from."""

    yields: ClassVar[Literal["image", "vector"]] = "image"

    def items(self) -> Sequence[Item]:
        """Every item, sorted by ``path``, without reading its content.

        Raises:
            InputError: the place does not exist or holds nothing usable; the message says what was looked for.
        """
        items = self._items()
        if not items:
            raise InputError(f"source '{self.name}' is empty: {self._place()}")
        return items

    @property
    def root(self) -> Path | None:
        """The folder that the items' paths are relative to; None where the items are not files."""
        return None

    def read(self, index: int, min_side: int | None = None) -> Any:
        """Item ``index`` of ``items()``: an RGB ``PIL.Image`` or a float32 vector. Thread-safe.

        ``min_side`` allows a picture to be read smaller than it is, with no fewer pixels than that on its shorter side.

        Raises:
            BadImage: this one item cannot be used; a large job records it and goes on.
            NoAccess: it cannot be read at all now; a later build tries again.
        """
        return self._read(index) if min_side is None else self._read_reduced(index, min_side)

    def content_key(self, index: int) -> bytes:
        """SHA-256 of the item's content (of a vector: of its float32 values): equal bytes, equal keys, any path."""
        return self._content_key(index)

    def content(self, index: int) -> Content:
        """``content_key`` and ``read`` of one look at the item: they belong together even where its file is replaced
        meanwhile. Raises what these do."""
        return self._content(index)

    def name_like(self, path: str) -> None:
        """Name the items as a collection of an earlier version does, one of whose items is ``path``."""

    def stamp(self, index: int) -> Stamp | None:
        """Size and time of change of the file that holds the item: while it is the same, so is the content.

        None where there is no such file: it is gone, or the item is part of a data set that does not change.
        """
        return self._stamp(index)

    def source_digest(self) -> str:
        """A digest of what ``items`` and their stamps say: while it is the same, nothing has changed."""
        return self._survey()

    @abstractmethod
    def _items(self) -> Sequence[Item]: ...
    @abstractmethod
    def _read(self, index: int) -> Any: ...
    @abstractmethod
    def _content_key(self, index: int) -> bytes: ...
    def _read_reduced(self, index: int, min_side: int) -> Any:
        return self._read(index)

    def _content(self, index: int) -> Content:
        """To be written where the item would be read twice: another may stand in its place the second time."""
        return Content(self.content_key(index), partial(self.read, index))

    def _stamp(self, index: int) -> Stamp | None:
        return None

    def _survey(self) -> str:
        digest = hashlib.sha256()
        for index, item in enumerate(self.items()):
            said = item.path, item.labels, dict(item.payload), self.stamp(index)
            digest.update(json.dumps(said, default=str).encode())
        return digest.hexdigest()

    def _place(self) -> str:
        return repr(self)
