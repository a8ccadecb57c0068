"""What every source of image files inside other files shares: order, decoding, and a digest of each image."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbir_faiss import base
from cbir_faiss.errors import BadImage, InputError
from cbir_faiss.sources._file_source import most_bytes

if TYPE_CHECKING:
    from PIL import Image


class PackedSource(base.Source):
    """A source whose items are image files inside others. An author writes ``_find``, ``_bytes`` and ``_holder``, and
    has ``FileOptions``."""

    @abstractmethod
    def _find(self) -> Iterable[tuple[base.Item, Any]]:
        """Every item and the place of its image, in any order."""

    @abstractmethod
    def _bytes(self, place: Any, most: int) -> bytes:
        """The image file at a place; of one that is larger, no more than ``most`` + 1 bytes. Thread-safe.

        Raises:
            BadImage: it is damaged. NoAccess: it cannot be read now.
        """

    @abstractmethod
    def _holder(self, place: Any) -> Path:
        """The file that holds it."""

    @cached_property
    def _found(self) -> tuple[list[base.Item], list[Any]]:
        pairs = sorted(self._find(), key=lambda pair: pair[0].path)
        for (before, _), (item, _) in pairwise(pairs):
            if before.path == item.path:
                raise InputError(f"source '{self.name}': '{item.path}' is there twice: {self._place()}")
        return [item for item, _ in pairs], [place for _, place in pairs]

    def _items(self) -> Sequence[base.Item]:
        return self._found[0]

    def _data(self, index: int) -> bytes:
        most = most_bytes(self.options.max_megapixels)
        data = self._bytes(self._found[1][index], most)
        if len(data) > most:
            raise BadImage(f"more than the {most:,} bytes that {self.options.max_megapixels:g} megapixels take")
        return data

    def _decoded(self, data: bytes, min_side: int | None) -> Image.Image:
        from cbir_faiss.images.reading import open_image

        return open_image(data, max_megapixels=self.options.max_megapixels, min_side=min_side)

    def _read(self, index: int) -> Image.Image:
        return self._decoded(self._data(index), None)

    def _read_reduced(self, index: int, min_side: int) -> Image.Image:
        return self._decoded(self._data(index), min_side)

    def _content_key(self, index: int) -> bytes:
        return hashlib.sha256(self._data(index)).digest()

    def _content(self, index: int) -> base.Content:
        data = self._data(index)
        return base.Content(hashlib.sha256(data).digest(), partial(self._decoded, data))

    def _stamp(self, index: int) -> base.Stamp | None:
        return self._stamp_of(self._holder(self._found[1][index]))

    def _stamp_of(self, file: Path) -> base.Stamp | None:
        try:
            status = file.stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns
