"""A folder of images; the name of the sub-folder is the class."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from cbir_faiss import base
from cbir_faiss._lib.files import is_folder
from cbir_faiss.base.options import RelativePath
from cbir_faiss.errors import InputError
from cbir_faiss.sources._file_source import FileOptions, FileSource


class Folder(FileSource):
    """Every image below ``root``, at any depth; its label is the first folder below ``root``, if it lies in one.

    A file counts as an image by its suffix; other files, and hidden files and folders, are passed over. Links to
    folders are followed, but not back into a folder that one stands in. A folder that cannot be listed is an item that
    cannot be read. Names that are not UTF-8 are shown with their odd bytes as ``\\xNN``.
    """

    name: ClassVar[str] = "folder"

    class Options(FileOptions):
        """root: the folder, relative to the config file."""

        root: RelativePath

    options: Options

    @property
    def root(self) -> Path:
        return self.options.root

    def _find(self) -> Iterator[tuple[base.Item, Path]]:
        root = existing_folder(self.options.root, self.name)
        for path in images_below(root):
            relative = shown(path.relative_to(root))
            label, separator, _ = relative.partition("/")
            yield base.Item(relative, (label,) if separator else ()), path

    def _place(self) -> str:
        return f"no image file (by suffix) below {self.options.root}"


def existing_folder(folder: Path, source: str) -> Path:
    """``folder``; InputError in the name of ``source`` where there is none."""
    if not is_folder(folder):
        reason = "not a folder" if os.path.lexists(folder) else "no such folder"
        raise InputError(f"source '{source}': {reason}: {shown(folder)}")
    return folder


def shown(path: Path) -> str:
    """A path as an item is named: with slashes, odd bytes as ``\\xNN``."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def images_below(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """Image files (by suffix) below ``folder``; ``above`` are the devices and inodes of the folders it lies in."""
    from cbir_faiss.images.reading import image_suffixes

    try:
        status = folder.stat()
        entries = list(os.scandir(folder))
    except OSError as error:
        if above:
            yield folder  # an item that fails when it is read; what else there is can be used
            return
        raise InputError(f"source 'folder': cannot list {shown(folder)}: {error.strerror}") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = folder / entry.name
        # A directory entry raises where a link leads to itself or to where one may not look; this says no.
        linked = entry.is_symlink()
        if is_folder(path) if linked else entry.is_dir():
            yield from images_below(path, above | {here})
        # A link to nothing is an item that fails when it is read; pipes, sockets and devices are none.
        elif path.suffix.lower() in image_suffixes() and (linked or entry.is_file()):
            yield path
