"""INRIA Holidays: 500 groups of photographs of one scene, the first of each group being its query."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from cbir_faiss import base
from cbir_faiss.base.options import RelativePath
from cbir_faiss.errors import InputError
from cbir_faiss.sources._file_source import FileOptions, FileSource
from cbir_faiss.sources.folder import existing_folder, images_below, shown


class Holidays(FileSource):
    """Every image below ``root`` as a database, or the first of each group as queries.

    Lay the data out as it is distributed, all in one folder (or in several below it): the name of a file is a number,
    ``100000.jpg``, ``100001.jpg``, …; the number // 100 is its group (and label), and the one that ends in 00 is the
    group's query. Then

        source: {name: holidays, root: jpg/}
        queries: {source: {name: holidays, root: jpg/, part: queries}}

    A query's own picture is in the database and ignored by its query, as in the data's own evaluation; it is a wrong
    result to all others. That evaluation is the mean of full AP: ``map_full@k``, k the number of images.
    """

    name: ClassVar[str] = "holidays"

    class Options(FileOptions):
        """root: the folder. part: which side."""

        root: RelativePath
        part: Literal["database", "queries"] = "database"

    options: Options

    @property
    def root(self) -> Path:
        return self.options.root

    def _find(self) -> Iterator[tuple[base.Item, Path]]:
        root = existing_folder(self.options.root, self.name)
        seen: dict[int, Path] = {}
        for path in images_below(root):
            number = _number(path)
            if number in seen:
                raise InputError(f"source 'holidays': two pictures have the number {number}: {seen[number]}, {path}")
            seen[number] = path
        without = sorted({number // 100 for number in seen} - {number // 100 for number in seen if number % 100 == 0})
        if without:
            raise InputError(
                f"source 'holidays': {len(without)} groups have no query, {without[0]} first: "
                f"{without[0]}00.jpg is not below {root}"
            )
        for number, path in seen.items():
            group, is_query = (str(number // 100),), number % 100 == 0
            if is_query or self.options.part == "database":
                yield base.Item(shown(path.relative_to(root)), group, {}, group if is_query else ()), path

    def _place(self) -> str:
        return f"no image file (by suffix) below {self.options.root}"


def _number(path: Path) -> int:
    if not (path.stem.isascii() and path.stem.isdigit()):
        raise InputError(f"source 'holidays': the name of a picture is a number such as 100000.jpg, not {path.name}")
    return int(path.stem)
