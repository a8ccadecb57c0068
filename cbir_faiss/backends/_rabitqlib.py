"""What the backends on rabitqlib share, and its indexes called as FAISS's are."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss import base
from cbir_faiss.backends.faiss._backend import FaissBackend, Raw
from cbir_faiss.base import Capabilities
from cbir_faiss.base.options import need
from cbir_faiss.types import Codes, Floats, Kind, Metric

_PADDED = 64  # the library fills dimensions up to a multiple of this, but refuses fewer
_NONE = 2**32 - 2  # the row of a hit that is not there, which the library numbers 2**32 - 1
_ROUNDS = 10  # of k-means, as FAISS's own lists take; with 25 they find no more
_FACTORS = (12, 8)  # bytes of an item's factors: of the first bit, and of the others


class CodeOptions(base.Options):
    """Options of an index of codes by RaBitQ."""

    metric: Literal["l2", "ip", "cosine"] = Field("l2", description="squared L2, inner product, or cosine distance")
    bits: int = Field(4, ge=1, le=9, description="bits a dimension")


class OnRaBitQLib(FaissBackend):
    """An index of rabitqlib (Gao et al. 2025), which rotates vectors itself; FAISS learns its centroids.

    It keeps no vectors. What is deleted keeps its place until it is copied into a new index; the library's own removal
    frees none either.
    """

    accepts: ClassVar[frozenset[Kind]] = frozenset({"float"})
    metrics: ClassVar[tuple[Metric, ...]] = ("l2", "ip", "cosine")
    capabilities: ClassVar[Capabilities] = Capabilities(
        delete="emulated", filter="emulated", range="emulated", vectors="refused"
    )
    needs_training: ClassVar[bool] = True
    index_file: ClassVar[str] = "index.rabitq"
    takes: ClassVar[type[Stored]]
    """What calls the library's index of this backend."""

    def _setup(self) -> None:
        super()._setup()
        self._library = need("rabitqlib", "rabitq")

    @abstractmethod
    def _centroids(self, n: int) -> int:
        """How many to learn from ``n`` training vectors."""

    @abstractmethod
    def _empty(self, dim: int, centroids: int, metric: str) -> Any:
        """The library's index, which has room for one item at least."""

    def _new_index(self, sample: Codes | None) -> Stored:
        assert sample is not None
        count = self._centroids(len(sample))
        kmeans = self._faiss.Kmeans(
            self.dim, count, niter=_ROUNDS, min_points_per_centroid=1, spherical=self.metric != "l2"
        )
        kmeans.train(sample)
        centroids = _filled_up(kmeans.centroids)
        made = self._empty(centroids.shape[1], count, "l2" if self.metric == "l2" else "ip")
        # The library makes no index without a vector; with one that is removed again, it has drawn its rotation, and
        # every index that begins with what was learnt here gives a vector the same code.
        made.build(centroids[:1], centroids, np.zeros(1, np.uint32))
        made.remove(np.zeros(1, np.uint32))
        return self.takes(self._faiss, made, centroids)

    def _parameters(self, options: Any, selector: Any) -> Any:
        return options

    @property
    def code_bits(self) -> int | None:
        if self.dim is None:
            return None
        bits, padded = self.options.bits, -(-self.dim // _PADDED) * _PADDED
        return int(bits * padded + 8 * sum(_FACTORS[: min(bits, 2)]))

    def _write_index(self, path: str) -> None:
        self._index.stored.save(path)

    @abstractmethod
    def _loaded(self, path: str) -> Any:
        """The library's index in that file."""

    def _read_index(self, path: str, kind: Kind, mmap: bool) -> Any:
        return self.takes(self._faiss, self._loaded(path))


class Stored:
    """The library's index, called as FAISS's are: rows 0…n-1, searched with our search options.

    In the library's own count, a vector that was removed is before them.
    """

    def __init__(self, faiss: Any, stored: Any, centroids: Floats | None = None) -> None:
        self._faiss, self.stored, self._known = faiss, stored, centroids
        # Asked once: while the library changes something, it refuses even to say how many there are.
        self.centroids: int = stored.num_clusters
        self._of_products: bool = stored.metric == "ip"

    def add(self, vectors: Floats) -> None:
        vectors = _filled_up(vectors)
        self.stored.add(vectors, self._nearest(vectors), num_threads=self._faiss.omp_get_max_threads())

    def _nearest(self, vectors: Floats) -> NDArray[np.uint32] | None:
        """The nearest centroid of each, which FAISS finds sooner; None where only the library knows them."""
        if self._known is None:
            return None
        flat = self._faiss.IndexFlatIP if self._of_products else self._faiss.IndexFlatL2
        index = flat(self._known.shape[1])
        index.add(self._known)
        nearest: NDArray[np.uint32] = index.search(vectors, 1)[1][:, 0].astype(np.uint32)
        return nearest

    def _wide(self, k: int, options: Any) -> int:
        """How wide a search for k is, as the library counts it."""
        raise NotImplementedError

    def search(self, vectors: Floats, k: int, params: Any) -> Raw:
        threads = 1 if len(vectors) == 1 else self._faiss.omp_get_max_threads()
        found, distances = self.stored.search(_filled_up(vectors), k, self._wide(k, params), num_threads=threads)
        rows = found.astype(np.int64)
        rows -= 1
        if len(rows) and (rows.item(-1) if len(rows) == 1 else rows[:, -1].max()) == _NONE:  # it stands at the end
            rows[rows == _NONE] = -1
        # For inner products the library gives 1 - product, and FAISS the product.
        return (1 - distances if self._of_products else distances), rows


def _filled_up(vectors: Floats) -> Floats:
    """``vectors`` with zeros behind them where they are too short for the library; that changes no distance."""
    if vectors.shape[1] >= _PADDED:
        return vectors
    wide = np.zeros((len(vectors), _PADDED), np.float32)
    wide[:, : vectors.shape[1]] = vectors
    return wide
