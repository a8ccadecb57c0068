"""Which hits of a collection are meant: the cut-off, learnt from its own items and kept in its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import CbirError, InputError, Unsupported
from cbir_faiss.measures.cutoff import Cutoff as Nearer
from cbir_faiss.measures.cutoff import by_distances, by_labels
from cbir_faiss.measures.neighbours import true_distances
from cbir_faiss.measures.relevance import Relevance
from cbir_faiss.pipeline.search import Searcher
from cbir_faiss.storage.changes import GROWTH, amend
from cbir_faiss.storage.files import writing_to
from cbir_faiss.storage.lock import writer_lock
from cbir_faiss.storage.manifest import Cutoff, Manifest, check_still_there
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Codes, Hits, Ids

QUERIES, LABELLED, DEPTH = 500, 50, 200
"""Items that are asked for, and how many hits of each are looked at: with labels, and without."""
OTHERS, POOL = 100, 2000
"""Of so many other items so many are compared with each of those, to see how far apart items are."""


def known(store: Store) -> Cutoff | None:
    """The cut-off that the collection has; one that an earlier version learnt of signs in place of queries is none."""
    return store.manifest.cutoff if store.fitted.asks_as_queries else None


def cutoff_of(store: Store) -> Cutoff:
    """The cut-off that the collection has, or a new one; of one that is many times as large since, too.

    Raises:
        InputError: there are no two items, or the distances of hits and of others cannot be told apart.
        Unsupported: its items cannot be asked for as queries are.
    """
    there = known(store)
    return there if there is not None and len(store) <= GROWTH * there.items else learnt(store)


def learnt(store: Store, seed: int = 0) -> Cutoff:
    """A cut-off from hits of items that are drawn: by their labels where most have one, else by the distances alone.

    Raises:
        As ``cutoff_of``.
    """
    ids, rng = store.ids, np.random.default_rng(seed)
    if len(ids) < 2:
        raise InputError(f"{store.folder}: {len(ids)} items, of which none has a neighbour")
    if not store.fitted.asks_as_queries:
        raise Unsupported(
            f"{store.folder}: no cut-off can be learnt, for rescorer '{store.fitted.rescorer.name}' ranks by a query's "
            "floats, and only the signs of the items' are kept; 'float' as the rescorer keeps them"
        )
    drawn = np.sort(rng.choice(ids, min(QUERIES, len(ids)), replace=False))
    hits = Searcher(store.fitted, store).hits_of(drawn, min(DEPTH, len(ids) - 1))
    if not np.isfinite(hits.distances).any():
        raise InputError(f"{store.folder}: a search for its own items finds no others")
    judged = _judged(store, drawn, Hits(hits.ids[:, :LABELLED], hits.distances[:, :LABELLED]))
    found = _by_distances(store, drawn, hits, rng) if judged is None else by_labels(*judged)
    if found is None:
        raise InputError(
            f"{store.folder}: which hits are meant cannot be told, for there is no gap between near and far distances; "
            "labels would tell"
        )
    by: Literal["labels", "distances"] = "distances" if judged is None else "labels"
    return Cutoff(distance=found.distance, error=found.error, by=by, items=len(ids))


def _by_distances(store: Store, drawn: Ids, hits: Hits, rng: np.random.Generator) -> Nearer | None:
    """From the distances of hits and, where there are more items than those, of items drawn at random."""
    others = _others(store, drawn, rng)
    beyond = np.isfinite(others.distances) & (others.ids != drawn[:, None])
    beyond &= others.distances > hits.distances[:, -1:]
    left = len(drawn) * (len(store) - 1 - hits.ids.shape[1])
    near = hits.distances[np.isfinite(hits.distances)]
    return by_distances(near, others.distances[beyond], left / max(1, int(beyond.sum())))


def _others(store: Store, drawn: Ids, rng: np.random.Generator) -> Hits:
    """Items at random for each of ``drawn``, and how far they are, as a search would have it."""
    fitted, some = store.fitted, np.sort(rng.choice(store.ids, min(POOL, len(store)), replace=False))
    codes, rows = store.fetch(drawn, "code"), rng.integers(len(some), size=(len(drawn), OTHERS))
    if fitted.rescorer.candidates:
        queries = fitted.stored_queries(codes, {name: store.fetch(drawn, name) for name in fitted.stored})
        found = Hits(some[rows], np.zeros(rows.shape, np.float32))
        return fitted.rescorer.rescore(queries, found, store.fetch, OTHERS)
    return Hits(some[rows], _apart(store, codes, store.fetch(some, "code"), rows))


def _apart(store: Store, codes: Codes, theirs: Codes, rows: Ids) -> NDArray[Any]:
    """Distances ``(n, m)`` of ``codes`` ``(n, width)`` from the ``rows`` of the others ``(n, m)``, as the index has
    them; infinite where it does not say by what it compares."""
    metric = store.manifest.metric
    if metric != "hamming":
        return np.full(rows.shape, np.inf) if metric is None else true_distances(theirs, codes, rows, metric)
    backend = store.engine or store.segments[0].backend
    asked, stored = backend.hamming_codes(codes), backend.hamming_codes(theirs)
    if asked is None or stored is None:
        return np.full(rows.shape, np.inf)
    return np.asarray(np.bitwise_count(asked[:, None] ^ stored[rows]).sum(axis=2, dtype=np.int64))


def _judged(store: Store, queries: Ids, hits: Hits) -> tuple[NDArray[Any], NDArray[np.bool_]] | None:
    """Distances of hits, and whether they are meant, where query and hit have a label; None where few items have one,
    or all have the same."""
    ids = np.unique(np.concatenate([queries, hits.ids[hits.ids >= 0]]))
    labels = [_labels(document) for document in store.documents(ids)]
    if sum(map(bool, labels)) < len(labels) / 2 or len(set(filter(None, labels))) < 2:
        return None
    asked = np.searchsorted(ids, queries)
    relevance = Relevance.from_labels(labels, [labels[row] for row in asked])
    rows = np.where(hits.ids < 0, -1, np.searchsorted(ids, np.maximum(hits.ids, 0)))
    labelled = np.array([bool(one) for one in labels])
    judged = np.isfinite(hits.distances) & (rows >= 0) & labelled[rows] & labelled[asked][:, None]
    if relevance is None or not judged.any():
        return None
    return hits.distances[judged], relevance.of(rows)[judged]


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
