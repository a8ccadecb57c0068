"""rabitqlib, by the authors of RaBitQ: inverted lists of codes of 1 to 9 bits a dimension, in memory."""

from __future__ import annotations

from typing import Any, ClassVar

from cbir_faiss.backends._rabitqlib import CodeOptions, OnRaBitQLib, Stored
from cbir_faiss.backends.faiss._backend import widened
from cbir_faiss.backends.faiss._lists import Listed, ListOptions, ProbeOptions, lists_for


class _Lists(Stored):
    def _wide(self, k: int, options: Any) -> int:
        return int(options.nprobe)


class RaBitQ(Listed, OnRaBitQLib):
    """IvfIndex of rabitqlib. It draws another rotation whenever it learns: two indexes of the same vectors differ a
    little."""

    name: ClassVar[str] = "rabitq"
    takes: ClassVar[type[Stored]] = _Lists
    SearchOptions = ProbeOptions

    class Options(ListOptions, CodeOptions):
        pass

    def _centroids(self, n: int) -> int:
        return lists_for(self.options.nlist, n, self.name)

    def _empty(self, dim: int, centroids: int, metric: str) -> Any:
        return self._library.IvfIndex(dim, 1, centroids, self.options.bits, metric)

    def _loaded(self, path: str) -> Any:
        return self._library.IvfIndex.load(path)

    def _wider(self, options: Any, share: float) -> Any:
        return options.model_copy(update={"nprobe": widened(options.nprobe, share, self._index.centroids)})

    def _scanned(self, queries: int, options: Any) -> float:
        looked_into: float = 1.0 if self._index is None else min(1.0, options.nprobe / self._index.centroids)
        return super()._scanned(queries, options) * looked_into
