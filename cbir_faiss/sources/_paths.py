"""Files and folders named one by one: what is added to a collection by hand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from cbir_faiss import base
from cbir_faiss._lib.files import is_folder
from cbir_faiss.errors import InputError
from cbir_faiss.sources._file_source import FileOptions, FileSource
from cbir_faiss.sources.folder import images_below, shown


class Paths(FileSource):
    """Every named file, and every image below every named folder.

    What lies below ``below`` is named relative to it and labelled with its first folder there, as source ``folder``
    would; anything else by its absolute path, with the first folder below the named one as label.
    """

    name: ClassVar[str] = "paths"

    class Options(FileOptions):
        """paths: files and folders. below: the folder of the collection's own source, if it has one."""

        paths: tuple[Path, ...]
        below: Path | None = None

    options: Options

    def __init__(self, *, paths: Sequence[str | Path], **options: Any) -> None:
        self._given = [Path(path) for path in paths]  # options are text, and a name need not be
        super().__init__(paths=[shown(path) for path in self._given], **options)

    def _find(self) -> Iterator[tuple[base.Item, Path]]:
        found: dict[str, tuple[base.Item, Path]] = {}
        for given in self._given:
            path = placed(given)
            if not os.path.lexists(path):
                raise InputError(f"no such file or folder: {shown(given)}")
            folder = path if is_folder(path) else None
            for file in images_below(folder) if folder else [path]:
                item = self._item(file, folder)
                found[item.path] = item, file
        yield from found.values()

    def _item(self, file: Path, folder: Path | None) -> base.Item:
        name = self._below(file) or self._below(_real(file.parent) / file.name)
        within = name or (shown(file.relative_to(folder)) if folder else "")
        label, separator, _ = within.partition("/")
        return base.Item(name or shown(file), (label,) if separator else ())

    def _below(self, file: Path) -> str | None:
        """The file's name in the collection's own source, however that is written; None where it is not there."""
        for root in self._roots:
            if (path := PurePosixPath(shown(file))).is_relative_to(root):
                return str(path.relative_to(root))
        return None

    @cached_property
    def _roots(self) -> list[PurePosixPath]:
        below = self.options.below
        return [] if below is None else [PurePosixPath(shown(placed(below))), PurePosixPath(shown(_real(below)))]

    def _place(self) -> str:
        return f"no image file (by suffix) in {', '.join(map(str, self.options.paths))}"


def placed(path: Path) -> Path:
    """An absolute path without ``..``. Links stay as they are written, but for those that a ``..`` goes back from."""
    path = path.absolute()
    if ".." not in path.parts:
        return path
    last = len(path.parts) - path.parts[::-1].index("..")
    return _real(Path(*path.parts[:last])).joinpath(*path.parts[last:])


def _real(folder: Path) -> Path:
    return Path(os.path.realpath(folder))
