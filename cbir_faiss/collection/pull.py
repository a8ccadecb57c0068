"""What an engine holds, as a collection of raw floats, under its own ids, so that the two can be compared."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cbir_faiss.backends.database import Database
from cbir_faiss.base import Backend, Source
from cbir_faiss.collection.blocks import Clock
from cbir_faiss.collection.build import Job
from cbir_faiss.collection.spool import LeftOut, Spool
from cbir_faiss.collection.sync import Target
from cbir_faiss.collection.transfer import Progress
from cbir_faiss.config import parse_config
from cbir_faiss.errors import CbirError, InputError, Unsupported
from cbir_faiss.pipeline.extraction import Extraction, Failure
from cbir_faiss.pipeline.fit import Fitted, with_direction
from cbir_faiss.storage.catalogue import Record
from cbir_faiss.storage.files import writing_to
from cbir_faiss.storage.lock import writer_lock
from cbir_faiss.storage.manifest import Manifest
from cbir_faiss.storage.segment import BLOCK_ROWS, Block
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Batch


@dataclass(frozen=True)
class PullReport:
    """What a pull did.

    resumed: how many of the items a pull that was killed had read. left_out: by reason, what is not among them.
    """

    items: int
    resumed: int
    left_out: dict[str, LeftOut]


def pull(target: Target, out: Path, *, batch_size: int = 10_000, progress: Progress | None = None) -> PullReport:
    """Make a local collection of raw floats of what an engine holds, under its ids and with its payload.

    An item that cannot be kept is left out and counted. What is read is on disk, beside ``out``, until all is there:
    killed and started again, it goes on.

    Raises:
        InputError: the engine holds nothing that can be kept. Unsupported: it holds codes, of which no floats can be
        made. CbirError: ``out`` exists, or the engine changed while it was read.
    """
    if out.exists():
        raise CbirError(f"{out}: exists; choose another --out or remove it")
    with target.opened() as backend:
        if backend.dim is None or not backend.count():
            raise InputError(f"there is nothing to pull: {backend!r} is empty or does not exist")
        if backend.kind != "float":
            raise Unsupported(f"{backend!r} holds binary codes; codecs are compared over floats")
        folder = out.with_name(out.name + ".pulling")
        with writing_to(out):
            folder.mkdir(parents=True, exist_ok=True)
        with writer_lock(folder), writing_to(out):
            spool = Spool(folder, _key(target, backend), backend)
            try:
                resumed = _read(backend, spool, batch_size, progress)
            finally:
                spool.close()
            _build(spool, out, str(backend.metric))
            shutil.rmtree(folder, ignore_errors=True)
        with Store.open(out) as store:
            return PullReport(len(store), resumed, spool.left_out)


def _key(target: Target, backend: Backend) -> str:
    """Whose rows those of a spool are: the engine's, at its place, as long as it holds such vectors."""
    place = backend._place() if isinstance(backend, Database) else ""
    return f"{target.digest} {place} {backend.dim} {backend.metric}"


def _read(backend: Backend, spool: Spool, batch_size: int, progress: Progress | None) -> int:
    """Read everything, or what an earlier run has not; returns how many rows that had read."""
    if spool.rows and not _begins_alike(backend, spool, batch_size):
        spool.restart()
    resumed, total = spool.rows, backend.count()
    for batch in backend.scroll(batch_size, spool.cursor):
        spool.append(_usable(batch, backend))
        if progress is not None:
            progress(spool.rows, max(spool.rows, total))
    if (met := spool.rows + sum(some.count for some in spool.left_out.values())) < (held := backend.count()):
        spool.restart()
        raise CbirError(f"{backend!r} gave {met} of {held} items, so it changed while it was read: pull it again")
    if not spool.rows:
        reason = next(iter(spool.left_out))
        raise InputError(f"there is nothing to pull: {backend!r} has no item that can be kept; {reason}")
    return resumed


def _begins_alike(backend: Backend, spool: Spool, batch_size: int) -> bool:
    """Whether the first items are still those that were read first: else it is not what was being read."""
    first = next(backend.scroll(batch_size), None)
    if first is None or len((first := _usable(first, backend)).ids) > spool.rows:
        return False
    ids, vectors, documents = spool.read(np.arange(len(first.ids)))
    return np.array_equal(ids, first.ids) and np.array_equal(vectors, first.vectors) and documents == first.payload


def _usable(batch: Batch, backend: Backend) -> Batch:
    """``batch`` without the vectors that no index could take."""
    finite = np.asarray(np.isfinite(batch.vectors).all(axis=1))
    whole = finite & with_direction(batch.vectors) if backend.metric == "cosine" else finite
    if whole.all():
        return batch
    reasons = ("its vector holds NaN or infinity", "its vector is zero and has no direction")
    lost = [(str(i), reasons[ok]) for i, ok in zip(batch.ids[~whole].tolist(), finite[~whole].tolist(), strict=True)]
    kept = np.flatnonzero(whole)
    return Batch(
        batch.ids[kept],
        batch.vectors[kept],
        [batch.payload[row] for row in kept.tolist()],
        [*batch.left_out, *lost],
        batch.cursor if batch.cursor is not None else int(batch.ids[-1]),
    )


def _build(spool: Spool, out: Path, metric: str) -> None:
    document = {
        "source": {"name": "vectors", "file": str(spool.vectors)},
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss-flat", "metric": metric}],
    }
    _Pull(parse_config(document).single(), out, None, None, Clock(), spool=spool).make()


@dataclass
class _Pull(Job):
    """A build of spooled vectors, of which each has an id and a document already."""

    spool: Spool = field(kw_only=True)

    def _is_done(self, aside: Path) -> bool:
        self._clear(aside)  # it may be of another engine
        return False

    def _blocks(
        self, manifest: Manifest, source: Source, found: Extraction, fitted: Fitted, failed: list[Failure]
    ) -> Iterator[Block]:
        order = self.spool.order()
        for start in range(0, len(order), BLOCK_ROWS):
            ids, vectors, documents = self.spool.read(order[start : start + BLOCK_ROWS])
            codes, columns = fitted.items({"embedding": vectors})
            digests = [hashlib.sha256(vector.tobytes()).digest() for vector in vectors]
            records = [Record(said, None, digest) for said, digest in zip(documents, digests, strict=True)]
            yield Block(ids, codes, columns, records)
