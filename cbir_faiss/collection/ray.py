"""A build by several processes or machines: Ray Data extracts, Ray tasks write segments, one manifest lists them.

It is the code that one machine runs, on parts of the source. The source and the collection must be at paths that every
machine sees. The cache need not be: each machine has its own, and embeddings travel to the one that builds, and from
there to those that write.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base import Extractor, Source
from cbir_faiss.base.options import need
from cbir_faiss.collection.blocks import Clock, encoded_blocks
from cbir_faiss.config import Config, Engine
from cbir_faiss.errors import BackendError, CbirError, InputError
from cbir_faiss.pipeline.cache import EmbeddingCache, default_cache
from cbir_faiss.pipeline.extraction import (
    Extraction,
    Failure,
    Origin,
    Origins,
    Progress,
    assemble,
    check_pair,
    embeddings_of,
    stream,
)
from cbir_faiss.storage.changes import add_segment, shape_of
from cbir_faiss.storage.manifest import Manifest, SegmentEntry
from cbir_faiss.storage.segment import BLOCK_ROWS
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Columns

_ROWS = 2048  # of a source, given to a process at once; a killed build goes on after the last such part
_NONE = -1


def extract_by_ray(
    engine: Engine, config: Config, source: Source, extractor: Extractor, cache: Path | None, progress: Progress | None
) -> Extraction:
    """As ``extraction.extract``, by Ray Data; ``source`` and ``extractor`` are those of ``config``.

    Raises:
        MissingDependency: Ray is not installed. BackendError: the cluster is not there, or lost the work.
        InputError: not one item could be used.
    """
    check_pair(source, extractor)
    place = None if cache is None or cache == default_cache() else cache.absolute()
    store = embeddings_of(cache or default_cache(), extractor)
    items, began = source.items(), time.perf_counter()
    origins, failed = Origins(len(items)), list[Failure]()
    done = computed = 0
    with _cluster(engine) as (ray, workers):
        data = ray.data.range(len(items), override_num_blocks=-(-len(items) // _ROWS))
        parts = data.map_batches(
            _Extracting,
            fn_constructor_args=(config, place, Path.cwd()),
            batch_size=_ROWS,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        )
        for part in parts.iter_batches(batch_size=None):
            for row, size, changed, digest, reason in zip(*(part[name] for name in _FIELDS), strict=True):
                stamp = None if size == _NONE else (int(size), int(changed))
                if reason:
                    failed.append(Failure(items[row].path, str(reason), stamp))
                else:
                    origins.put(int(row), Origin(stamp, bytes(digest)))
            _keep(store, part)
            done += len(part["row"])
            computed += int(part["computed"].sum())
            if progress:
                progress(done, len(items))
    store.flush()
    if done != len(items):
        raise BackendError(f"engine ray: {done:,} of {len(items):,} items came back")
    found = assemble(np.arange(len(items)), origins, store, failed, computed, time.perf_counter() - began)
    if not len(found):
        raise InputError(f"not one of {len(items)} items could be used; {failed[0].path}: {failed[0].reason}")
    return found


def _keep(store: EmbeddingCache, part: dict[str, NDArray[Any]]) -> None:
    """Take the columns of what this machine's cache does not have yet."""
    digests = [bytes(digest) for digest in part["digest"]]
    new = {digest: place for place, digest in enumerate(digests) if digest and digest not in store}
    names = [name for name in part if name.startswith(_COLUMN)]
    store.add(list(new), {name.removeprefix(_COLUMN): part[name][list(new.values())] for name in names})


def write_segments(
    engine: Engine, config: Config, store: Store, found: Extraction, failed: list[Failure]
) -> list[SegmentEntry]:
    """Segments of nearly equal length, in the order of the items; the codec's and rescorer's states are stored already.

    What cannot be indexed is appended to ``failed``.
    """
    limits = np.linspace(0, len(found), min(engine.segments, len(found)) + 1).astype(int).tolist()
    folder, manifest = store.folder.absolute(), store.manifest
    with _cluster(engine) as (ray, _):
        task = ray.remote(_write_segment)
        parts = [
            _Part(
                folder,
                manifest,
                f"1-{number}",
                start,
                found.rows[start:stop],
                found.origin(slice(start, stop)),
                [ray.put(found.block(slice(at, min(at + BLOCK_ROWS, stop)))) for at in range(start, stop, BLOCK_ROWS)],
            )
            for number, (start, stop) in enumerate(itertools.pairwise(limits), 1)
        ]
        written = ray.get([task.remote(config, part, Path.cwd()) for part in parts])
    for _, lost in written:
        failed += lost
    return [entry for entry, _ in written if entry is not None]


@dataclass(frozen=True)
class _Part:
    """What a task needs to write one segment; blocks: its columns in Ray's store, ``BLOCK_ROWS`` each."""

    folder: Path
    manifest: Manifest
    name: str
    first_id: int
    rows: NDArray[np.int64]
    origins: list[Origin]
    blocks: list[Any]


_COLUMN = "column "
_FIELDS = ("row", "size", "changed", "digest", "reason")


class _Extracting:
    """Extracts rows of the source; lives in a process of Ray, so that the model is loaded once.

    cache: where each machine keeps what it made; None: in its own default place.
    """

    def __init__(self, config: Config, cache: Path | None, cwd: Path) -> None:
        os.chdir(cwd)  # a config's relative paths mean the same everywhere
        self._source: Source = config.source.make()
        self._extractor: Extractor = config.extractors[0].make()
        self._extractor.load()
        self._store = embeddings_of(cache or default_cache(), self._extractor)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        rows = batch["id"].tolist()
        told: dict[int, tuple[int, int, int, bytes, str]] = {}
        computed = 0
        row_of = {self._source.items()[row].path: row for row in rows}
        for part in stream(self._source, self._extractor, rows, known=self._store):
            digests = {seen.row: seen.origin.digest for seen in part.seen}
            self._store.add([digests[row] for row in part.rows], part.columns)
            computed += len(part.rows)
            for seen in part.seen:
                told[seen.row] = seen.row, *(seen.origin.stamp or (_NONE, _NONE)), seen.origin.digest, ""
            for failure in part.failed:
                row = row_of[failure.path]
                told[row] = row, *(failure.stamp or (_NONE, _NONE)), b"", failure.reason
        self._store.flush()
        columns = list(zip(*(told[row] for row in rows), strict=True))
        return {
            **{name: np.array(column) for name, column in zip(_FIELDS[:3], columns, strict=False)},
            "digest": np.array(columns[3], object),
            "reason": np.array(columns[4], object),
            "computed": np.array([computed, *[0] * (len(rows) - 1)]),
            **self._columns(columns[3]),
        }

    def _columns(self, digests: Sequence[bytes]) -> dict[str, NDArray[Any]]:
        """The columns of all rows, zeros where one failed."""
        there = [place for place, digest in enumerate(digests) if digest]
        found = self._store.gather([digests[place] for place in there])
        columns = {
            name: np.zeros((len(digests), width), dtype) for name, (width, dtype) in self._extractor.outputs.items()
        }
        for name, column in found.items():
            columns[name][there] = column
        return {f"{_COLUMN}{name}": column for name, column in columns.items()}


def _write_segment(config: Config, part: _Part, cwd: Path) -> tuple[SegmentEntry | None, list[Failure]]:
    import ray

    os.chdir(cwd)
    store, failed = Store(part.folder, part.manifest), list[Failure]()

    def block(some: Any, names: Any) -> Columns:
        columns: Columns = ray.get(part.blocks[some.start // BLOCK_ROWS])
        return columns

    found = Extraction(part.rows, block, lambda some: part.origins[some], [])
    blocks = encoded_blocks(
        store.fitted,
        config.source.make(),
        found,
        metric=part.manifest.metric,
        first_id=part.first_id,
        failed=failed,
        clock=Clock(),
    )
    make_backend = None if store.has_engine else store.make_backend
    return add_segment(part.folder, part.name, blocks, make_backend, shape_of(part.manifest)), failed


@contextmanager
def _cluster(engine: Engine) -> Iterator[tuple[Any, int]]:
    """Ray, and how many processes are to extract. A cluster that was started here ends with the block."""
    ray = need("ray", "ray")
    need("ray.data", "ray")
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of every step of its plans
    own = not ray.is_initialized()
    try:
        if own:
            ray.init(address=engine.address, log_to_driver=False, configure_logging=False, include_dashboard=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray, engine.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    except CbirError:
        raise
    except (ray.exceptions.RayError, ConnectionError, ValueError) as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, CbirError):
            raise cause from error
        raise BackendError(f"engine ray: {' '.join(str(error).split())[:300]}") from error
    finally:
        if own and ray.is_initialized():
            ray.shutdown()
