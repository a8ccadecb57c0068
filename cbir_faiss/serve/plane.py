"""A collection as points in a plane: along the two directions in which its items differ most, or by UMAP."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss._lib.sampling import sample_rows
from cbir_faiss.base.filters import In
from cbir_faiss.collection.stages import float_column
from cbir_faiss.errors import Unsupported
from cbir_faiss.measures.neighbours import exact_neighbours
from cbir_faiss.storage.facets import facets
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Floats, Ids

_LEARNT_FROM = 5_000
_AT_ONCE = 8_192
_NUMBERS = 1 << 25  # of the rows that are held at once, however wide they are
_NEIGHBOURHOODS = 100  # rows from which UMAP has something to go by
_BESIDE = 15  # nearest ones that say where a row comes to lie: as many as UMAP takes
_LABELS = 10  # more colours cannot be told apart


def plane(store: Store, points: int) -> dict[str, Any]:
    """Ids of at most ``points`` live items, evenly chosen, with x and y between -1 and 1; see ``models.Map``."""
    live = store.live_ids
    ids = live if len(live) <= points else live[np.linspace(0, len(live) - 1, points).astype(np.int64)]
    known = {"ids": ids.tolist(), "total": len(live), **_labels(store, ids)}
    if len(ids) < 2:
        return {**known, "how": "axes", "x": [0.0] * len(ids), "y": [0.0] * len(ids)}
    held = max(2, _NUMBERS // _rows(store, ids[:1]).shape[1])
    how, place = _learnt(_rows(store, ids[sample_rows(len(ids), min(_LEARNT_FROM, held))]))
    step = min(_AT_ONCE, held)
    xy = np.concatenate([place(_rows(store, ids[start : start + step])) for start in range(0, len(ids), step)])
    xy /= np.maximum(np.abs(xy).max(axis=0), np.float32(1e-30))
    x, y = np.round(xy.astype(np.float64), 4).T
    return {**known, "how": how, "x": x.tolist(), "y": y.tolist()}


def _learnt(sample: Floats) -> tuple[Literal["axes", "umap"], Callable[[Floats], Floats]]:
    """How rows ``(n, d)`` come to places float32 ``(n, 2)``, learnt from some of them: by UMAP where that is installed
    (and there are enough to have neighbourhoods), else along the two directions in which they differ most."""
    if len(sample) >= _NEIGHBOURHOODS:
        with suppress(ImportError):
            umap = importlib.import_module("umap")
            places = umap.UMAP(n_components=2, random_state=0, n_jobs=1).fit(sample).embedding_
            return "umap", partial(_beside, sample, places - (places.max(axis=0) + places.min(axis=0)) / 2)
    mean = sample.mean(axis=0)
    axes = _principal((sample - mean).astype(np.float64))
    return "axes", lambda rows: (rows - mean) @ axes


def _principal(centred: NDArray[np.float64]) -> Floats:
    """The two directions ``(d, 2)`` in which rows ``(m, d)`` differ most; zeros where there are fewer.

    Of the products of the rows, or of the columns, whichever are fewer: wide rows have a covariance of gigabytes.
    """
    wide = centred.shape[1] > len(centred)
    with threads.phase("fit"):
        _, vectors = np.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
        axes = vectors[:, ::-1][:, :2]
        if wide:
            axes = centred.T @ axes
            axes /= np.maximum(np.linalg.norm(axes, axis=0), 1e-30)
    two = np.zeros((centred.shape[1], 2), np.float32)
    two[:, : axes.shape[1]] = axes
    return two


def _beside(sample: Floats, places: Floats, rows: Floats) -> Floats:
    """Each row between the places ``(m, 2)`` of its nearest in the sample ``(m, d)``, by the inverse of the distance.

    UMAP's own ``transform`` begins in the same way; its further steps take minutes where there are many rows.
    """
    nearest, distances = exact_neighbours(sample, rows, min(_BESIDE, len(sample)), "l2")
    weights = 1 / np.maximum(distances, 1e-12)  # one of the sample stays at its own place
    weights /= weights.sum(axis=1, keepdims=True)
    return np.asarray((weights[:, :, None] * places[nearest]).sum(axis=1), np.float32)


def _labels(store: Store, ids: Ids) -> dict[str, Any]:
    """The most frequent labels, and of each item the number of its own among them; -1: it has none of these."""
    names = [value for value, _ in facets(store).get("label", [])[:_LABELS]]
    numbers = np.full(len(ids), -1)
    for number, name in enumerate(names):
        numbers[np.isin(ids, store.select(In("label", (name,))))] = number
    return {"labels": names, "label": numbers.tolist()}


def _rows(store: Store, ids: NDArray[np.int64]) -> Floats:
    """float32 ``(n, d)``: what is kept of the items' floats, else the bits of their codes."""
    try:
        column = float_column(store)
    except Unsupported:
        return np.unpackbits(store.fetch(ids, "code"), axis=1).astype(np.float32)
    stored = store.fetch(ids, column)
    rows = stored if column == "code" else store.fitted.rescorer.unpack({column: stored})[column]
    return np.asarray(rows, np.float32)
