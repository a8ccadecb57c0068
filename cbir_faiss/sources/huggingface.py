"""A data set of Hugging Face's on disk: saved by ``datasets``, or its Parquet files, read by pyarrow alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from cbir_faiss import base
from cbir_faiss.base.options import RelativePath
from cbir_faiss.errors import BadImage, InputError, NoAccess
from cbir_faiss.sources._arrow import Table, files_of, wrong
from cbir_faiss.sources._file_source import FileOptions
from cbir_faiss.sources._given import named_item, plain_row
from cbir_faiss.sources._packed import PackedSource

_DIGITS = 9
_LABELS = ("label", "labels", "fine_label")


class _Place(NamedTuple):
    file: Path
    block: int
    row: int
    """In the block."""


class HuggingFace(PackedSource):
    """One row an item, called by the column ``key``, or by its row number of nine digits.

    Numbers of classes become their names. The file name that an image brings is the payload ``file``; all other
    columns but images and bytes are payload, those called ``path`` and ``label`` as ``payload.path`` and
    ``payload.label``.
    """

    name: ClassVar[str] = "huggingface"

    class Options(FileOptions):
        """path: the folder that ``save_to_disk`` wrote, or one with the Parquet files of a data set.
        split: ``train``, …; to be given where there are several. image, label: their columns, found by the data set's
        features where left out. key: a column of texts or numbers, each once, that name the items."""

        path: RelativePath
        split: str | None = None
        image: str | None = None
        label: str | None = None
        key: str | None = None

    options: Options

    def _setup(self) -> None:
        self._lock = threading.Lock()
        self._block: tuple[tuple[Path, int], Any] | None = None

    @cached_property
    def _table(self) -> Table:
        return Table(files_of(self.options.path, self.options.split))

    @cached_property
    def _image(self) -> str:
        names, told = self._table.schema.names, self._table.features
        images = [name for name in names if _kind(told.get(name)) == "Image"] or ["image"]
        return self._column("image", self.options.image or images[0])

    def _column(self, option: str, name: str) -> str:
        """``name``; InputError where there is no such column."""
        names = self._table.schema.names
        if name not in names:
            raise wrong(f"{self.options.path} has no column '{name}': give option {option}; it has {', '.join(names)}")
        return name

    def _find(self) -> Iterator[tuple[base.Item, _Place]]:
        table, image = self._table, self._image
        facts = [name for name in table.schema.names if name != image and self._is_fact(name)]
        has_paths = "path" in [field.name for field in _fields(table.schema.field(image).type)]
        number = 0
        for file, block, rows in table.blocks([*facts, f"{image}.path" if has_paths else image]):
            documents = rows.select(facts).to_pylist() if facts else [{} for _ in range(rows.num_rows)]
            paths = _paths(rows.column(image)) if has_paths else [None] * rows.num_rows
            for row, (document, path) in enumerate(zip(documents, paths, strict=True)):
                yield self._item(number, document, path), _Place(file, block, row)
                number += 1

    def _item(self, number: int, document: dict[str, Any], file: str | None) -> base.Item:
        name, label = self._named
        path = f"{number:0{_DIGITS}d}" if name is None else _key(number, name, document.pop(name))
        labels = self._labels(label, document.pop(label, None)) if label else []
        facts = plain_row(path, {"file": Path(file).name, **document} if file else document)
        return named_item(path, labels, facts)

    @cached_property
    def _named(self) -> tuple[str | None, str | None]:
        """The columns of names and of labels."""
        key, label, names = self.options.key, self.options.label, self._table.schema.names
        known = next((name for name in _LABELS if name in names), None)
        return self._plain_column("key", key) if key else None, self._plain_column("label", label) if label else known

    def _plain_column(self, option: str, name: str) -> str:
        """``name``; InputError where there is no such column, or where it holds images."""
        if self._column(option, name) == self._image or not self._is_fact(name):
            raise wrong(f"the column '{name}' holds images or bytes: give option {option} another")
        return name

    def _labels(self, column: str | None, given: Any) -> list[Any]:
        """The labels of a row, numbers of classes as their names; -1 is what has none."""
        some = given if isinstance(given, list) else [] if given is None else [given]
        told = self._table.features.get(column or "")
        names = _names(told)
        some = [one for one in some if not (names and one == -1)]
        return [names[one] if isinstance(one, int) and 0 <= one < len(names) else one for one in some]

    def _is_fact(self, name: str) -> bool:
        """Whether a column is worth its place in the payload."""
        bytes_inside = "binary" in str(self._table.schema.field(name).type)
        return not bytes_inside and _kind(self._table.features.get(name)) not in ("Image", "Audio", "Video")

    def _bytes(self, place: _Place, most: int) -> bytes:
        try:
            value = self._rows(place)[place.row].as_py()
        except InputError as error:
            raise NoAccess(str(error)) from error
        data = value.get("bytes") if isinstance(value, dict) else value
        if data is None and isinstance(value, dict) and value.get("path"):
            return self._file_bytes(self.options.path / value["path"], most)
        if not isinstance(data, bytes):
            raise BadImage("the row has no image")
        return data[: most + 1]

    def _file_bytes(self, file: Path, most: int) -> bytes:
        try:
            with file.open("rb") as opened:
                return opened.read(most + 1)
        except OSError as error:
            raise NoAccess(f"{file}: {error.strerror}") from error
        except ValueError as error:
            raise BadImage(f"the row names no file: {error}") from error

    def _rows(self, place: _Place) -> Any:
        """The images of a block; the last one is kept, because items are read in order."""
        with self._lock:
            if self._block is None or self._block[0] != place[:2]:
                self._block = place[:2], self._table.block(place.file, place.block, [self._image]).column(self._image)
            return self._block[1]

    def _holder(self, place: _Place) -> Path:
        return place.file

    def _place(self) -> str:
        return f"no rows in {self.options.path}"


def _key(number: int, name: str, value: Any) -> str:
    """A row's value of the column that names the rows. InputError where it cannot."""
    if not isinstance(value, (str, int, float)):
        raise wrong(f"row {number + 1} has no text or number in column '{name}', which is to name it: {value!r}")
    return str(value)


def _kind(told: Any) -> str:
    """What ``datasets`` calls a feature."""
    return str(told.get("_type")) if isinstance(told, dict) else ""


def _names(told: Any) -> list[str]:
    """The names of the classes of a feature, or of a list of it."""
    while isinstance(told, list) or (isinstance(told, dict) and "feature" in told):
        told = told[0] if isinstance(told, list) else told["feature"]
    return list(told.get("names") or ()) if isinstance(told, dict) else []


def _fields(kind: Any) -> list[Any]:
    return [kind.field(i) for i in range(kind.num_fields)]


def _paths(images: Any) -> list[str | None]:
    """The paths that a column of images has beside their bytes, which are not touched."""
    names = [field.name for field in _fields(images.type)]
    paths: list[str | None] = images.flatten()[names.index("path")].to_pylist()
    return paths
