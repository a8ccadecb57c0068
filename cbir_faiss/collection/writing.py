"""Changes to a collection: each is one transaction under the writer's lock, from the current generation to the next.

Reading and extracting come before the lock, so that who adds a folder does not keep others waiting for hours.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss.base import Extractor, Source
from cbir_faiss.base.checks import check_floats, check_payload
from cbir_faiss.base.filters import parse_where
from cbir_faiss.base.registry import make
from cbir_faiss.collection.blocks import Clock, encoded_blocks
from cbir_faiss.collection.source_changes import Seen, SourceChanges, changes_of, not_to_come_back
from cbir_faiss.errors import InputError
from cbir_faiss.pipeline.extraction import Extraction, Failure, Progress, extract
from cbir_faiss.pipeline.fit import Fitted
from cbir_faiss.pipeline.search import Filter
from cbir_faiss.sources._given import Given
from cbir_faiss.sources._paths import Paths
from cbir_faiss.storage.changes import change, open_replayed
from cbir_faiss.storage.files import writing_to
from cbir_faiss.storage.lock import writer_lock
from cbir_faiss.storage.segment import Block
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Ids

_PATIENCE = 60.0
"""Seconds that an add waits for another writer's commit: what it has extracted would have to be looked up again."""


@dataclass(frozen=True)
class Added:
    """What ``Collection.add`` did: how many items are new, how many of these replaced one of the same path (which got
    a new id), how many were there already, and what could not be used."""

    added: int
    replaced: int
    unchanged: int
    failed: tuple[Failure, ...] = ()


class Writer:
    """Makes changes; ``store`` is the generation that is open, and goes along with them.

    adopt: whether a table in the engine that belongs to nobody is taken over.
    """

    def __init__(self, store: Store, adopt: bool = False) -> None:
        self.store, self._adopt = store, adopt

    def add_files(
        self, extractor: Extractor, paths: Iterable[str | Path], cache: Path, progress: Progress | None
    ) -> Added:
        """See ``Collection.add``."""
        manifest = self.store.manifest
        limit = manifest.config.get("source", {}).get("max_megapixels")  # the one that it was built with
        limits = {} if limit is None else {"max_megapixels": limit}
        source = Paths(paths=[str(path) for path in paths], below=manifest.root, **limits)
        everything = source.items()
        rows = set(changes_of(self.store, source, Seen(), whole=False).rows)
        while True:  # others may write while this extracts; what they changed is looked at again before the commit
            wanted = np.array(sorted(rows), np.int64)
            found = extract(source, extractor, cache=cache, progress=progress, rows=wanted)
            if len(wanted) == len(everything) == len(found.failed):
                raise InputError(f"nothing was added; {found.failed[0].path}: {found.failed[0].reason}")
            with self._writing(patience=_PATIENCE):
                differs = changes_of(self.store, source, Seen(), whole=False)
                if rows.issuperset(differs.rows):
                    return self._add(source, found.among(differs.rows), differs)
                rows.update(differs.rows)

    def _add(self, source: Source, found: Extraction, differs: SourceChanges) -> Added:
        failed, before = list(found.failed), self.store.manifest.next_id
        old = [differs.replaced[row] for row in found.rows.tolist() if row in differs.replaced]
        if len(found):
            by_hand = set(differs.rows) - differs.followed
            blocks = self._blocks(self.store.fitted, source, found, failed, by_hand)
            self._change(delete=np.array(old, np.int64), blocks=blocks, expected=len(found))
        unchanged = len(source.items()) - len(differs.rows)
        return Added(self.store.manifest.next_id - before, len(old), unchanged, tuple(failed))

    def add_vectors(self, vectors: NDArray[Any], documents: Sequence[Mapping[str, Any]] | None) -> Ids:
        """See ``Collection.add_vectors``."""
        x = check_floats(vectors, "add_vectors", self.store.manifest.dim)
        documents = [{} for _ in x] if documents is None else documents
        check_payload(documents)
        if len(documents) != len(x):
            raise InputError(f"{len(documents)} documents for {len(x)} vectors")
        source = Given(x, documents)
        extractor: Extractor = make("extractors", "vectors")
        found = extract(source, extractor, cache=None)
        with self._writing(patience=_PATIENCE):
            first = self.store.manifest.next_id
            # Vectors come in a column of their own extractor's, whatever the collection's calls the embedding.
            fitted = replace(self.store.fitted, embedding=extractor.embeddings[0])
            self._change(blocks=self._blocks(fitted, source, found, [], range(len(x))), expected=len(found))
        return np.arange(first, self.store.manifest.next_id)

    def delete(self, ids: Ids, where: Filter | None) -> int:
        """See ``Collection.delete``."""
        with self._writing():
            wanted = np.unique(ids)
            self.store.require(wanted)
            if where is not None:
                wanted = np.union1d(wanted, self.store.select(parse_where(where)))
            if len(wanted):
                self._change(delete=wanted, conclude=not_to_come_back(self.store, wanted))
        return len(wanted)

    @contextmanager
    def _writing(self, patience: float = 0) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(writer_lock(self.store.folder, patience))
            stack.enter_context(writing_to(self.store.folder))
            self._reopen()
            yield

    def _reopen(self) -> None:
        """Whoever writes starts from the current generation."""
        self.store.close()
        self.store = open_replayed(self.store.folder, adopt=self._adopt)

    def _change(self, **what: Any) -> None:
        """See ``storage.changes.change``; afterwards the generation that it made is open."""
        with threads.phase("fit"):
            change(self.store, **what)
        self._reopen()

    def _blocks(
        self, fitted: Fitted, source: Source, found: Extraction, failed: list[Failure], by_hand: Container[int]
    ) -> Iterator[Block]:
        metric, first_id = self.store.manifest.metric, self.store.manifest.next_id
        return encoded_blocks(
            fitted, source, found, metric=metric, first_id=first_id, failed=failed, clock=Clock(), added=by_hand
        )
