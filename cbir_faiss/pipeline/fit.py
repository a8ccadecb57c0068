"""Codec and rescorer, fitted on one sample: from an extractor's columns to what is stored, and to a query's columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base import Codec, Rescorer
from cbir_faiss.base.labels import Labels, label_array
from cbir_faiss.types import Codes, Columns


@dataclass(frozen=True)
class Unread(Mapping[str, NDArray[Any]]):
    """Columns that are read when they are asked for, so that only those that are in use take memory."""

    names: Sequence[str]
    read: Callable[[str], NDArray[Any]]

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.names:
            raise KeyError(name)
        return self.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Sample:
    """What codecs and rescorers learn from: rows of the database's columns, chosen by ``sample_rows``, with labels.

    columns: the extractor's, among them ``embedding``. labels: one tuple of class names a row, empty where none.
    """

    columns: Columns
    labels: Labels

    def fit_codec(self, codec: Codec) -> Codec:
        """``codec``, fitted. Raises what ``Codec.fit`` does."""
        return codec.fit(self.columns["embedding"], label_array(self.labels))

    def fit_rescorer(self, rescorer: Rescorer) -> Rescorer:
        """``rescorer``, fitted. Raises what ``Rescorer.fit`` does."""
        return rescorer.fit(self.columns, label_array(self.labels))


@dataclass(frozen=True)
class Fitted:
    """A fitted codec and rescorer, and the name of the extractor's column that they take as the embedding."""

    codec: Codec
    rescorer: Rescorer
    embedding: str

    def named(self, columns: Columns) -> dict[str, NDArray[Any]]:
        """The extractor's columns, with the one that is the embedding under that name too."""
        name = self.embedding if self.embedding in columns else "embedding"
        return {**columns, "embedding": np.asarray(columns[name])}

    def items(self, columns: Columns) -> tuple[Codes, dict[str, NDArray[Any]]]:
        """What is stored of items: codes ``(n, width)``, and the columns that the rescorer keeps, a row an item."""
        columns = self.named(columns)
        return self.codec.encode(columns["embedding"]), self.rescorer.pack(columns)

    def queries(self, columns: Columns) -> dict[str, NDArray[Any]]:
        """What a search needs of queries: the extractor's columns, ``embedding``, ``code`` and, if asked for,
        ``projection``. The only place that makes them.

        Raises:
            InputError, DimensionMismatch: embeddings of NaN, or of another width than the codec was fitted on.
        """
        columns = self.named(columns)
        if "projection" not in self.rescorer.needs_queries:
            return {**columns, "code": self.codec.encode(columns["embedding"])}
        projection = self.codec.project(columns["embedding"])
        return {**columns, "code": self.codec.pack(projection), "projection": projection}

    def stored_queries(self, codes: Codes, packed: Columns) -> dict[str, NDArray[Any]]:
        """The same for items that are stored, as nearly as they were kept; see ``asks_as_queries``."""
        columns = {"code": codes, **self.rescorer.unpack(packed)}
        if "projection" not in self.rescorer.needs_queries:
            return columns
        if self.asks_as_queries:
            return {**columns, "projection": self.codec.project(columns["embedding"])}
        bits = np.unpackbits(codes, axis=1, count=self.codec.bits)
        return {**columns, "projection": bits.astype(np.float32) * 2 - 1}

    @property
    def asks_as_queries(self) -> bool:
        """Whether a stored item is as far from others as its vector is: not where a query's projection counts, of which
        only the signs are kept."""
        return "projection" not in self.rescorer.needs_queries or "embedding" in self.stored

    @property
    def stored(self) -> Sequence[str]:
        """The columns that are kept for the rescorer beside the codes."""
        return [name for name in self.rescorer.needs_items if name != "code"]


def repeats(column: NDArray[Any], codes: NDArray[Any]) -> bool:
    """Whether what a rescorer keeps is the codes once more, as the floats of codec ``raw`` are.

    A collection has both in one file.
    """
    if column.dtype != codes.dtype or column.shape != codes.shape:
        return False
    in_one_place = column.ctypes.data == codes.ctypes.data and column.strides == codes.strides
    return in_one_place or bool(np.array_equal(column, codes))


def with_direction(codes: Codes) -> NDArray[np.bool_]:
    """Which rows have a direction: an index that compares directions has no place for a vector of zeros."""
    return np.asarray(codes.any(axis=1))
