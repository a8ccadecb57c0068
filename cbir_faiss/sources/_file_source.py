"""What every source of image files shares: order, opening, and a digest of each file."""

from __future__ import annotations

import hashlib
import os
import stat
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from cbir_faiss import base
from cbir_faiss.base.options import Options
from cbir_faiss.errors import BadImage, NoAccess
from cbir_faiss.images import DEFAULT_MAX_MEGAPIXELS

if TYPE_CHECKING:
    from PIL import Image


_PIXEL_BYTES = 8  # four channels of sixteen bits: no image file takes more


def most_bytes(max_megapixels: float) -> int:
    """No image file of so many megapixels is larger."""
    return int(max_megapixels * 1e6 * _PIXEL_BYTES)


class FileOptions(Options):
    """max_megapixels: larger images are failures; read from the header, so they cost nothing. So are files of more
    bytes than such an image takes."""

    max_megapixels: float = Field(DEFAULT_MAX_MEGAPIXELS, gt=0)


class Files:
    """Items and the files they stand for, sorted by the items' paths."""

    def __init__(self, pairs: Iterable[tuple[base.Item, Path]], max_megapixels: float) -> None:
        ordered = sorted(pairs, key=lambda pair: pair[0].path)
        self.items = [item for item, _ in ordered]
        self.paths = [path for _, path in ordered]
        self.max_megapixels = max_megapixels

    def read(self, index: int, min_side: int | None = None) -> Image.Image:
        """Image ``index``, of at least ``min_side`` pixels a side if it has them; BadImage where it cannot be used."""
        from cbir_faiss.images.reading import open_image

        return open_image(self.paths[index], max_megapixels=self.max_megapixels, min_side=min_side)

    def content(self, index: int) -> base.Content:
        """SHA-256 of the file, with the image of the same bytes. Raises what ``content_key`` does."""
        data = self._bytes(index)
        return base.Content(hashlib.sha256(data).digest(), partial(self._decoded, data))

    def content_key(self, index: int) -> bytes:
        """SHA-256 of the file. NoAccess where it cannot be read, BadImage where it is none that may hold an image."""
        return hashlib.sha256(self._bytes(index)).digest()

    def _bytes(self, index: int) -> bytes:
        path = self.paths[index]
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):  # see ``images_below``
                os.scandir(path).close()
                raise NoAccess("a folder that could not be listed")
            if not stat.S_ISREG(status.st_mode):
                raise BadImage("not a regular file")  # reading a pipe would wait for ever
            if status.st_size > most_bytes(self.max_megapixels):
                raise BadImage(f"{status.st_size:,} bytes are more than {self.max_megapixels:g} megapixels take")
            return path.read_bytes()
        except FileNotFoundError as error:
            raise BadImage(str(error.strerror)) from error
        except OSError as error:
            raise NoAccess(str(error.strerror or error)) from error

    def _decoded(self, data: bytes, min_side: int | None) -> Image.Image:
        from cbir_faiss.images.reading import open_image

        return open_image(data, max_megapixels=self.max_megapixels, min_side=min_side)

    def stamp(self, index: int) -> base.Stamp | None:
        """Size and time of change of the file, None where it is gone."""
        try:
            status = self.paths[index].stat()
        except OSError:
            return None
        return status.st_size, status.st_mtime_ns


class FileSource(base.Source):
    """A source whose items are image files. An author writes ``_find``."""

    @cached_property
    def files(self) -> Files:
        """The items and their files, looked for once."""
        return Files(self._find(), self.options.max_megapixels)

    @abstractmethod
    def _find(self) -> Iterable[tuple[base.Item, Path]]: ...

    def _items(self) -> Sequence[base.Item]:
        return self.files.items

    def _read(self, index: int) -> Image.Image:
        return self.files.read(index)

    def _read_reduced(self, index: int, min_side: int) -> Image.Image:
        return self.files.read(index, min_side)

    def _content_key(self, index: int) -> bytes:
        return self.files.content_key(index)

    def _content(self, index: int) -> base.Content:
        return self.files.content(index)

    def _stamp(self, index: int) -> base.Stamp | None:
        return self.files.stamp(index)
