"""A split in the codes of one codec, and in the index of one backend: filled, sized, closed and opened again."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss._lib.sampling import sample_rows
from cbir_faiss.base import Backend, Codec, Options, Places, Rescorer
from cbir_faiss.base.filters import Where
from cbir_faiss.comparison.resident import ResidentMeter
from cbir_faiss.comparison.split import Split
from cbir_faiss.config import Choice
from cbir_faiss.errors import CbirError, Unsupported
from cbir_faiss.measures.code_statistics import code_health
from cbir_faiss.pipeline.fill import FILL_ROWS, Part, fill, training_codes
from cbir_faiss.pipeline.fit import Sample, repeats, with_direction
from cbir_faiss.storage.catalogue import Record
from cbir_faiss.storage.segment import Block, write_segment
from cbir_faiss.types import Codes, Columns, Floats, Hits, Ids

_DOCUMENTS = 5_000  # written to see what one takes


@dataclass(frozen=True)
class Coded:
    """A split in the codes of one fitted codec: items ``(n, width)`` and queries ``(m, width)``."""

    choice: Choice
    codec: Codec
    items: Codes
    queries: Codes
    fit_seconds: float
    encode_seconds: float

    @classmethod
    def of(cls, split: Split, choice: Choice, sample: Sample, limit: int | None) -> Coded:
        """Fit the codec of ``choice`` on ``sample`` as a build does, and encode."""
        with threads.phase("fit", limit):
            began = time.perf_counter()
            codec = sample.fit_codec(choice.make())
            fitted = time.perf_counter()
            items = _blockwise(codec, split.items.embedding)
            encoded = time.perf_counter()
            queries = _blockwise(codec, split.queries.embedding)
        return cls(choice, codec, items, queries, fitted - began, encoded - fitted)

    @cached_property
    def health(self) -> dict[str, Any] | None:
        """How good the codes are as codes; None of floats."""
        return code_health(self.items, self.codec.bits) if self.codec.bits else None


def sample_of(split: Split) -> Sample:
    """What is learnt from: the rows that a build of the same items would take."""
    rows = sample_rows(len(split.items))
    columns = {name: values[rows] for name, values in split.items.columns.items()}
    chosen = np.arange(len(split.items))[rows].tolist()
    labels = [split.items.labels[i] for i in chosen]
    return Sample({**columns, "embedding": split.items.embedding[rows]}, labels)


def _blockwise(codec: Codec, x: Floats) -> Codes:
    return np.concatenate([codec.encode(x[start : start + FILL_ROWS]) for start in range(0, len(x), FILL_ROWS)])


class Filled:
    """One backend, filled with codes as a build fills it.

    seconds: of making, training and filling it. file_bytes: of its files; None where its engine does not say.
    state_bytes: of those the part that does not grow with the items (codebooks, rotations, centroids).
    """

    def __init__(
        self,
        split: Split,
        coded: Coded,
        choice: Choice,
        options: Mapping[str, Any],
        scratch: Path,
        limit: int | None = None,
    ) -> None:
        self.choice, self.options, self.coded = choice, dict(options), coded
        self._folder = scratch
        self.backend: Backend = choice.make(**self.options)
        self._empty: int | None = None
        began = time.perf_counter()
        try:
            with threads.phase("fit", limit):
                self._fill(split)
        except BaseException:
            self.backend.close()
            raise
        self.seconds = time.perf_counter() - began
        self.code_bits = self.backend.code_bits
        self.own_storage, self.in_process = self.backend.own_storage, self.backend.in_process
        self.file_bytes = self.backend.disk_bytes() if self.backend.own_storage else self._save("full")

    def _fill(self, split: Split) -> None:
        codec = self.coded.codec
        fill(
            self.backend,
            self._parts(split),
            kind=codec.kind,
            width=codec.width,
            sample=lambda: training_codes(self.coded.items),
            prepared=self._measure_empty,
        )

    def _parts(self, split: Split) -> Iterator[Part]:
        codes = self.coded.items
        for start in range(0, len(codes), FILL_ROWS):
            ids = np.arange(start, min(start + FILL_ROWS, len(codes)))
            if self.backend.metric == "cosine":  # as in a build, where a vector of zeros is left out
                ids = ids[with_direction(codes[ids])]
            # An index that cannot be told which ids a filter allows keeps the documents itself.
            documents = None if self.backend.filters_ids else [split.items.document(i) for i in ids.tolist()]
            yield ids, codes[ids], documents

    def _measure_empty(self) -> None:
        try:
            self._empty = self.backend.disk_bytes() if self.backend.own_storage else self._save("empty")
        except CbirError:  # some index types cannot be saved without an item
            self._empty = None

    def _save(self, name: str) -> int | None:
        if self.backend.capabilities.persist == "refused":
            return None
        folder = self._folder / name
        self.backend.save(folder)
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    @property
    def state_bytes(self) -> int:
        """Of ``file_bytes``, what was there before the first item."""
        return min(self._empty or 0, self.file_bytes or 0)

    @property
    def reopens(self) -> bool:
        """Whether it can be closed now and opened again, mapped, as a collection opens it."""
        return not self.own_storage and self.file_bytes is not None

    def close(self) -> None:
        self.backend.close()

    def reopen(self) -> None:
        """Open what was saved, as a collection does."""
        self.backend = self.choice.make(**self.options)
        try:
            self.backend.restore(self._folder / "full", mmap=True)
        except Unsupported:
            self.backend.restore(self._folder / "full")

    def resident(self, meter: ResidentMeter) -> int | None:
        """Bytes of memory that the index takes in a process of its own, after one query."""
        query = self.coded.queries[:1]
        if self.own_storage:  # which lets nobody else in while it is open here
            return meter.measure(self.choice.name, self.options, None, query) if self.in_process else None
        if self.file_bytes is None:
            return None
        return meter.measure(self.choice.name, self.options, self._folder / "full", query)


class Codings(Protocol):
    """Codes of one fitted codec; of ``items`` also those that are made when they are read."""

    @property
    def codec(self) -> Codec: ...
    @property
    def items(self) -> Any: ...


class Weighed(Protocol):
    """An index that was filled: ``Filled``, or one that grows."""

    @property
    def coded(self) -> Codings: ...
    @property
    def backend(self) -> Backend: ...
    @property
    def code_bits(self) -> int | None: ...
    @property
    def own_storage(self) -> bool: ...
    @property
    def file_bytes(self) -> int | None: ...
    @property
    def state_bytes(self) -> int: ...


@dataclass
class RowIndex:
    """What ``Searcher`` searches for one row: the index, with the row's search options, and the rescorer's columns."""

    filled: Weighed
    search_options: Mapping[str, Any]
    stored: Columns

    def __len__(self) -> int:
        return len(self.filled.coded.items)

    @cached_property
    def options(self) -> Options | None:
        return self.filled.backend.SearchOptions(**self.search_options) if self.search_options else None

    def search(self, codes: Codes, k: int, where: Where | None) -> Hits:
        return self.filled.backend.search(codes, k, where, self.options)

    def located(self, ids: Ids, column: str) -> Places:
        return [(self.filled.coded.items if column == "code" else np.asarray(self.stored[column]), ids)]

    def fetch(self, ids: Ids, column: str) -> NDArray[Any]:
        return np.asarray(self.filled.coded.items[ids] if column == "code" else self.stored[column][ids])


def document_bytes(split: Split) -> int:
    """Bytes that a collection keeps of a split's items beside codes, columns and index: their ids, and their documents
    as often as a segment has them. Of a part of the items, as a segment is written."""
    n = len(split.items)
    some = min(n, _DOCUMENTS)
    records = [Record(split.items.document(i), (0, 0), b"\0" * 32) for i in range(some)]
    with tempfile.TemporaryDirectory(prefix="cbir-") as scratch:
        folder = Path(scratch, "segment")
        write_segment(folder, [Block(np.arange(some), np.empty((some, 0), np.uint8), {}, records)])
        return round(sum(file.stat().st_size for file in folder.iterdir()) * n / some)


def sizes(
    filled: Weighed, rescorer: Rescorer, stored: Columns, documents: int, resident: int | None, scratch: Path
) -> dict[str, Any]:
    """The bytes of a row, as ``Row.bytes`` has them. ``filled`` is closed by now."""
    coded, n = filled.coded, len(filled.coded.items)
    columns = sum(values.nbytes for values in stored.values() if not repeats(values, coded.items))
    weight = weigh(filled, rescorer, columns + documents, resident, scratch)
    widths = {name: values.nbytes // max(1, n) for name, values in stored.items()}
    return {
        "codes": n * _code_bytes(filled),
        "backend_file": filled.file_bytes,
        "codec_state": weight.codec_file if coded.codec.state else 0,
        "rescore": rescorer.resident_bytes(n, widths | {"code": 0}),  # the index holds the codes already
        "resident": resident if resident is None or filled.own_storage else resident + _nbytes(coded.codec),
        "memory": weight.memory,
        "disk": weight.disk,
        **_per_item("memory", weight.memory, weight.growing_memory, n),
        **_per_item("disk", weight.disk, weight.growing_disk, n),
    }


class Weight(NamedTuple):
    """Bytes of all that a search needs, and of them those that grow with the items; None where an engine is silent."""

    memory: int | None
    growing_memory: int | None
    disk: int | None
    growing_disk: int | None
    codec_file: int


def weigh(filled: Weighed, rescorer: Rescorer, beside: int, resident: int | None, scratch: Path) -> Weight:
    """Memory is the index, the codec's state and the rescorer's, whose columns are mapped; disk is everything that a
    collection keeps: those, the codes, and ``beside``, the bytes of columns and documents."""
    coded = filled.coded
    codec_file, rescore_file = _saved(coded.codec, scratch / "codec.npz"), _saved(rescorer, scratch / "rescore.npz")
    index = filled.file_bytes
    if filled.own_storage:  # which may map its files: what it searches is needed in memory all the same
        index = None if resident is None else max(resident, len(coded.items) * _code_bytes(filled))
    growing = None if index is None else index - (0 if filled.own_storage else filled.state_bytes)
    memory = None if index is None else index + _nbytes(coded.codec) + _nbytes(rescorer)
    disk = growing_disk = None
    if filled.file_bytes is not None:
        growing_disk = filled.file_bytes - filled.state_bytes + coded.items.nbytes + beside
        disk = growing_disk + filled.state_bytes + codec_file + rescore_file
    return Weight(memory, growing, disk, growing_disk, codec_file)


def _code_bytes(filled: Weighed) -> int:
    codec = filled.coded.codec
    return -(-(filled.code_bits or (codec.bits and codec.width) or 32 * codec.width) // 8)


def _saved(fitted: Codec | Rescorer, file: Path) -> int:
    """Bytes of what was learnt, in a file."""
    fitted.save(file)
    return file.stat().st_size


def _nbytes(fitted: Codec | Rescorer) -> int:
    """Bytes of what was learnt, in memory."""
    return sum(array.nbytes for array in fitted.state.values())


def _per_item(name: str, total: int | None, growing: int | None, n: int) -> dict[str, float | None]:
    """Bytes an item now, and at a million items, where what does not grow is shared by more of them."""
    if total is None or growing is None:
        return {f"{name}_per_item": None, f"{name}_per_item_at_million": None}
    return {f"{name}_per_item": total / n, f"{name}_per_item_at_million": growing / n + (total - growing) / 1e6}
