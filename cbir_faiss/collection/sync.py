"""A collection and an engine elsewhere: push one to the other, and compare the two."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from cbir_faiss.backends import load_backend
from cbir_faiss.backends.database import Database
from cbir_faiss.base import Backend
from cbir_faiss.base.registry import load
from cbir_faiss.collection.spool import InOrder
from cbir_faiss.collection.transfer import (
    Difference,
    OutOfOrder,
    Progress,
    Transferred,
    check_removal,
    compare,
    transfer,
)
from cbir_faiss.errors import CbirError, Unsupported
from cbir_faiss.storage.lock import writer_lock
from cbir_faiss.storage.manifest import name_of, read_manifest
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Batch, Codes, Hits, Ids, Kind, Metric


class Local:
    """A collection as ``transfer`` reads a store: its codes (or floats) under their ids, documents as payload."""

    def __init__(self, store: Store) -> None:
        self._store = store
        manifest = store.manifest
        self.owner, self.name = manifest.owner, manifest.name or name_of(store.folder)
        self.dim: int | None = manifest.width
        self.kind: Kind | None = manifest.kind
        self.metric: Metric | None = manifest.metric

    def count(self) -> int:
        return len(self._store)

    def scroll(self, batch_size: int = 1000) -> Iterator[Batch]:
        ids: list[int] = []
        documents: list[dict[str, Any]] = []
        for item, record in self._store.records():
            ids.append(item)
            documents.append(record.document)
            if len(ids) == batch_size:
                yield self._batch(ids, documents)
                ids, documents = [], []
        if ids:
            yield self._batch(ids, documents)

    def fetch(self, ids: Ids) -> Codes:
        return self._store.fetch(ids, "code")

    def payload(self, ids: Ids) -> list[dict[str, Any]]:
        return self._store.documents(ids)

    def search(self, vectors: Codes, k: int = 10) -> Hits:
        return self._store.search(vectors, k, None)

    def _batch(self, ids: list[int], documents: list[dict[str, Any]]) -> Batch:
        wanted = np.array(ids, np.int64)
        return Batch(wanted, self.fetch(wanted), documents)


@dataclass(frozen=True)
class Target:
    """An engine by name and options, as the command line gives them."""

    name: str
    options: Mapping[str, Any]

    @contextmanager
    def opened(self, metric: Metric | None = None, name: str | None = None) -> Iterator[Backend]:
        """The backend, closed afterwards; ``metric`` is what it is asked for where it takes one and the options do not
        say, and ``name`` what its table is called then."""
        plugin: Any = load("backends", self.name)
        options = dict(self.options) if name is None else plugin.named(self.options, name)
        if metric is not None and "metric" in plugin.Options.model_fields:
            options.setdefault("metric", metric)
        backend = load_backend(self.name, **options)
        try:
            yield backend
        finally:
            backend.close()

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.name, dict(self.options)], sort_keys=True).encode()).hexdigest()[:12]


def push(
    folder: Path,
    target: Target,
    *,
    keep_extra: bool = False,
    remove_most: bool = False,
    dry_run: bool = False,
    swap: bool = False,
    adopt: bool = False,
    progress: Progress | None = None,
) -> Transferred:
    """Make an engine hold what the collection at ``folder`` holds, under the same ids, documents as payload.

    Killed at any moment and started again, it goes on. swap: what is there stays as it is until everything is stored
    beside it; then the two change places in one step. adopt: take over a table that belongs to no collection. The
    others, and what is raised, are those of ``transfer``.

    Raises:
        Unsupported: the engine keeps nothing when it is closed, or ``swap`` is asked of one that cannot.
        ConfigError: the table is not this collection's.
    """
    with Store.open(folder) as store:
        local = Local(store)
        with target.opened(local.metric, local.name) as live:
            _check_keeps(live)
            live.claim(local.owner, adopt=adopt)
            if swap and not dry_run:
                return _exchange(local, live, target.name, remove_most=remove_most, progress=progress)
            return transfer(
                local, live, keep_extra=keep_extra, remove_most=remove_most, dry_run=dry_run, progress=progress
            )


def _check_keeps(backend: Backend) -> None:
    if not backend.own_storage or backend.capabilities.persist == "refused":
        raise Unsupported(
            f"{backend!r} keeps nothing when the command ends: push to a database, or build a collection with this "
            "backend, which keeps its index in the collection's folder"
        )


def _exchange(local: Local, live: Backend, name: str, *, remove_most: bool, progress: Progress | None) -> Transferred:
    if not isinstance(live, Database):
        raise Unsupported(f"backend '{live.name}' cannot switch names in one step: leave --swap out")
    standby = Target(name, live.standby())
    # What is at the standby may go; what is live may not shrink to less than half unasked.
    check_removal(live, live.count() - local.count(), live.count(), allowed=remove_most)
    with standby.opened(local.metric) as beside:
        beside.claim(local.owner)
        if beside.dim not in (None, local.dim):
            assert local.dim is not None
            assert local.kind is not None
            beside.create(local.dim, local.kind)
        done = transfer(local, beside, remove_most=True, progress=progress)
    live.swap()
    return done


def difference(folder: Path, target: Target, *, progress: Progress | None = None) -> Difference:
    """Where a deployed copy differs from the collection at ``folder``: ids, vectors, payload, nearest neighbours."""
    with Store.open(folder) as store:
        local = Local(store)
        with target.opened(local.metric, local.name) as backend:
            try:
                return compare(local, backend, progress=progress)
            except OutOfOrder:
                with TemporaryDirectory(prefix="cbir-verify-") as place:
                    return compare(local, InOrder(backend, Path(place)), progress=progress)


def engine_difference(store: Store, *, progress: Progress | None = None) -> Difference | None:
    """Where the engine that keeps the index of a collection differs from its files; None where they have the index.

    Raises:
        CbirError: another process is writing to the collection, or has changed it since ``store`` was opened.
        BackendError: the engine failed.
    """
    if store.engine is None:
        return None
    with writer_lock(store.folder):
        if read_manifest(store.folder).generation != store.manifest.generation:
            raise CbirError(f"{store.folder}: has changed since it was opened: open it again")
        return compare(Local(store), store.engine, queries=0, progress=progress)
