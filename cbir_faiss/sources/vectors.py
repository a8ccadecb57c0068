"""Ready vectors: ``.npy``, ``.npz``, ``.fvecs``, ``.bvecs``, Parquet, or HDF5 in the layout of ann-benchmarks."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, cast
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from cbir_faiss import base
from cbir_faiss.base.options import RelativePath, need
from cbir_faiss.errors import BadImage, InputError
from cbir_faiss.sources._given import item_of, plain_row
from cbir_faiss.types import Floats

_BLOCK = 1 << 24
_DIGITS = 9


class Vectors(base.Source):
    """Rows of a matrix; the path of an item is its row number of nine digits, so that sorting keeps the order.

    Files are memory-mapped where their format allows (``.npy``, ``.fvecs``, ``.bvecs``, plain HDF5). The other columns
    of a Parquet file are the items' documents.
    """

    name: ClassVar[str] = "vectors"
    yields: ClassVar[Literal["image", "vector"]] = "vector"

    class Options(base.Options):
        """file: the vectors, the format by its suffix. key: the array in ``.npz`` or HDF5, or the column of Parquet;
        ``embedding`` where left out, or ``train`` where HDF5 has that.
        labels: one a row, a 1-d ``.npy`` of integers or texts, or a text file with one a line.
        documents: one a row, JSON Lines of objects; ``label`` and ``path`` are taken as such, the rest is payload."""

        file: RelativePath
        key: str | None = None
        labels: RelativePath | None = None
        documents: RelativePath | None = None

        @model_validator(mode="after")
        def _one_of_labels(self) -> Vectors.Options:
            if self.labels is not None and self.documents is not None:
                raise ValueError("labels and documents exclude each other: put the label into the documents")
            return self

    options: Options
    _digits = _DIGITS

    def matrix(self) -> NDArray[np.floating[Any]]:
        """All vectors at once, floats ``(n, dim)``, memory-mapped where possible; integers become float32.

        Nothing is checked for NaN here: that would read the whole file.
        """
        stored = self._stored
        return stored if stored.dtype.kind == "f" else stored.astype(np.float32)

    @cached_property
    def _stored(self) -> NDArray[Any]:
        path = self.options.file
        readers = {
            ".npy": _npy,
            ".npz": self._npz,
            ".fvecs": _fvecs,
            ".bvecs": _bvecs,
            ".hdf5": self._hdf5,
            ".h5": self._hdf5,
            ".parquet": self._parquet,
        }
        if path.suffix.lower() not in readers:
            raise InputError(f"source 'vectors': {path}: the suffix must be one of {', '.join(readers)}")
        if not path.is_file():
            raise InputError(f"source 'vectors': no such file: {path}")
        stored = readers[path.suffix.lower()](path)
        if stored.ndim != 2 or stored.dtype.kind not in "fiu" or stored.shape[1] == 0:
            raise InputError(f"source 'vectors': {path} holds {stored.dtype} {stored.shape}, not numbers (n, dim)")
        return stored

    def _hdf5(self, path: Path) -> NDArray[Any]:
        h5py = need("h5py", "hdf5")
        try:
            with h5py.File(path) as file:
                key = self._key(path, file, "train")
                data = file[key]
                if not isinstance(data, h5py.Dataset) or data.shape is None:
                    raise InputError(f"source 'vectors': {path}: '{key}' is no array: say which by option key")
                offset = data.id.get_offset()
                if offset is None:
                    return cast("NDArray[Any]", data[()])
                return np.memmap(path, dtype=data.dtype, mode="r", offset=offset, shape=data.shape)
        except OSError as error:
            raise InputError(f"source 'vectors': {path} is not a whole HDF5 file") from error

    def _npz(self, path: Path) -> NDArray[Any]:
        try:
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                return cast("NDArray[Any]", file[self._key(path, file)])
        except (OSError, ValueError, EOFError, TypeError, BadZipFile) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"source 'vectors': {path} is not a whole .npz file of numbers: {error}") from error

    def _parquet(self, path: Path) -> NDArray[Any]:
        table = self._columns
        column = table.column(self._key(path, table.column_names))
        parts = [_matrix(part) for part in column.chunks]
        if any(part is None for part in parts) or len({part.shape[1] for part in parts if part is not None}) > 1:
            raise InputError(f"source 'vectors': {path}: its column holds {column.type}, not one vector a row")
        return np.concatenate(cast("list[NDArray[Any]]", parts)) if parts else np.empty((0, 1), np.float32)

    @cached_property
    def _columns(self) -> Any:
        """The table of a Parquet file."""
        parquet, path = need("pyarrow.parquet", "parquet"), self.options.file
        try:
            return parquet.read_table(path)
        except (OSError, ValueError) as error:  # pyarrow's own errors are among these
            raise InputError(f"source 'vectors': {path} is not a whole Parquet file: {error}") from error

    def _key(self, path: Path, there: Iterable[str], *usual: str) -> str:
        """The key that was asked for, or the usual one. InputError where it is not there."""
        names = list(there)
        wanted = [self.options.key] if self.options.key else [*usual, "embedding"]
        found = next((name for name in wanted if name in names), None)
        if found is None:
            raise InputError(
                f"source 'vectors': {path} has no '{wanted[0]}', but {', '.join(names)}: say which by option key"
            )
        return found

    @cached_property
    def _labels(self) -> list[str] | None:
        path = self.options.labels
        if path is None:
            return None
        try:
            if path.suffix.lower() == ".npy":
                told = np.load(path, allow_pickle=False).ravel().tolist()
                labels = ["" if label != label else str(label) for label in told]  # NaN is none
            else:
                labels = path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"source 'vectors': cannot read the labels {path}: {error}") from error
        if len(labels) != len(self._stored):
            raise InputError(f"source 'vectors': {len(labels)} labels for {len(self._stored)} vectors: {path}")
        return labels

    def _items(self) -> Sequence[base.Item]:
        if self._documents is None:
            return _Rows(len(self._stored), self._labels, self._digits)
        return _Documented(self._documents, self._digits)

    @cached_property
    def _documents(self) -> _Lines | _Described | None:
        """What is told of the rows, if anything is. InputError where two have one path."""
        o = self.options
        found: _Lines | _Described
        if o.documents is not None:
            found = _Lines(o.documents, len(self._stored))
        elif o.labels is None and o.file.suffix.lower() == ".parquet" and len(self._stored):
            found = _Described(self._columns.drop_columns([self._key(o.file, self._columns.column_names)]))
        else:
            return None
        twice = _first_twice(found.paths())
        if twice is not None:
            rows, path = " and ".join(str(row + 1) for row in twice), found[twice[0]]["path"]
            raise InputError(f"source 'vectors': {o.documents or o.file}: rows {rows} have one path, '{path}'")
        return found

    def name_like(self, path: str) -> None:
        # Earlier versions took as many digits as the last row needed.
        if path.isdecimal() and len(path) < _DIGITS:
            self._digits = len(path)

    def _place(self) -> str:
        return f"no rows in {self.options.file}"

    def _read(self, index: int) -> Floats:
        vector = np.array(self._stored[index], dtype=np.float32)
        if not np.isfinite(vector).all():
            raise BadImage("the vector holds NaN or infinity")
        return vector

    def _content_key(self, index: int) -> bytes:
        return hashlib.sha256(np.array(self._stored[index], dtype=np.float32).tobytes()).digest()

    def _stamp(self, index: int) -> base.Stamp | None:
        return self._stamps[0]

    def _survey(self) -> str:
        # A million rows need not be looked at where the files are the same.
        o = self.options
        said = o.file.name, o.key, self._stamps
        return hashlib.sha256(repr(said).encode()).hexdigest()

    @cached_property
    def _stamps(self) -> list[base.Stamp]:
        o = self.options
        files = [file for file in (o.file, o.labels, o.documents) if file is not None]
        return [(status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files)]


class _Rows(Sequence[base.Item]):
    """Items made when they are looked at: a million of them kept would be larger than their vectors."""

    def __init__(self, count: int, labels: list[str] | None, digits: int) -> None:
        self._indices, self._labels, self._digits = range(count), labels, digits

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in self._indices[index]]
        row = self._indices[index]
        label = self._labels[row] if self._labels else ""
        return base.Item(f"{row:0{self._digits}d}", (label,) if label else ())


class _Lines:
    """The lines of a JSON Lines file, found again by where they begin; read when they are looked at."""

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        try:
            self._file = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise InputError(f"source 'vectors': cannot read the documents {path}: {error}") from error
        ends = np.concatenate(
            [np.flatnonzero(self._file[i : i + _BLOCK] == 10) + i for i in range(0, len(self._file), _BLOCK)]
        )
        if len(self._file) and self._file[-1] != 10:  # the last line has no end
            ends = np.append(ends, len(self._file))
        if len(ends) != count:
            raise InputError(f"source 'vectors': {len(ends)} documents for {count} vectors: {path}")
        self._limits = np.concatenate([[0], ends + 1])

    def __len__(self) -> int:
        return len(self._limits) - 1

    def __getitem__(self, row: int) -> dict[str, Any]:
        try:
            line = bytes(self._file[self._limits[row] : self._limits[row + 1]])
            document = json.loads(line, parse_constant=lambda _: None)  # NaN and infinity are not JSON
        except ValueError as error:
            raise InputError(f"{self._path}:{row + 1}: not JSON: {error}") from error
        if not isinstance(document, dict):
            raise InputError(f"{self._path}:{row + 1}: a document is a JSON object")
        return document

    def paths(self) -> Iterator[Any]:
        """What the rows are called, None where they are not."""
        return (self[row].get("path") for row in range(len(self)))


class _Described:
    """The rows of an Arrow table as documents, made when they are looked at."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        (values,) = self._table.slice(row, 1).to_pylist() or [{}]
        return plain_row(f"source 'vectors': row {row + 1}", values)

    def paths(self) -> Iterator[Any]:
        """What the rows are called, None where they are not."""
        if "path" in self._table.column_names:
            for some in self._table.column("path").chunks:
                yield from some.to_pylist()


class _Documented(Sequence[base.Item]):
    """Items made of their documents when they are looked at."""

    def __init__(self, lines: _Lines | _Described, digits: int) -> None:
        self._lines, self._digits = lines, digits

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        row = range(len(self))[index]
        return item_of(self._lines[row], f"{row:0{self._digits}d}")


def _first_twice(paths: Iterable[Any]) -> tuple[int, int] | None:
    """Two rows of one path. Hashes are kept of them alone: a million paths would take too much memory."""
    rows, hashes = array("q"), array("q")
    for row, path in enumerate(paths):
        if isinstance(path, str):
            rows.append(row)
            hashes.append(hash(path))
    order = np.argsort(np.asarray(hashes), kind="stable")
    met = np.asarray(hashes)[order]
    same = np.flatnonzero(met[1:] == met[:-1])
    return (rows[order[same[0]]], rows[order[same[0] + 1]]) if len(same) else None


def _npy(path: Path) -> NDArray[Any]:
    try:
        return cast("NDArray[Any]", np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"source 'vectors': {path} is not a whole .npy file of numbers: {error}") from error


def _matrix(part: Any) -> NDArray[Any] | None:
    """The rows of an Arrow array of lists as ``(n, dim)``; None where they are no numbers, or not of one length."""
    lists = str(part.type).startswith(("list", "large_list", "fixed_size_list"))
    if not lists or part.null_count:
        return None
    values = part.flatten()
    if values.null_count or len(part) == 0 or len(values) % len(part):
        return None if len(part) else np.empty((0, 1), np.float32)
    dim = len(values) // len(part)
    if not str(part.type).startswith("fixed") and (np.diff(part.offsets.to_numpy()) != dim).any():
        return None
    flat = values.to_numpy(zero_copy_only=False)
    return flat.reshape(-1, dim) if flat.dtype.kind in "fiu" else None


def _fvecs(path: Path) -> NDArray[Any]:
    return _vecs(path, 4).view(np.dtype("<f4"))


def _bvecs(path: Path) -> NDArray[Any]:
    return _vecs(path, 1)


def _vecs(path: Path, itemsize: int) -> NDArray[np.uint8]:
    """The bytes ``(n, dim * itemsize)`` of records that begin with their dimension as a little-endian int32."""
    if path.stat().st_size == 0:
        return np.empty((0, itemsize), np.uint8)
    data = np.memmap(path, np.uint8, mode="r")
    dim = int(data[:4].view("<i4")[0]) if len(data) >= 4 else 0
    record = 4 + dim * itemsize
    # Looking at the first and the last record finds a cut or foreign file without reading all of it.
    if dim < 1 or len(data) % record or int(data[-record:][:4].view("<i4")[0]) != dim:
        raise InputError(f"source 'vectors': {path} is cut short or not a {path.suffix} file")
    return data.reshape(-1, record)[:, 4:]
