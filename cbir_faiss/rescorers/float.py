"""Candidates of a coarse search ranked again by their stored vectors."""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cbir_faiss import base
from cbir_faiss.base.checks import check_floats
from cbir_faiss.errors import InputError
from cbir_faiss.rescorers._rerank import Candidates, in_order, rerank
from cbir_faiss.rescorers._scan import can_scan, products, squared_distances
from cbir_faiss.types import Columns, Floats, Hits

_STEPS = 255
_FEW = 0.01  # of the items that are added at once may be clipped without a word
_log = logging.getLogger(__name__)


class FloatRescorer(base.Rescorer):
    """Exact distances to the first candidates.

    ``cosine`` is 1 - cos of the vectors less the database's mean (``center: false`` leaves the mean in); a vector
    without direction is at 1. ``l2`` (squared) does not depend on the mean and ``ip`` is taken as it is.

    ``store`` says what is kept an item: float32, float16, or int8: one byte a dimension, the range of each dimension
    in what it learned from (at most 100,000 items) cut into 255 steps. A value is off by half a step at most; one
    beyond that range is clipped to it, and where that befalls many items, the log says so.
    """

    name: ClassVar[str] = "float"
    needs_items: ClassVar[tuple[str, ...]] = ("embedding",)
    needs_queries: ClassVar[tuple[str, ...]] = ("embedding",)

    class Options(base.Options):
        candidates: Candidates = 100
        metric: Literal["cosine", "l2", "ip"] = "cosine"
        center: bool = True
        store: Literal["float32", "float16", "int8"] = "float32"

    _warned = False

    def _fit(self, columns: Columns, labels: NDArray[Any] | None) -> None:
        x = check_floats(columns["embedding"], "rescorer 'float'")
        if len(x) == 0:
            raise InputError("rescorer 'float' learns the database's mean, and there are no vectors")
        mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.state = {"mean": mean if self.options.metric != "ip" and self.options.center else np.zeros_like(mean)}
        if self.options.store == "int8":
            self.state |= _steps(x)

    def _pack(self, columns: Columns) -> dict[str, NDArray[Any]]:
        x = self._checked(columns["embedding"])
        if self.options.store == "float16":
            largest = float(np.abs(x).max(initial=0))
            if largest > float(np.finfo(np.float16).max):
                raise InputError(f"rescorer 'float': {largest:g} does not fit in float16; use store: float32 or int8")
        if self.options.store != "int8":
            return {"embedding": x.astype(self.options.store, copy=False)}
        scaled = (x - self.state["low"]) / self.state["step"]
        self._warn_of_clipped(scaled)
        return {"embedding": np.rint(np.clip(scaled, 0, 255, out=scaled), out=scaled).astype(np.uint8)}

    def _warn_of_clipped(self, scaled: Floats) -> None:
        if self._warned or scaled.size == 0 or (scaled.min() > -1 and scaled.max() < _STEPS + 1):
            return
        outside = np.count_nonzero(((scaled <= -1) | (scaled >= _STEPS + 1)).any(axis=1))
        if outside > _FEW * len(scaled):
            self._warned = True
            _log.warning(
                "rescorer 'float', store: int8: %d of %d items have values beyond the range that was learned, and are "
                "clipped to it; build the collection anew, or use store: float16",
                outside,
                len(scaled),
            )

    def _rescore(self, queries: Columns, hits: Hits, fetch: base.Fetch) -> Hits:
        x = self._checked(queries["embedding"])
        places = base.located(fetch, hits.ids, "embedding") if self.options.store == "float32" else None
        if places is not None and can_scan(places):
            return in_order(hits.ids, self._scanned(x, places))
        return rerank(x - self.state["mean"], hits, lambda ids: fetch(ids, "embedding"), self._distances)

    def _scanned(self, queries: Floats, places: base.Places) -> Floats:
        """float32 ``(n, c)`` of queries ``(n, dim)`` and candidates, read where they lie; inf for what is nowhere."""
        if self.options.metric == "ip":
            return -products(queries, places)
        apart = squared_distances(queries, places)
        if self.options.metric == "l2":
            return apart
        mean = self.state["mean"][None]
        own = _squares(queries - mean)[:, None]
        others = squared_distances(mean if len(queries) == 1 else np.repeat(mean, len(queries), 0), places)
        missing = np.isinf(apart) if apart.size and np.isinf(apart.max()) else None
        if missing is not None:
            apart[missing] = others[missing] = 0
        # By the law of cosines |q - x|² = (|q| - |x|)² + 2|q||x|(1 - cos): no large numbers that nearly cancel.
        lengths: Floats = np.sqrt(own * others)
        without = None if lengths.all() else lengths == 0
        if without is not None:
            lengths[without] = 1
        distances: Floats = (apart - np.square(np.sqrt(own) - np.sqrt(others))) / (2 * lengths)
        np.maximum(distances, 0, out=distances)
        if without is not None:
            distances[without] = 1
        if missing is not None:
            distances[missing] = np.inf
        return distances

    def _distances(self, queries: Floats, stored: NDArray[Any]) -> Floats:
        """float32 ``(n, m)`` of centred queries ``(n, dim)`` and rows ``(m, dim)`` as they are stored."""
        items = self._centred(stored)
        products: Floats = queries @ items.T
        if self.options.metric == "ip":
            return -products
        own, others = _squares(queries)[:, None], _squares(items)
        if self.options.metric == "l2":
            distances: Floats = own - 2 * products + others
        else:
            lengths: Floats = np.sqrt(own) * np.sqrt(others)
            if not lengths.all():
                lengths[lengths == 0] = np.inf
            distances = np.float32(1) - products / lengths
        np.maximum(distances, 0, out=distances)
        return distances

    def _unpack(self, columns: Columns) -> dict[str, NDArray[Any]]:
        return {**columns, "embedding": self._centred(columns["embedding"]) + self.state["mean"]}

    def _centred(self, stored: NDArray[Any]) -> Floats:
        """Centred float32 ``(m, dim)``."""
        mean = self.state["mean"]
        if self.options.store != "int8":
            items: Floats = np.subtract(stored, mean, dtype=np.float32)
        else:
            items = np.multiply(stored, self.state["step"], dtype=np.float32)
            items += self.state["low"] - mean
        return items

    def _checked(self, x: NDArray[Any]) -> Floats:
        if "mean" not in self.state:
            raise InputError("rescorer 'float' is not fitted: call fit(columns) with the database's columns first")
        return check_floats(x, "rescorer 'float'", len(self.state["mean"]))


def _steps(x: Floats) -> dict[str, NDArray[Any]]:
    """Where the steps of each dimension of ``(n, dim)`` begin, and how long they are."""
    low, high = x.min(axis=0), x.max(axis=0)
    varies = high > low
    # A dimension that has not varied yet may still do so, and then probably like the others.
    usual = np.median((high - low)[varies]) if varies.any() else np.float32(1)
    step = np.where(varies, high - low, usual).astype(np.float32) / np.float32(_STEPS)
    return {"low": np.where(varies, low, low - step * (_STEPS // 2)).astype(np.float32), "step": step}


def _squares(x: Floats) -> Floats:
    squares: Floats = np.einsum("ij,ij->i", x, x)
    return squares
