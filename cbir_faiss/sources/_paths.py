"""Files and folders named one by one: what is added to a collection by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from cbir_faiss import base
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

    def _find(self) -> Iterator[tuple[base.Item, Path]]:
        found: dict[str, tuple[base.Item, Path]] = {}
        for given in self.options.paths:
            path = given.absolute()
            if not path.exists() and not path.is_symlink():
                raise InputError(f"no such file or folder: {given}")
            for file in images_below(path) if path.is_dir() else [path]:
                item = self._item(file, path if path.is_dir() else None)
                found[item.path] = item, file
        yield from found.values()

    def _item(self, file: Path, folder: Path | None) -> base.Item:
        below = self.options.below
        if below is not None and file.is_relative_to(below):
            name = within = shown(file.relative_to(below))
        else:
            name, within = shown(file), shown(file.relative_to(folder)) if folder else ""
        label, separator, _ = within.partition("/")
        return base.Item(name, (label,) if separator else ())

    def _place(self) -> str:
        return f"no image file (by suffix) in {', '.join(map(str, self.options.paths))}"
