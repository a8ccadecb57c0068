"""From a source to embedding columns: read and prepare in parallel, extract in batches, never twice.

Embeddings are cached by content: the digest of an item's bytes and the extractor's cache key (plugin, options,
weights). A second run, another config over the same pictures, or a folder that grew recomputes only what is new, and a
run that was killed goes on after its last shard. Batches do not depend on where it was killed, so the results do not.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss.base import Extractor, Source, Stamp
from cbir_faiss.errors import BadImage, CbirError, ConfigError, InputError, NoAccess
from cbir_faiss.pipeline.cache import EmbeddingCache
from cbir_faiss.pipeline.shards import KEY_BYTES
from cbir_faiss.types import Columns

Progress = Callable[[int, int], None]
"""``progress(done, total)``, called as work advances."""
BLOCK = 50_000
_REPORT = 512  # known items passed over before they are reported
_NO_STAMP = -1


@dataclass(frozen=True)
class Failure:
    """One item that could not be used, and why; the stamp of its file tells when it is worth another try (None: always,
    for nobody has seen what is in it)."""

    path: str
    reason: str
    stamp: Stamp | None = field(default=None, compare=False)

    def as_dict(self) -> dict[str, str]:
        return {"path": self.path, "reason": self.reason}


class Origin(NamedTuple):
    """What an item was made of: the stamp of its file when it was read, and the digest of its content."""

    stamp: Stamp | None
    digest: bytes


class Extraction:
    """Columns of the items that could be used, read in blocks so that they need not fit in memory.

    rows: int64 ``(n,)``, indices into the source's items, ascending.
    computed: how many items were extracted now; the rest came from the cache.
    seconds: what extracting the computed ones took.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        read: Callable[[slice | NDArray[np.int64], Collection[str] | None], Columns],
        origin: Callable[[slice], list[Origin]],
        failed: list[Failure],
        computed: int = 0,
        seconds: float = 0.0,
    ) -> None:
        self.rows, self.failed, self.computed, self.seconds = rows, failed, computed, seconds
        self._read, self._origin = read, origin

    def __len__(self) -> int:
        return len(self.rows)

    def block(self, rows: slice | NDArray[np.int64], names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
        """Columns of some rows of this extraction: all of them, or those of some names."""
        return dict(self._read(rows, names))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The columns' names, the default embedding first."""
        return tuple(self.block(slice(0, 1)))

    def origin(self, rows: slice) -> list[Origin]:
        """Where some rows of this extraction came from."""
        return self._origin(rows)

    def among(self, rows: Sequence[int]) -> Extraction:
        """The part that is of some rows of the source."""
        places = np.flatnonzero(np.isin(self.rows, rows))
        if len(places) == len(self):
            return self
        origins = self.origin(slice(0, len(self)))
        return Extraction(
            self.rows[places],
            lambda some, names: self.block(places[some], names),
            lambda some: [origins[place] for place in places[some].tolist()],
            self.failed,
        )

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """All of them in memory, name → ``(n, width)``."""
        return self.block(slice(0, len(self.rows)))


@dataclass(frozen=True)
class RowOrigin:
    """An item that was read: its row in the source, and its origin."""

    row: int
    origin: Origin


@dataclass(frozen=True)
class Extracted:
    """A part of ``stream``: what was seen since the last one, columns of what was extracted, and the failures.

    rows: of the source, one for each row of ``columns``; a part of ``seen``, which holds known content too.
    """

    seen: list[RowOrigin]
    rows: list[int]
    columns: dict[str, NDArray[Any]]
    failed: list[Failure]


def check_pair(source: Source, extractor: Extractor) -> None:
    """Raises ConfigError where the extractor cannot read what the source yields."""
    if source.yields != extractor.reads:
        raise ConfigError(
            f"source '{source.name}' yields {source.yields}s, but extractor '{extractor.name}' reads {extractor.reads}s"
            + ("; use extractor 'vectors'" if source.yields == "vector" else "")
        )


def stream(
    source: Source,
    extractor: Extractor,
    rows: Iterable[int],
    *,
    batch_size: int = 32,
    workers: int | None = None,
    known: Container[bytes] = (),
) -> Iterator[Extracted]:
    """Batches of columns of ``rows``, in order. Preparation runs in threads beside the model; memory stays bounded.

    Content that is ``known`` by its digest (and what occurs again in one batch) is seen but not extracted. An item that
    cannot be read is a ``Failure``, and so is one whose embedding is not finite.
    """
    check_pair(source, extractor)
    workers = workers or threads.available()
    reader = _Reader(source, extractor, known)
    batch = _Batch(source, extractor)
    with ThreadPoolExecutor(workers) as pool, threads.phase("extract"):
        for row, job in _ahead(pool, reader.read, rows, 2 * batch_size + workers):
            item = job.result()
            if batch.has_to_go_before(item, batch_size):
                yield batch.extract()
                batch = _Batch(source, extractor)
            batch.take(row, item, known)
        if batch.seen or batch.failed:
            yield batch.extract()


def extract(
    source: Source,
    extractor: Extractor,
    *,
    cache: Path | None,
    batch_size: int = 32,
    progress: Progress | None = None,
    rows: NDArray[np.int64] | None = None,
) -> Extraction:
    """Columns of every item of ``source``, or of ``rows`` of it; ``cache`` is the folder of the embedding cache.

    Raises:
        InputError: not one item could be used (and ``rows`` were not chosen); the message has the first reason.
        ConfigError: the extractor does not read what the source yields.
    """
    check_pair(source, extractor)
    wanted = np.arange(len(source.items())) if rows is None else rows
    matrix = getattr(source, "matrix", None)
    found = (
        _from_matrix(source, extractor, matrix(), wanted)
        if matrix is not None
        else _from_items(source, extractor, wanted, cache, batch_size, progress)
    )
    if not len(found) and rows is None:
        first = found.failed[0]
        raise InputError(f"not one of {len(wanted)} items could be used; {first.path}: {first.reason}")
    return found


def _from_items(
    source: Source,
    extractor: Extractor,
    wanted: NDArray[np.int64],
    cache: Path | None,
    batch_size: int,
    progress: Progress | None,
) -> Extraction:
    store = embeddings_of(cache, extractor)
    origins = Origins(len(wanted))
    failed: list[Failure] = []
    done = computed = 0
    place_of = {row: place for place, row in enumerate(wanted.tolist())}
    report = progress or (lambda done, total: None)
    report(done, len(wanted))
    began = time.perf_counter()
    for part in stream(source, extractor, wanted.tolist(), batch_size=batch_size, known=store):
        failed += part.failed
        for seen in part.seen:
            origins.put(place_of[seen.row], seen.origin)
        store.add([origins.digest(place_of[row]) for row in part.rows], part.columns)
        computed += len(part.rows)
        done += len(part.seen) + len(part.failed)
        report(done, len(wanted))
    store.flush()
    return assemble(wanted, origins, store, failed, computed, time.perf_counter() - began)


def embeddings_of(cache: Path | None, extractor: Extractor) -> EmbeddingCache:
    """The cache of an extractor's embeddings."""
    return EmbeddingCache(cache and cache / "embeddings" / extractor.cache_key())


def assemble(
    wanted: NDArray[np.int64],
    origins: Origins,
    store: EmbeddingCache,
    failed: list[Failure],
    computed: int,
    seconds: float,
) -> Extraction:
    """The extraction of rows ``wanted`` of a source, once their columns are in ``store``.

    Raises:
        CbirError: something that was seen, and did not fail, is not there.
    """
    places = origins.places()
    lost = np.count_nonzero(~store.holds(origins.digests(places)))
    if lost:
        raise CbirError(f"{lost:,} of {len(places):,} items are not in the embedding cache any more; start again")
    return Extraction(
        wanted[places],
        lambda some, names: store.gather(origins.digests(places[some]), names),
        lambda some: [origins.get(p) for p in places[some]],
        sorted(failed, key=lambda failure: failure.path),
        computed,
        seconds if computed else 0.0,
    )


class Origins:
    """Origins by place, 48 bytes each: there may be millions."""

    def __init__(self, n: int) -> None:
        self._digests = np.zeros((n, KEY_BYTES), np.uint8)
        self._stamps = np.full((n, 2), _NO_STAMP, np.int64)
        self._there = np.zeros(n, bool)

    def put(self, place: int, origin: Origin) -> None:
        self._digests[place] = np.frombuffer(origin.digest, np.uint8)
        self._stamps[place] = origin.stamp or _NO_STAMP
        self._there[place] = True

    def places(self) -> NDArray[np.int64]:
        return np.flatnonzero(self._there)

    def digest(self, place: int) -> bytes:
        return bytes(self._digests[place])

    def digests(self, places: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 ``(n, 32)``."""
        return self._digests[places]

    def get(self, place: int) -> Origin:
        size, changed = self._stamps[place].tolist()
        return Origin(None if size == _NO_STAMP else (size, changed), self.digest(place))


@dataclass(frozen=True)
class _Read:
    """What a worker made of an item: prepared, or not (it is known), or the reason why it cannot be."""

    path: str
    origin: Origin
    prepared: NDArray[Any] | None = None
    reason: str = ""


class _Reader:
    """A worker's part of the work; runs in several threads."""

    def __init__(self, source: Source, extractor: Extractor, known: Container[bytes]) -> None:
        self._source, self._extractor, self._known = source, extractor, known
        self._items, self._min_side = source.items(), extractor.min_side

    def read(self, row: int) -> _Read:
        path, key = self._items[row].path, b""
        # Before the content, so that a file that changes meanwhile is looked at again next time.
        stamp = self._source.stamp(row)
        try:
            content = self._source.content(row)
            key = content.key
            if key in self._known:
                return _Read(path, Origin(stamp, key))
            prepared = self._extractor.prepare(content.read(self._min_side))
        except NoAccess as error:
            return _Read(path, Origin(None, key), None, str(error))
        except BadImage as error:
            return _Read(path, Origin(stamp, key), None, str(error))
        return _Read(path, Origin(stamp, key), prepared)


class _Batch:
    """Items of one shape on their way to the model, and what was met between them."""

    def __init__(self, source: Source, extractor: Extractor) -> None:
        self._items, self._extractor = source.items(), extractor
        self.seen: list[RowOrigin] = []
        self.failed: list[Failure] = []
        self._pending: dict[bytes, tuple[int, NDArray[Any]]] = {}

    def has_to_go_before(self, item: _Read, batch_size: int) -> bool:
        if not self._pending:
            return len(self.seen) + len(self.failed) >= _REPORT
        _, first = next(iter(self._pending.values()))
        new = item.prepared
        unlike = new is not None and (new.shape, new.dtype) != (first.shape, first.dtype)
        return unlike or len(self._pending) >= batch_size

    def take(self, row: int, item: _Read, known: Container[bytes]) -> None:
        if item.reason:
            self.failed.append(Failure(item.path, item.reason, item.origin.stamp))
            return
        self.seen.append(RowOrigin(row, item.origin))
        # Asked again here, where items come in order, so that what is extracted does not depend on the threads.
        key = item.origin.digest
        if item.prepared is not None and key not in known and key not in self._pending:
            self._pending[key] = row, item.prepared

    def extract(self) -> Extracted:
        if not self._pending:
            return Extracted(self.seen, [], {}, self.failed)
        rows = [row for row, _ in self._pending.values()]
        columns = self._extractor.extract(np.stack([prepared for _, prepared in self._pending.values()]))
        names = self._extractor.embeddings
        finite = np.logical_and.reduce([np.isfinite(columns[name]).all(axis=1) for name in names])
        if not finite.all():
            bad = {key for key, ok in zip(self._pending, finite, strict=True) if not ok}
            self._fail(bad, "embedding is not finite")
            rows = [row for row, ok in zip(rows, finite, strict=True) if ok]
            columns = {name: values[finite] for name, values in columns.items()}
        return Extracted(self.seen, rows, columns, self.failed)

    def _fail(self, bad: set[bytes], reason: str) -> None:
        """What was seen with one of these digests failed after all."""
        for seen in self.seen:
            if seen.origin.digest in bad:
                self.failed.append(Failure(self._items[seen.row].path, reason, seen.origin.stamp))
        self.seen = [seen for seen in self.seen if seen.origin.digest not in bad]


def _ahead(
    pool: ThreadPoolExecutor, work: Callable[[int], Any], rows: Iterable[int], window: int
) -> Iterator[tuple[int, Future[Any]]]:
    """Jobs in order, at most ``window`` of them submitted and not yet taken."""
    waiting: deque[tuple[int, Future[Any]]] = deque()
    try:
        for row in rows:
            waiting.append((row, pool.submit(work, row)))
            if len(waiting) >= window:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        for _, job in waiting:
            job.cancel()


def _from_matrix(source: Source, extractor: Extractor, matrix: NDArray[Any], wanted: NDArray[np.int64]) -> Extraction:
    """Ready vectors need neither threads nor a cache; rows that are not finite are failures."""
    finite = _finite_rows(matrix)[wanted]
    rows = wanted[finite]
    items: Sequence[Any] = source.items()
    reason = "the vector holds NaN or infinity"
    failed = [Failure(items[i].path, reason, source.stamp(i)) for i in wanted[~finite].tolist()]
    name = next(iter(extractor.embeddings))
    whole = len(rows) == len(matrix)

    def read(some: slice | NDArray[np.int64], names: Collection[str] | None) -> Columns:
        return {name: np.asarray(matrix[some] if whole else matrix[rows[some]], np.float32)}

    def origin(some: slice) -> list[Origin]:
        # As ``content_key`` would, row by row: the digest of a vector is that of its float32 values.
        content = np.ascontiguousarray(read(some, None)[name]).view(np.uint8).reshape(-1).data
        width, stamp = 4 * matrix.shape[1], source.stamp(int(rows[0]))
        starts = range(0, len(content), width)
        return [Origin(stamp, hashlib.sha256(content[start : start + width]).digest()) for start in starts]

    return Extraction(rows, read, origin, failed)


def _finite_rows(matrix: NDArray[Any]) -> NDArray[np.bool_]:
    finite = np.ones(len(matrix), bool)
    for start in range(0, len(matrix), BLOCK):
        block = matrix[start : start + BLOCK]
        # One pass of sums; only rows with a suspicious one (which large finite values can cause too) are looked at.
        with np.errstate(over="ignore", invalid="ignore"):
            odd = np.flatnonzero(~np.isfinite(block.sum(axis=1, dtype=np.float32)))
        finite[start + odd] = np.isfinite(block[odd]).all(axis=1)
    return finite
