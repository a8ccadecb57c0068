"""A zip archive of images, read where it lies; the name of the folder in it is the class."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar
from zipfile import BadZipFile, ZipFile, ZipInfo

from cbir_faiss import base
from cbir_faiss.base.options import RelativePath
from cbir_faiss.errors import BadImage, InputError, NoAccess, one_line
from cbir_faiss.sources._file_source import FileOptions
from cbir_faiss.sources._packed import PackedSource

_UNREADABLE = (BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError)
"""What is said of a member that is damaged, encrypted, or packed in a rare way."""


class Zip(PackedSource):
    """Every image of the archive, at any depth, by its name there; its label is the first folder, if it lies in one.

    A member counts as an image by its suffix; others, and hidden ones, are passed over.
    """

    name: ClassVar[str] = "zip"

    class Options(FileOptions):
        """file: the archive."""

        file: RelativePath

    options: Options

    def _find(self) -> Iterator[tuple[base.Item, ZipInfo]]:
        from cbir_faiss.images.reading import image_suffixes

        # Of members of one name the last counts, as when they are unpacked.
        for name, member in {one.filename: one for one in self._archive.infolist()}.items():
            path = PurePosixPath(name)
            hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
            if not member.is_dir() and not hidden and path.suffix.lower() in image_suffixes():
                yield base.Item(str(path), path.parts[:1] if len(path.parts) > 1 else ()), member

    @cached_property
    def _archive(self) -> ZipFile:
        file = self.options.file
        if not file.is_file():
            raise InputError(f"source 'zip': no such file: {file}")
        try:
            return ZipFile(file)
        except (BadZipFile, ValueError, NotImplementedError) as error:  # a name that is no UTF-8, or a newer version
            raise InputError(f"source 'zip': {file} is not a whole zip archive: {one_line(error)}") from error
        except OSError as error:
            raise InputError(f"source 'zip': {file}: {error.strerror}") from error

    def _bytes(self, place: ZipInfo, most: int) -> bytes:
        try:
            with self._archive.open(place) as member:
                return member.read(most + 1)
        except OSError as error:
            if error.errno is None:  # bz2's word for damage
                raise BadImage(f"cannot be unpacked: {error}") from error
            raise NoAccess(str(error.strerror)) from error
        except _UNREADABLE as error:
            raise BadImage(f"cannot be unpacked: {error}") from error

    def _holder(self, place: ZipInfo) -> Path:
        return self.options.file

    def _place(self) -> str:
        return f"no image (by suffix) in {self.options.file}"
