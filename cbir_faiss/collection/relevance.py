"""Which hits of a collection are meant: the cut-off, learnt from its own items and kept in its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import numpy as np

from cbir_faiss.errors import CbirError, InputError
from cbir_faiss.measures.cutoff import by_distances, by_labels
from cbir_faiss.measures.relevance import Relevance
from cbir_faiss.pipeline.search import Searcher
from cbir_faiss.storage.changes import GROWTH, amend
from cbir_faiss.storage.files import writing_to
from cbir_faiss.storage.lock import writer_lock
from cbir_faiss.storage.manifest import Cutoff, Manifest, check_still_there
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Hits, Ids

QUERIES, LABELLED, DEPTH = 500, 50, 200
"""Items that are asked for, and how many hits of each are looked at: with labels, and without."""


def cutoff_of(store: Store) -> Cutoff:
    """The cut-off that the collection has, or a new one; of one that is many times as large since, too.

    Raises:
        InputError: there are no two items.
    """
    known = store.manifest.cutoff
    return known if known is not None and len(store) <= GROWTH * known.items else learnt(store)


def learnt(store: Store, seed: int = 0) -> Cutoff:
    """A cut-off from hits of items that are drawn: by their labels where most have one, else by the distances alone."""
    ids = store.ids
    if len(ids) < 2:
        raise InputError(f"{store.folder}: {len(ids)} items, of which none has a neighbour")
    drawn = np.sort(np.random.default_rng(seed).choice(ids, min(QUERIES, len(ids)), replace=False))
    hits = Searcher(store.fitted, store).hits_of(drawn, min(DEPTH, len(ids) - 1))
    there = np.isfinite(hits.distances)
    if not there.any():
        raise InputError(f"{store.folder}: a search for its own items finds no others")
    first = there[:, :LABELLED]
    relevant = _relevant(store, drawn, Hits(hits.ids[:, :LABELLED], hits.distances[:, :LABELLED]))
    if relevant is None:
        found = by_distances(hits.distances[there])
    else:
        found = by_labels(hits.distances[:, :LABELLED][first], relevant[first])
    by: Literal["labels", "distances"] = "distances" if relevant is None else "labels"
    return Cutoff(distance=found.distance, error=found.error, by=by, items=len(ids))


def _relevant(store: Store, queries: Ids, hits: Hits) -> Any:
    """bool ``(nq, k)``; None where few items have a label, or all have the same."""
    ids = np.unique(np.concatenate([queries, hits.ids[hits.ids >= 0]]))
    labels = [_labels(document) for document in store.documents(ids)]
    if sum(map(bool, labels)) < len(labels) / 2 or len(set(labels)) < 2:
        return None
    relevance = Relevance.from_labels(labels, [labels[row] for row in np.searchsorted(ids, queries)])
    rows = np.where(hits.ids < 0, -1, np.searchsorted(ids, np.maximum(hits.ids, 0)))
    return None if relevance is None else relevance.of(rows)


def _labels(document: dict[str, Any]) -> tuple[str, ...]:
    label = document.get("label")
    several: Sequence[Any] = label if isinstance(label, list | tuple) else [label]
    return tuple(str(one) for one in several if one is not None)


def kept(store: Store, cutoff: Cutoff) -> Manifest:
    """The manifest with ``cutoff``, stored where that can be done now: a reader may have no right to."""
    told = store.manifest.model_copy(update={"cutoff": cutoff})
    with suppress(CbirError), writing_to(store.folder), writer_lock(store.folder):
        check_still_there(store.folder, store.manifest)  # another collection may have taken its place
        after = amend(store.folder, cutoff=cutoff)
        return after if after.generation == store.manifest.generation + 1 else told
    return told
