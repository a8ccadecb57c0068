"""Images named in a table: CSV, JSON Lines or Parquet with path, label and any other columns as payload."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from cbir_faiss import base
from cbir_faiss.base.options import RelativePath, need
from cbir_faiss.errors import InputError
from cbir_faiss.sources._file_source import FileOptions, FileSource
from cbir_faiss.sources._given import is_text, plain_row

_Row = tuple[str, dict[str, Any]]
"""Where a row stands ("line 3"), and its values by column."""

_INTEGER = re.compile(r"-?(0|[1-9]\d*)")
_WHOLE, _LONGEST = 2**63, len(str(-(2**63)))
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d{1,2})?")


class List(FileSource):
    """One row an image. ``path`` is required; ``label`` is one class, or a list of several; the rest is payload.

    An empty cell of a CSV file, and null or NaN in Parquet, is a value that is not there. A CSV column in which every
    value is written like a number (without leading zeros) holds numbers, any other holds text.
    """

    name: ClassVar[str] = "list"

    class Options(FileOptions):
        """file: ``.csv``, ``.jsonl`` (or ``.ndjson``) or ``.parquet``. root: what paths in it are relative to; the
        folder of the file where left out. label_separator: between the labels of one CSV cell."""

        file: RelativePath
        root: RelativePath | None = None
        label_separator: str | None = None

    options: Options

    @property
    def root(self) -> Path:
        return self.options.root or self.options.file.parent

    def _find(self) -> Iterator[tuple[base.Item, Path]]:
        file = self.options.file
        readers: dict[str, Callable[[Path], Iterator[_Row]]] = {
            ".csv": partial(_csv, separator=self.options.label_separator),
            ".jsonl": _jsonl,
            ".ndjson": _jsonl,
            ".parquet": _parquet,
        }
        if file.suffix.lower() not in readers:
            raise InputError(f"source 'list': {file}: the suffix must be one of {', '.join(readers)}")
        if not file.is_file():
            raise InputError(f"source 'list': no such file: {file}")
        seen: dict[str, str] = {}
        root = self.root
        try:
            for where, row in readers[file.suffix.lower()](file):
                item = _item(where, row)
                if item.path in seen:
                    raise InputError(f"{where}: '{item.path}' stands in {seen[item.path]} already")
                seen[item.path] = where
                yield item, root / item.path
        except InputError as error:
            raise InputError(f"source 'list': {file}: {error}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"source 'list': {file}: not UTF-8 text: {error}") from error

    def _place(self) -> str:
        return f"no rows in {self.options.file}"


def _item(where: str, row: dict[str, Any]) -> base.Item:
    path, label = row.pop("path", None), row.pop("label", None)
    if not isinstance(path, str) or not path or "\0" in path or not is_text(base.Item(path)):
        raise InputError(f"{where}: 'path' must be the path of an image, not {path!r}")
    labels = label if isinstance(label, list) else [] if label is None else [label]
    if not all(isinstance(value, (str, int)) for value in labels):
        raise InputError(f"{where}: 'label' must be a text, an integer or a list of them, not {label!r}")
    return base.Item(path, tuple(dict.fromkeys(str(value) for value in labels)), row)


def _csv(file: Path, separator: str | None) -> Iterator[_Row]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            header = next(reader, [])
            if "path" not in header or len(set(header)) != len(header):
                raise InputError(f"line 1: the header must name each column once, and one 'path', got {header}")
            rows = [(reader.line_num, cells) for cells in reader if cells]
        except csv.Error as error:
            raise InputError(f"line {reader.line_num}: {error}") from error
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"line {line}: {len(cells)} values for {len(header)} columns")
    convert = {
        name: str if name in ("path", "label") else _type(cells[at] for _, cells in rows)
        for at, name in enumerate(header)
    }
    for line, cells in rows:
        row = {name: convert[name](cell) for name, cell in zip(header, cells, strict=True) if cell}
        if separator and "label" in row:
            row["label"] = [part.strip() for part in row["label"].split(separator) if part.strip()]
        yield f"line {line}", row


def _type(cells: Iterator[str]) -> Callable[[str], Any]:
    """The narrowest of int, float and str that says what all non-empty cells of a column say: a number that is too long
    is a text, or two ids would be one."""
    told = [cell for cell in cells if cell]
    if all(map(_INTEGER.fullmatch, told)):
        return int if all(len(cell) <= _LONGEST and -_WHOLE <= int(cell) < _WHOLE for cell in told) else str
    return float if all(map(_is_float, told)) else str


def _is_float(cell: str) -> bool:
    """Whether a float is the number that is written here, up to its last digits."""
    if not _NUMBER.fullmatch(cell) or not math.isfinite(float(cell)):
        return False
    return not _INTEGER.fullmatch(cell) or float(cell) == int(cell)


def _jsonl(file: Path) -> Iterator[_Row]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_constant=_no_constant)
            except ValueError as error:
                raise InputError(f"line {number}: not JSON: {error}") from error
            if not isinstance(row, dict):
                raise InputError(f"line {number}: must be a JSON object, not {type(row).__name__}")
            yield f"line {number}", row


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _parquet(file: Path) -> Iterator[_Row]:
    parquet = need("pyarrow.parquet", "parquet")
    try:
        table = parquet.read_table(file)
    except (OSError, ValueError) as error:  # pyarrow's own errors are among these
        raise InputError(f"not a whole Parquet file: {error}") from error
    if "path" not in table.column_names:
        raise InputError(f"there must be a column 'path', got {table.column_names}")
    for number, row in enumerate(table.to_pylist(), start=1):
        where = f"row {number}"
        yield where, plain_row(where, row)
