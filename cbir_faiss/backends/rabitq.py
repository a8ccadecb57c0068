"""rabitqlib, by the authors of RaBitQ: inverted lists of codes of 1 to 9 bits a dimension, in memory."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss.backends.faiss._backend import FaissBackend, Raw, widened
from cbir_faiss.backends.faiss._lists import Listed, ListOptions, ProbeOptions, lists_for
from cbir_faiss.base import Capabilities
from cbir_faiss.base.options import need
from cbir_faiss.types import Codes, Floats, Kind, Metric

_PADDED = 64  # the library fills dimensions up to a multiple of this, but refuses fewer
_NONE = 2**32 - 2  # the row of a hit that is not there, which the library numbers 2**32 - 1
_ROUNDS = 10  # of k-means, as FAISS's own lists take; with 25 they find no more
_FACTORS = (12, 8)  # bytes of an item's factors: of the first bit, and of the others


class RaBitQ(Listed, FaissBackend):
    """IvfIndex of rabitqlib (Gao et al. 2025), which rotates at random itself; FAISS learns the centroids of the lists.

    It keeps no vectors, and draws another rotation whenever it learns: two indexes of the same vectors differ a little.
    What is deleted keeps its place until it is copied into a new index; the library's own removal frees none either.
    """

    name: ClassVar[str] = "rabitq"
    accepts: ClassVar[frozenset[Kind]] = frozenset({"float"})
    metrics: ClassVar[tuple[Metric, ...]] = ("l2", "ip", "cosine")
    capabilities: ClassVar[Capabilities] = Capabilities(
        delete="emulated", filter="emulated", range="emulated", vectors="refused"
    )
    needs_training: ClassVar[bool] = True
    index_file: ClassVar[str] = "index.rabitq"
    SearchOptions = ProbeOptions

    class Options(ListOptions):
        metric: Literal["l2", "ip", "cosine"] = Field("l2", description="squared L2, inner product, or cosine distance")
        bits: int = Field(4, ge=1, le=9, description="bits a dimension")

    def _setup(self) -> None:
        super()._setup()
        self._library = need("rabitqlib", "rabitq")

    def _new_index(self, sample: Codes | None) -> _Index:
        assert sample is not None
        faiss = self._faiss
        nlist = lists_for(self.options.nlist, len(sample), self.name)
        kmeans = faiss.Kmeans(self.dim, nlist, niter=_ROUNDS, min_points_per_centroid=1, spherical=self.metric != "l2")
        kmeans.train(sample)
        centroids = _widened(kmeans.centroids)
        metric = "l2" if self.metric == "l2" else "ip"
        made = self._library.IvfIndex(centroids.shape[1], 1, nlist, self.options.bits, metric)
        # The library makes no index without a vector; with one that is removed again, it has drawn its rotation, and
        # every index that begins with what was learnt here gives a vector the same code.
        made.build(centroids[:1], centroids, np.zeros(1, np.uint32))
        made.remove(np.zeros(1, np.uint32))
        return _Index(faiss, made, centroids)

    def _parameters(self, options: Any, selector: Any) -> Any:
        return options

    def _wider(self, options: Any, share: float) -> Any:
        return options.model_copy(update={"nprobe": widened(options.nprobe, share, self._index.lists)})

    def _scanned(self, queries: int, options: Any) -> float:
        looked_into: float = 1.0 if self._index is None else min(1.0, options.nprobe / self._index.lists)
        return super()._scanned(queries, options) * looked_into

    @property
    def code_bits(self) -> int | None:
        if self.dim is None:
            return None
        bits, padded = self.options.bits, -(-self.dim // _PADDED) * _PADDED
        return int(bits * padded + 8 * sum(_FACTORS[: min(bits, 2)]))

    def _write_index(self, path: str) -> None:
        self._index.stored.save(path)

    def _read_index(self, path: str, kind: Kind, mmap: bool) -> Any:
        return _Index(self._faiss, self._library.IvfIndex.load(path))


class _Index:
    """The library's index, called as FAISS's are: rows 0…n-1, searched with our search options.

    In the library's own count, a vector that was removed is before them.
    """

    def __init__(self, faiss: Any, stored: Any, centroids: Floats | None = None) -> None:
        self._faiss, self.stored, self._centroids = faiss, stored, centroids
        # Asked once: while the library changes something, it refuses even to say how many lists it has.
        self.lists: int = stored.num_clusters
        self._of_products: bool = stored.metric == "ip"

    def add(self, vectors: Floats) -> None:
        vectors = _widened(vectors)
        self.stored.add(vectors, self._lists_of(vectors), num_threads=self._faiss.omp_get_max_threads())

    def _lists_of(self, vectors: Floats) -> NDArray[np.uint32] | None:
        """The nearest list of each, which FAISS finds sooner; None where only the library knows the centroids."""
        if self._centroids is None:
            return None
        flat = self._faiss.IndexFlatIP if self._of_products else self._faiss.IndexFlatL2
        nearest = flat(self._centroids.shape[1])
        nearest.add(self._centroids)
        lists: NDArray[np.uint32] = nearest.search(vectors, 1)[1][:, 0].astype(np.uint32)
        return lists

    def search(self, vectors: Floats, k: int, params: Any) -> Raw:
        threads = 1 if len(vectors) == 1 else self._faiss.omp_get_max_threads()
        found, distances = self.stored.search(_widened(vectors), k, params.nprobe, num_threads=threads)
        rows = found.astype(np.int64)
        rows -= 1
        if len(rows) and (rows.item(-1) if len(rows) == 1 else rows[:, -1].max()) == _NONE:  # it stands at the end
            rows[rows == _NONE] = -1
        # For inner products the library gives 1 - product, and FAISS the product.
        return (1 - distances if self._of_products else distances), rows


def _widened(vectors: Floats) -> Floats:
    """``vectors`` with zeros behind them where they are too short for the library; that changes no distance."""
    if vectors.shape[1] >= _PADDED:
        return vectors
    wide = np.zeros((len(vectors), _PADDED), np.float32)
    wide[:, : vectors.shape[1]] = vectors
    return wide
