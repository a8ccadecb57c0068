"""A collection and an engine elsewhere: push one to the other, pull what an engine holds, and compare the two."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cbir_faiss.backends import load_backend
from cbir_faiss.base import Backend
from cbir_faiss.base.registry import load
from cbir_faiss.collection.build import BuildReport, build
from cbir_faiss.collection.transfer import Difference, Progress, Transferred, compare, transfer
from cbir_faiss.config import parse_config
from cbir_faiss.errors import CbirError, InputError, Unsupported
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.storage.files import writing_to
from cbir_faiss.storage.manifest import name_of
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Batch, Codes, Hits, Kind, Metric


class Local:
    """A collection as ``transfer`` reads a store: its codes (or floats) under their ids, documents as payload."""

    def __init__(self, store: Store) -> None:
        self._store = store
        manifest = store.manifest
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

    def search(self, vectors: Codes, k: int = 10) -> Hits:
        return self._store.search(vectors, k, None)

    def _batch(self, ids: list[int], documents: list[dict[str, Any]]) -> Batch:
        wanted = np.array(ids, np.int64)
        return Batch(wanted, self._store.fetch(wanted, "code"), documents)


@dataclass(frozen=True)
class Target:
    """An engine by name and options, as the command line gives them."""

    name: str
    options: Mapping[str, Any]

    def open(self, metric: Metric | None = None, name: str | None = None) -> Backend:
        """The backend; ``metric`` is what it is asked for where it takes one and the options do not say, and ``name``
        what its table is called then."""
        plugin: Any = load("backends", self.name)
        options = dict(self.options) if name is None else plugin.named(self.options, name)
        if metric is not None and "metric" in plugin.Options.model_fields:
            options.setdefault("metric", metric)
        return load_backend(self.name, **options)

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.name, dict(self.options)], sort_keys=True).encode()).hexdigest()[:12]


def push(folder: Path, target: Target, *, progress: Progress | None = None, adopt: bool = False) -> Transferred:
    """Store the whole collection at ``folder`` in an engine, under the same ids, documents as payload.

    Interrupted and started again it goes on: a journal beside the collection remembers how far it came. ``adopt`` takes
    over a table that belongs to no collection.

    Raises:
        ConfigError: the engine holds vectors of another dimension, kind or metric, or the table is not this
            collection's. BackendError: it failed.
    """
    with Store.open(folder) as store:
        local = Local(store)
        backend = target.open(local.metric, store.manifest.name or name_of(folder))
        try:
            backend.claim(store.manifest.owner, adopt=adopt)
            journal = folder.with_name(f"{folder.name}.push-{target.digest}.json")
            return transfer(local, backend, journal=journal, progress=progress)
        finally:
            backend.close()


def difference(folder: Path, target: Target, *, progress: Progress | None = None) -> Difference:
    """Where a deployed copy differs from the collection at ``folder``: ids, vectors, payload, nearest neighbours."""
    with Store.open(folder) as store:
        local = Local(store)
        backend = target.open(local.metric, store.manifest.name or name_of(folder))
        try:
            return compare(local, backend, progress=progress)
        finally:
            backend.close()


def pull(target: Target, out: Path, *, batch_size: int = 10_000, progress: Progress | None = None) -> BuildReport:
    """Make a local collection of raw floats of what an engine holds, payload included; nothing is held in memory.

    The collection numbers its items anew; the engine's id of each is ``id`` in its document.

    Raises:
        InputError: the engine holds nothing. Unsupported: it holds codes, of which no floats can be made.
        CbirError: ``out`` exists.
    """
    if out.exists():
        raise CbirError(f"{out}: exists; choose another --out or remove it")
    backend = target.open()
    spool = out.with_name(out.name + ".pulling")
    try:
        if backend.dim is None or not backend.count():
            raise InputError(f"there is nothing to pull: {backend!r} is empty or does not exist")
        if backend.kind != "float":
            raise Unsupported(f"{backend!r} holds binary codes; codecs are compared over floats")
        with writing_to(out):
            shutil.rmtree(spool, ignore_errors=True)
            spool.mkdir(parents=True)
            _spool(backend, spool, batch_size, progress)
        document = {
            "source": {
                "name": "vectors",
                "file": str(spool / "vectors.npy"),
                "documents": str(spool / "documents.jsonl"),
            },
            "codecs": [{"name": "raw"}],
            "backends": [{"name": "faiss-flat", "metric": backend.metric}],
        }
        return build(parse_config(document), out, cache=default_cache())
    finally:
        backend.close()
        shutil.rmtree(spool, ignore_errors=True)


def _spool(backend: Backend, spool: Path, batch_size: int, progress: Progress | None) -> None:
    total, done = backend.count(), 0
    shape = (total, int(backend.dim or 0))
    vectors = np.lib.format.open_memmap(spool / "vectors.npy", "w+", np.float32, shape)
    with (spool / "documents.jsonl").open("w", encoding="utf-8") as lines:
        for batch in backend.scroll(batch_size):
            if done + len(batch.ids) > total:
                raise CbirError(f"{backend!r} grew while it was read: pull it again")
            vectors[done : done + len(batch.ids)] = batch.vectors
            for item, payload in zip(batch.ids.tolist(), batch.payload, strict=True):
                lines.write(json.dumps({**payload, "id": item}, ensure_ascii=False) + "\n")
            done += len(batch.ids)
            if progress is not None:
                progress(done, total)
    if done < total:
        raise CbirError(f"{backend!r} gave {done} of {total} items: pull it again")
    vectors.flush()
