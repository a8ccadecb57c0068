"""A collection as one file for other programs: ids, paths, labels, payload, and vectors or codes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib.files import sync
from cbir_faiss.base.options import need
from cbir_faiss.errors import CbirError, InputError, one_line
from cbir_faiss.pipeline.extraction import Progress
from cbir_faiss.storage.files import writing_to
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Ids

_ROWS = 10_000
_EXACT = 1 << 53
"""Whole numbers from here on are not all floats."""
_ROOM = 1 << 30
"""Bytes of texts that an .npz may take however long they are themselves."""


@dataclass(frozen=True)
class Exported:
    """items: how many; columns: the names of what was written of each."""

    items: int
    columns: list[str]


def export(store: Store, file: Path, *, progress: Progress | None = None) -> Exported:
    """Write the live items of ``store``, by id, to a new file: ``.npz``, ``.parquet`` or ``.h5``.

    ``embedding`` float32 ``(n, dim)`` is there where the collection keeps the embeddings, ``code`` where it keeps
    codes: uint8 ``(n, bits/8)``, or float32 ``(n, width)`` of codec ``rotate``; other kept columns by their names.
    ``label`` is empty where there is none. Parquet has a column for each key of the payload, the others ``payload``, as
    JSON. Where it fails, nothing is left.

    Raises:
        InputError: another suffix, or nothing to write. CbirError: the file is there, or cannot be written, or its
            format cannot hold what the items have.
    """
    writers: dict[str, Callable[[Path, _Rows], list[str]]] = {
        ".npz": _write_npz,
        ".parquet": _write_parquet,
        ".h5": _write_hdf5,
        ".hdf5": _write_hdf5,
    }
    if file.suffix.lower() not in writers:
        raise InputError(f"{file}: the suffix must be one of {', '.join(writers)}")
    if file.exists():
        raise CbirError(f"{file}: is there already: remove it, or name another")
    rows = _Rows(store, progress)
    if not len(rows.ids):
        raise InputError(f"{store.folder} has no items")
    aside = file.with_name(f"{file.name}.{os.getpid()}.part")
    try:
        with writing_to(file):
            columns = writers[file.suffix.lower()](aside, rows)
            sync(aside)
            aside.rename(file)
            sync(file.absolute().parent)
    except ValueError as error:  # the writers', and those of their libraries
        if isinstance(error, CbirError):
            raise
        raise CbirError(f"{file}: cannot be written: {one_line(error)}") from error
    finally:
        aside.unlink(missing_ok=True)
    return Exported(len(rows.ids), columns)


class _Rows:
    """The live items, by id."""

    def __init__(self, store: Store, progress: Progress | None) -> None:
        self._store, self._progress = store, progress
        self.ids: Ids = np.array([i for i, _ in store.records()], np.int64)
        self.labels_at_most = 0
        self.kinds: dict[str, set[type]] = {}
        """Of each key of the payloads, the types of its values."""
        for _, record in store.records():
            label = record.document.get("label")
            self.labels_at_most = max(self.labels_at_most, len(label) if isinstance(label, list) else 1)
            for key, value in record.document.items():
                if key not in ("path", "label") and value is not None:
                    self.kinds.setdefault(key, set()).add(_type(value))
        # A raw collection's codes are its vectors.
        floats = store.manifest.codec.name == "raw"
        kept = store.segments[0].column_names if store.segments else []
        self.columns = {"embedding" if floats else "code": "code"} | {
            name: name for name in kept if not (floats and name == "embedding")
        }

    def blocks(self) -> Iterator[Ids]:
        """The ids, some at a time; says how far they are when the next are asked for."""
        for start in range(0, len(self.ids), _ROWS):
            yield self.ids[start : start + _ROWS]
            if self._progress is not None:
                self._progress(min(len(self.ids), start + _ROWS), len(self.ids))

    def column(self, name: str, ids: Ids) -> NDArray[Any]:
        return np.ascontiguousarray(self._store.fetch(ids, self.columns[name]))

    def documents(self, ids: Ids) -> list[dict[str, Any]]:
        return self._store.documents(ids)

    def texts(self) -> dict[str, list[str]]:
        """Path and label of each item, and its payload where any has one; several labels are JSON."""
        found: dict[str, list[str]] = {"path": [], "label": [], **({"payload": []} if self.kinds else {})}
        for ids in (self.ids[start : start + _ROWS] for start in range(0, len(self.ids), _ROWS)):
            for document in self.documents(ids):
                label = document.pop("label", None)
                found["path"].append(str(document.pop("path", "")))
                found["label"].append("" if label is None else _text(label))
                if self.kinds:
                    found["payload"].append(json.dumps(document))
        return found


def _write_npz(file: Path, rows: _Rows) -> list[str]:
    with ZipFile(file, "w") as archive:

        def put(name: str, shape: tuple[int, ...], dtype: np.dtype[Any], parts: Iterable[NDArray[Any]]) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
                descr = np.lib.format.dtype_to_descr(dtype)
                np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": shape})
                for part in parts:
                    out.write(part.tobytes())

        put("id", rows.ids.shape, rows.ids.dtype, [rows.ids])
        texts = rows.texts()
        for name, values in texts.items():
            kind = _text_kind(name, values)
            some = (np.array(values[start : start + _ROWS], kind) for start in range(0, len(values), _ROWS))
            put(name, (len(values),), kind, some)
        for name in rows.columns:
            first = rows.column(name, rows.ids[:1])
            parts = (rows.column(name, ids) for ids in rows.blocks())
            put(name, (len(rows.ids), *first.shape[1:]), first.dtype, parts)
    return ["id", *texts, *rows.columns]


def _text_kind(name: str, values: list[str]) -> np.dtype[Any]:
    """numpy's type of texts, in which each takes as many bytes as the longest."""
    kind = np.dtype(f"<U{max(1, *map(len, values))}")
    if len(values) * kind.itemsize > max(_ROOM, 8 * 4 * sum(map(len, values))):
        raise ValueError(
            f"the longest {name} has {kind.itemsize // 4:,} characters, and .npz would take as many for each of "
            f"{len(values):,} items: export to .parquet or .h5"
        )
    return kind


def _write_hdf5(file: Path, rows: _Rows) -> list[str]:
    h5py = need("h5py", "hdf5")
    texts = rows.texts()
    with h5py.File(file, "w") as out:
        out.create_dataset("id", data=rows.ids)
        for name, values in texts.items():
            cut = next((i for i, value in zip(rows.ids, values, strict=True) if "\0" in value), None)
            if cut is not None:
                raise ValueError(f"the {name} of item {cut} has a NUL in it, as none may in HDF5: export to .parquet")
            out.create_dataset(name, data=values, dtype=h5py.string_dtype())
        for name in rows.columns:
            first = rows.column(name, rows.ids[:1])
            kept = out.create_dataset(name, (len(rows.ids), *first.shape[1:]), first.dtype)
            start = 0
            for ids in rows.blocks():
                kept[start : start + len(ids)] = rows.column(name, ids)
                start += len(ids)
    return ["id", *texts, *rows.columns]


def _write_parquet(file: Path, rows: _Rows) -> list[str]:
    arrow, parquet = need("pyarrow", "parquet"), need("pyarrow.parquet", "parquet")
    several = rows.labels_at_most > 1
    schema = [("id", arrow.int64()), ("path", arrow.string())]
    schema += [("label", arrow.list_(arrow.string()) if several else arrow.string())]
    for name in rows.columns:
        first = rows.column(name, rows.ids[:1])
        schema.append((name, arrow.list_(arrow.from_numpy_dtype(first.dtype), first[0].size)))
    taken = {name for name, _ in schema}
    keys = {key: f"payload.{key}" if key in taken else key for key in rows.kinds}
    kinds = {key: _kind(found) for key, found in rows.kinds.items()}
    types = {bool: arrow.bool_(), int: arrow.int64(), float: arrow.float64(), str: arrow.string()}
    schema += [(name, types[kinds[key]]) for key, name in keys.items()]
    with parquet.ParquetWriter(file, arrow.schema(schema)) as writer:
        for ids in rows.blocks():
            documents = rows.documents(ids)
            labels = [document.get("label") for document in documents]
            if several:
                labels = [one if isinstance(one, list) or one is None else [one] for one in labels]
            columns: list[Any] = [ids, [str(document.get("path", "")) for document in documents], labels]
            columns += [_lists(arrow, rows.column(name, ids)) for name in rows.columns]
            columns += [_values(documents, key, kinds[key]) for key in keys]
            arrays = [arrow.array(values, kind) for values, (_, kind) in zip(columns, schema, strict=True)]
            writer.write_table(arrow.Table.from_arrays(arrays, schema=arrow.schema(schema)))
    return [name for name, _ in schema]


def _lists(arrow: Any, rows: NDArray[Any]) -> Any:
    flat = rows.reshape(len(rows), -1)
    return arrow.FixedSizeListArray.from_arrays(arrow.array(flat.ravel()), flat.shape[1])


def _type(value: Any) -> type:
    """Its type; of whole numbers, ``object`` beyond 64 bits, and ``np.int64`` where a float may not hold them."""
    if type(value) is not int or abs(value) <= _EXACT:
        return type(value)
    return object if abs(value) >= 1 << 63 else np.int64


def _kind(found: set[type]) -> type:
    """The narrowest type that holds values of all these; text, as JSON, where nothing else does."""
    if found <= {int, np.int64}:
        return int
    if found == {bool} or found == {str}:
        return next(iter(found))
    return float if found <= {int, float} else str


def _values(documents: Sequence[dict[str, Any]], key: str, kind: type) -> list[Any]:
    values = [document.get(key) for document in documents]
    return [_text(value) if kind is str and value is not None else value for value in values]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
