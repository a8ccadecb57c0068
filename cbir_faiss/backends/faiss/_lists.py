"""What backends with inverted lists share: how many lists, and how many of them a search looks into."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from cbir_faiss import base
from cbir_faiss._lib.sampling import TRAINING_ROWS
from cbir_faiss.backends.faiss._any import AnyIndex
from cbir_faiss.base import Capabilities
from cbir_faiss.base.options import parse_options
from cbir_faiss.errors import InputError
from cbir_faiss.types import Kind, Metric

_PER_LIST = 39  # training vectors a list, below which FAISS calls its centroids unreliable
_BY_GRAPH = 2048  # lists from which on a graph of their centroids finds the nearest sooner than a look at each
_NLIST = "inverted lists; None: 4 times the root of the training sample"


class ListOptions(base.Options):
    """Options of an index with inverted lists."""

    nlist: int | None = Field(None, ge=1, description=_NLIST)


class ProbeOptions(base.Options):
    """Search options of an index with inverted lists."""

    nprobe: int = Field(16, ge=1, description="lists that a search looks into: recall against time")


class Listed(base.Backend):
    """A backend with inverted lists, as many as the option ``nlist`` says."""

    @classmethod
    def lists(cls, options: Mapping[str, Any], items: int) -> int:
        chosen: int | None = options.get("nlist")
        return lists_for(None, min(items, TRAINING_ROWS), cls.name) if chosen is None else chosen

    @classmethod
    def with_lists(cls, options: Mapping[str, Any], count: int) -> dict[str, Any]:
        return {**options, "nlist": count}


class InvertedLists(Listed, AnyIndex):
    """Items are kept in lists around trained centroids. A radius query looks into the default number of lists."""

    def _nlist(self, n: int) -> int:
        return lists_for(self.options.nlist, n, self.name)

    def _lists(self, n: int) -> str:
        """The lists in FAISS's factory string, for ``n`` training vectors of floats."""
        nlist = self._nlist(n)
        return f"IVF{nlist}_HNSW32" if nlist >= _BY_GRAPH else f"IVF{nlist}"

    def _scanned(self, queries: int, options: Any) -> float:
        lists: int = max(1, getattr(self._leaf, "nlist", 1))
        looked_into: float = min(1.0, options.nprobe / lists)
        return super()._scanned(queries, options) * looked_into

    def _adjust(self, leaf: Any) -> None:
        if hasattr(leaf, "nprobe"):
            leaf.nprobe = parse_options(ProbeOptions, {}).nprobe  # for radius queries, which take no options


class Quantized(InvertedLists):
    """Codes of a quantizer that needs a random rotation, in inverted lists or, with ``nlist: 0``, in one row."""

    accepts: ClassVar[frozenset[Kind]] = frozenset({"float"})
    metrics: ClassVar[tuple[Metric, ...]] = ("l2", "ip", "cosine")
    capabilities: ClassVar[Capabilities] = Capabilities(delete="emulated", range="emulated", vectors="emulated")
    needs_training: ClassVar[bool] = True
    SearchOptions: ClassVar[type[base.Options]] = ProbeOptions

    class Options(ListOptions):
        nlist: int | None = Field(None, ge=0, description=f"{_NLIST}; 0: none, every code is compared")
        metric: Literal["l2", "ip", "cosine"] = Field("l2", description="squared L2, inner product, or cosine distance")
        rotate: bool = Field(True, description="rotate at random first")

    def _code(self) -> str:
        """The code in FAISS's factory string."""
        raise NotImplementedError

    def _factory(self, n: int) -> str:
        rotation = [f"RR{self.dim}"] if self.options.rotate else []
        lists = [] if self.options.nlist == 0 else [self._lists(n)]
        return ",".join([*rotation, *lists, self._code()])


def lists_for(chosen: int | None, n: int, backend: str) -> int:
    """Lists for ``n`` training vectors: few enough that each centroid is learned from several.

    Raises:
        InputError: more lists were ``chosen`` than there are vectors.
    """
    if chosen is None:
        return max(1, min(round(4 * math.sqrt(n)), n // _PER_LIST))
    if chosen > n:
        raise InputError(f"backend '{backend}': nlist {chosen} needs at least as many training vectors, got {n}")
    return chosen
