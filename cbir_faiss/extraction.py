"""From a source to embedding columns: read and prepare in parallel, extract in batches, never twice.

Embeddings are cached by content: the digest of an item's bytes and the extractor's fingerprint (plugin, options,
weights). A second run, another config over the same pictures, or a folder that grew recomputes only what is new.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss import threads
from cbir_faiss.base import Extractor, Source
from cbir_faiss.cache import EmbeddingCache
from cbir_faiss.errors import BadImage, ConfigError, InputError
from cbir_faiss.types import Columns

Progress = Callable[[int, int], None]
"""``progress(done, total)``, called as work advances."""
BLOCK = 50_000


@dataclass(frozen=True)
class Failure:
    """One item that could not be used, and why."""

    path: str
    reason: str


class Extraction:
    """Columns of the items that could be used, read in blocks so that they need not fit in memory.

    rows: int64 ``(n,)``, indices into the source's items, ascending.
    computed: how many items were extracted now; the rest came from the cache.
    seconds: what extracting the computed ones took.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        read: Callable[[slice | NDArray[np.int64]], Columns],
        failed: list[Failure],
        computed: int,
        seconds: float,
    ) -> None:
        self.rows, self.failed, self.computed, self.seconds = rows, failed, computed, seconds
        self._read = read

    def __len__(self) -> int:
        return len(self.rows)

    def block(self, rows: slice | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Columns of some rows of this extraction."""
        return dict(self._read(rows))

    @cached_property
    def columns(self) -> dict[str, NDArray[Any]]:
        """All of them in memory, name → ``(n, width)``."""
        return self.block(slice(0, len(self.rows)))


@dataclass(frozen=True)
class Extracted:
    """One batch of ``stream``: columns of the rows that worked, and the failures met on the way."""

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
    source: Source, extractor: Extractor, rows: Iterable[int], *, batch_size: int = 32, workers: int | None = None
) -> Iterator[Extracted]:
    """Batches of columns of ``rows``, in order. Preparation runs in threads beside the model; memory stays bounded.

    An item that cannot be read is a ``Failure`` of its batch, and so is one whose embedding is not finite.
    """
    check_pair(source, extractor)
    items = source.items()
    workers = workers or threads.available()
    with ThreadPoolExecutor(workers) as pool, threads.phase("extract"):
        pending: list[tuple[int, NDArray[Any]]] = []
        failed: list[Failure] = []
        for row, job in _ahead(pool, lambda row: extractor.prepare(source.read(row)), rows, 2 * batch_size + workers):
            try:
                prepared = job.result()
            except BadImage as error:
                failed.append(Failure(items[row].path, str(error)))
                continue
            if pending and (len(pending) >= batch_size or prepared.shape != pending[0][1].shape):
                yield _extract(extractor, items, pending, failed)
                pending, failed = [], []
            pending.append((row, prepared))
        if pending or failed:
            yield _extract(extractor, items, pending, failed)


def extract(
    source: Source,
    extractor: Extractor,
    *,
    cache: Path | None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Extraction:
    """Columns of every item of ``source``; ``cache`` is the folder of the embedding cache, None for none.

    Raises:
        InputError: not one item could be used; the message has the first reason.
        ConfigError: the extractor does not read what the source yields.
    """
    check_pair(source, extractor)
    matrix = getattr(source, "matrix", None)
    if matrix is not None:
        return _from_matrix(source, extractor, matrix())
    total = len(source.items())
    keys, failed = _content_keys(source)
    store = EmbeddingCache(cache and cache / "embeddings" / extractor.fingerprint())
    first_of: dict[bytes, int] = {}
    for row, key in keys.items():
        if key not in store:
            first_of.setdefault(key, row)
    done = total - len(first_of)
    if progress:
        progress(done, total)
    began = time.perf_counter()
    for batch in stream(source, extractor, first_of.values(), batch_size=batch_size):
        failed += batch.failed
        store.add([keys[row] for row in batch.rows], batch.columns)
        done += len(batch.rows) + len(batch.failed)
        if progress:
            progress(done, total)
    store.flush()
    failed = _with_copies(source, failed, keys, first_of)
    rows = np.array([row for row, key in keys.items() if key in store], np.int64)
    if not len(rows):
        raise InputError(f"not one of {total} items could be used; {failed[0].path}: {failed[0].reason}")
    computed = sum(1 for key in first_of if key in store)
    seconds = time.perf_counter() - began if computed else 0.0
    return Extraction(
        rows, lambda some: store.gather([keys[int(row)] for row in rows[some]]), failed, computed, seconds
    )


def _extract(
    extractor: Extractor, items: Sequence[Any], pending: list[tuple[int, NDArray[Any]]], failed: list[Failure]
) -> Extracted:
    if not pending:
        return Extracted([], {}, failed)
    rows = [row for row, _ in pending]
    columns = extractor.extract(np.stack([prepared for _, prepared in pending]))
    finite = np.logical_and.reduce([np.isfinite(columns[name]).all(axis=1) for name in extractor.embeddings])
    if not finite.all():
        failed = failed + [Failure(items[rows[i]].path, "embedding is not finite") for i in np.flatnonzero(~finite)]
        rows = [row for row, ok in zip(rows, finite, strict=True) if ok]
        columns = {name: values[finite] for name, values in columns.items()}
    return Extracted(rows, columns, failed)


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


def _content_keys(source: Source) -> tuple[dict[int, bytes], list[Failure]]:
    keys: dict[int, bytes] = {}
    failed: list[Failure] = []
    items = source.items()
    with ThreadPoolExecutor(threads.available()) as pool:
        for row, job in _ahead(pool, source.content_key, range(len(items)), 1024):
            try:
                keys[row] = job.result()
            except BadImage as error:
                failed.append(Failure(items[row].path, str(error)))
    return keys, failed


def _with_copies(
    source: Source, failed: list[Failure], keys: Mapping[int, bytes], first_of: Mapping[bytes, int]
) -> list[Failure]:
    """A file that failed fails under every path that has the same content."""
    items = source.items()
    reasons = {failure.path: failure.reason for failure in failed}
    for row, key in keys.items():
        original = items[first_of[key]].path if key in first_of else None
        if original in reasons:
            reasons.setdefault(items[row].path, reasons[original])
    return [Failure(path, reasons[path]) for path in sorted(reasons)]


def _from_matrix(source: Source, extractor: Extractor, matrix: NDArray[Any]) -> Extraction:
    """Ready vectors need neither threads nor a cache; rows that are not finite are failures."""
    finite = np.concatenate([np.isfinite(matrix[i : i + BLOCK]).all(axis=1) for i in range(0, len(matrix), BLOCK)])
    rows = np.flatnonzero(finite).astype(np.int64)
    items = source.items()
    failed = [Failure(items[i].path, "the vector holds NaN or infinity") for i in np.flatnonzero(~finite).tolist()]
    if not len(rows):
        raise InputError(f"not one of {len(matrix)} vectors is finite")
    name = next(iter(extractor.embeddings))
    whole = len(rows) == len(matrix)

    def read(some: slice | NDArray[np.int64]) -> Columns:
        return {name: np.asarray(matrix[some] if whole else matrix[rows[some]], np.float32)}

    return Extraction(rows, read, failed, 0, 0.0)
