"""The exact vectors of what is stored: as it is kept, given, as the source has it, or as an engine gives it back."""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base import Backend, Extractor, Source
from cbir_faiss.base.checks import check_floats
from cbir_faiss.config import Config, parse_config
from cbir_faiss.errors import CbirError, InputError
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.pipeline.extraction import BLOCK, Progress, embeddings_of
from cbir_faiss.pipeline.fit import with_direction
from cbir_faiss.storage.catalogue import as_json
from cbir_faiss.storage.files import ArrayFile, load_mapped, writing_to
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Batch, Ids, Metric, Payload

DEFAULT_METRIC: Metric = "cosine"
"""By what embeddings are compared where nothing says otherwise."""
_AT_ONCE = 10_000


@dataclass(frozen=True)
class Exact:
    """Vectors float ``(n, dim)`` of all items, in the order of their ids, and how near they are to each other.

    as_searched: they are what the index was given, so that a query has to be made into one first.
    """

    vectors: NDArray[Any]
    metric: Metric
    as_searched: bool = False


def read_vectors(path: Path) -> NDArray[Any]:
    """The numbers ``(n, dim)`` of a ``.npy`` file, memory-mapped; one vector is a matrix of one row.

    Raises:
        InputError: it is not such a file.
    """
    try:
        found: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: not a .npy file of vectors ({error})") from error
    if not isinstance(found, np.ndarray):
        found.close()
        raise InputError(f"{path}: not a .npy file of vectors, but several arrays: save the one you want by itself")
    x: NDArray[Any] = found[None] if found.ndim == 1 else found
    if x.ndim != 2 or 0 in x.shape:
        raise InputError(f"{path}: holds {x.dtype} {x.shape}, not vectors (n, dim)")
    return x


def given(vectors: NDArray[Any], items: int, metric: Metric, dim: int | None) -> Exact:
    """``vectors`` that somebody brings.

    Raises:
        InputError, DimensionMismatch: not a row for each item, NaN, or not ``dim`` wide.
    """
    if len(vectors) != items:
        raise InputError(
            f"{len(vectors):,} exact vectors for {items:,} items: a row for each, in the order of their ids"
        )
    return Exact(check_floats(vectors, "the exact vectors", dim), metric)


def of_collection(store: Store, scratch: Path) -> Exact | None:
    """What the collection keeps, or what it was made of, where that can still be read; else None."""
    metric, column = metric_of(store), store.floats
    if column == "code" and not store.fitted.rescorer.candidates:
        ranked = store.manifest.metric if store.manifest.metric != "hamming" else None
        return Exact(store.whole(column), _asked_metric(store) or ranked or metric, as_searched=True)
    return uncoded(store, scratch)


def uncoded(store: Store, scratch: Path) -> Exact | None:
    """The embeddings, not what a codec makes of them, where they are kept or can still be read; else None."""
    metric, column = metric_of(store), store.embeddings
    if column is not None:
        return Exact(store.whole(column), metric)
    recorded = _recorded(store, scratch)
    return None if recorded is None else Exact(recorded, metric)


def metric_of(store: Store) -> Metric:
    """By what a collection's embeddings are compared: as its config says, else as it ranks them at the end."""
    manifest, fitted = store.manifest, store.fitted
    ranks = getattr(fitted.rescorer.options, "metric", None)
    if ranks is None and manifest.metric is not None and manifest.metric != "hamming":
        ranks = fitted.codec.metric_of(manifest.metric)
    found: Metric = _asked_metric(store) or ranks or DEFAULT_METRIC
    return found


def _asked_metric(store: Store) -> Metric | None:
    truth = dict(store.manifest.config.get("metrics") or {}).get("truth") or {}
    asked: Metric | None = truth.get("metric")
    return asked


# ------------------------------------------------------------------------------------------------- of a source


def _recorded(store: Store, scratch: Path) -> NDArray[Any] | None:
    """The embeddings that were encoded, found again by the digests of their items' content."""
    with suppress(CbirError):
        config = parse_config(store.manifest.config)
        read = _reader(store, config)
        digests = _digests(store)
        if read is not None and digests:
            with writing_to(scratch):
                return _collected(digests, read, store.manifest.dim, scratch)
    return None


_Read = Callable[[list[bytes]], NDArray[Any]]


def _reader(store: Store, config: Config) -> _Read | None:
    if config.source.plugin().yields == "vector":
        source: Source = config.source.make()
        return _rows_by_content(getattr(source, "matrix", lambda: None)())
    extractor: Extractor = config.extractors[0].make()
    cache, column = embeddings_of(default_cache(), extractor), store.manifest.embedding
    return lambda digests: cache.gather(digests, [column])[column]


def _rows_by_content(matrix: NDArray[Any] | None) -> _Read | None:
    if matrix is None:
        return None
    rows: dict[bytes, int] = {}
    for start in range(0, len(matrix), BLOCK):
        block = np.ascontiguousarray(matrix[start : start + BLOCK], np.float32)
        rows |= {hashlib.sha256(row.tobytes()).digest(): start + i for i, row in enumerate(block)}

    def read(digests: list[bytes]) -> NDArray[Any]:
        if not all(digest in rows for digest in digests):
            raise InputError("the source does not have every item any more")
        return matrix[[rows[digest] for digest in digests]]

    return read


def _digests(store: Store) -> list[bytes]:
    found: list[bytes] = []
    for segment in store.segments:
        dead = set(segment.dead_ids.tolist())
        found += [digest for item, digest in segment.catalogue.digests() if item not in dead]
    return found if all(found) else []


def _collected(digests: list[bytes], read: _Read, dim: int, scratch: Path) -> NDArray[Any]:
    out = np.lib.format.open_memmap(scratch / "recorded.npy", "w+", np.float32, (len(digests), dim))
    for start in range(0, len(digests), BLOCK):
        block = read(digests[start : start + BLOCK])
        if block.shape[1] != dim:
            raise InputError(f"the source has vectors of {block.shape[1]} dimensions now, not {dim}")
        out[start : start + BLOCK] = block
    return out


# -------------------------------------------------------------------------------------------------- of an engine


def stream(backend: Backend, scratch: Path, progress: Progress | None = None) -> tuple[Ids, NDArray[Any]]:
    """Ids, ascending, and vectors or codes ``(n, width)`` of all that an engine holds, in a file.

    What no search could find (NaN, a zero vector among directions) is left out.

    Raises:
        Unsupported: it gives no vectors back. InputError: there is nothing in it.
    """
    with writing_to(scratch):
        found = _written(backend, scratch / "streamed.npy", progress)
    if not len(found):
        raise InputError(f"{backend!r} holds no items")
    vectors = load_mapped(scratch / "streamed.npy")
    if (np.diff(found) > 0).all():
        return found, np.asarray(vectors)
    order = np.argsort(found, kind="stable")
    return found[order], np.asarray(vectors[order])


def copied(backend: Backend, folder: Path, progress: Progress | None = None) -> dict[str, Any]:
    """The source section of what an engine holds, whose vectors and documents are copied into ``folder``; the paths of
    those that have none are their ids. A copy that is there and is the same stays as it is.

    Raises:
        Unsupported: it gives no vectors back. InputError: it holds nothing, or codes in place of vectors.
    """
    if backend.dim is None or not backend.count():
        raise InputError(f"{backend!r} is empty or does not exist")
    if backend.kind != "float" or backend.code_bits is not None:
        raise InputError(f"{backend!r} holds codes: tune on the vectors that they were made of")
    vectors, documents = folder / "given.npy", folder / "given.jsonl"
    with writing_to(folder), replacing(vectors) as new, replacing(documents) as lines, lines.open("w") as told:

        def tell(batch: Batch, kept: NDArray[np.bool_]) -> None:
            for row in np.flatnonzero(kept).tolist():
                told.write(as_json(_document(batch.payload[row], int(batch.ids[row]))) + "\n")

        if not len(_written(backend, new, progress, tell)):
            raise InputError(f"{backend!r} holds no vector that can be compared")
    return {"name": "vectors", "file": str(vectors), "documents": str(documents)}


def _document(payload: Payload, number: int) -> dict[str, Any]:
    """What somebody else's document says, its path a text and its label one of a class, or left out."""
    label = payload.get("label")
    labels = label if isinstance(label, list) else [label]
    told = dict(payload) if all(isinstance(one, str | int) for one in labels) else {**payload, "label": []}
    return told if isinstance(payload.get("path"), str) else {**told, "path": str(number)}


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A file to write, which takes the place of ``file`` afterwards unless it says the same."""
    part = file.with_name(f"part-{file.name}")
    try:
        yield part
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if file.exists() and filecmp.cmp(part, file, shallow=False):
        part.unlink()
    else:
        part.replace(file)


def _written(
    backend: Backend,
    path: Path,
    progress: Progress | None,
    tell: Callable[[Batch, NDArray[np.bool_]], None] = lambda batch, kept: None,
) -> Ids:
    total, ids, file = backend.count(), [np.empty(0, np.int64)], ArrayFile(path)
    try:
        for batch in backend.scroll(_AT_ONCE):
            kept = np.isfinite(batch.vectors).all(axis=1) if backend.kind == "float" else np.ones(len(batch.ids), bool)
            if backend.metric == "cosine":
                kept &= with_direction(batch.vectors)
            if kept.any():
                ids.append(batch.ids[kept])
                file.append(np.ascontiguousarray(batch.vectors[kept]))
                tell(batch, np.asarray(kept))
            if progress is not None:
                progress(done := min(total, sum(map(len, ids))), max(total, done))
    finally:
        file.close()
    return np.concatenate(ids)
