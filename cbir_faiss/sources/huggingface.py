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
from cbir_faiss.sources._arrow import Table, files_of
from cbir_faiss.sources._file_source import FileOptions
from cbir_faiss.sources._given import item_of, plain_row
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
    columns but images and bytes are payload.
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
        with self._explained():
            return Table(files_of(self.options.path, self.options.split))

    @cached_property
    def _image(self) -> str:
        kinds = self._table.features
        named = [name for name, told in kinds.items() if isinstance(told, dict) and told.get("_type") == "Image"]
        return self._column(self.options.image, "image", named or [n for n in self._table.schema.names if n == "image"])

    def _column(self, asked: str | None, option: str, there: list[str]) -> str:
        names = self._table.schema.names
        found = asked if asked in names else there[0] if asked is None and there else None
        if found is None:
            what = f"no column '{asked}'" if asked else f"no column of images that its features name; give {option}"
            raise InputError(f"source 'huggingface': {self.options.path} has {what}; it has {', '.join(names)}")
        return found

    def _find(self) -> Iterator[tuple[base.Item, _Place]]:
        table, image, o = self._table, self._image, self.options
        label = next((name for name in _LABELS if name in table.schema.names), None)
        label = self._column(o.label, "label", []) if o.label else label
        key = self._column(o.key, "key", []) if o.key else None
        classes = (table.features.get(label or "") or {}).get("names") if label else None
        nested = "path" in [field.name for field in _fields(table.schema.field(image).type)]
        columns = [name for name in table.schema.names if name != image and self._is_fact(name)]
        number = 0
        with self._explained():
            for file, block, rows in table.blocks([*columns, *([f"{image}.path"] if nested else [])]):
                for row, values in enumerate(_without_bytes(rows, image).to_pylist()):
                    path = f"{number:0{_DIGITS}d}" if key is None else str(values.pop(key))
                    yield self._item(path, values, image, label, classes), _Place(file, block, row)
                    number += 1

    def _item(self, path: str, values: dict[str, Any], image: str, label: str | None, classes: Any) -> base.Item:
        own = (values.pop(image, None) or {}).get("path")
        given = values.pop(label) if label else None
        some = given if isinstance(given, list) else [] if given is None else [given]
        labels = [classes[one] if classes and isinstance(one, int) and 0 <= one < len(classes) else one for one in some]
        facts = {"file": Path(own).name} if own else {}
        return item_of({**facts, **plain_row(path, values), "path": path, "label": labels})

    def _is_fact(self, name: str) -> bool:
        """Whether a column is worth its place in the payload."""
        told = self._table.features.get(name)
        kind = str(self._table.schema.field(name).type)
        return "binary" not in kind and not (
            isinstance(told, dict) and told.get("_type") in ("Image", "Audio", "Video")
        )

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

    def _rows(self, place: _Place) -> Any:
        """The images of a block; the last one is kept, because items are read in order."""
        with self._lock:
            if self._block is None or self._block[0] != place[:2]:
                self._block = place[:2], self._table.block(place.file, place.block, [self._image]).column(self._image)
            return self._block[1]

    def _holder(self, place: _Place) -> Path:
        return place.file

    def _explained(self) -> Any:
        return _Explained()

    def _place(self) -> str:
        return f"no rows in {self.options.path}"


class _Explained:
    """Whatever is wrong with the files is said in the name of the source."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, InputError) and not str(error).startswith("source "):
            raise InputError(f"source 'huggingface': {error}") from error


def _fields(kind: Any) -> list[Any]:
    return [kind.field(i) for i in range(kind.num_fields)]


def _without_bytes(rows: Any, image: str) -> Any:
    """The rows with no more of the image column than its paths."""
    if image not in rows.column_names:
        return rows
    position = rows.column_names.index(image)
    column = rows.column(image).combine_chunks()
    import pyarrow

    paths = pyarrow.StructArray.from_arrays([column.field("path")], ["path"])
    return rows.set_column(position, image, paths)
