"""What backends with inverted lists share: how many lists, and how many of them a search looks into."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from cbir_faiss import base
from cbir_faiss._lib.sampling import TRAINING_ROWS
from cbir_faiss.backends.faiss._any import AnyIndex
from cbir_faiss.base.options import parse_options
from cbir_faiss.errors import InputError

_PER_LIST = 39  # training vectors a list, below which FAISS calls its centroids unreliable


class ListOptions(base.Options):
    """Options of an index with inverted lists."""

    nlist: int | None = Field(None, ge=1, description="inverted lists; None: 4 times the root of the training sample")


class ProbeOptions(base.Options):
    """Search options of an index with inverted lists."""

    nprobe: int = Field(16, ge=1, description="lists that a search looks into: recall against time")


class InvertedLists(AnyIndex):
    """Items are kept in lists around trained centroids. A radius query looks into the default number of lists."""

    @classmethod
    def lists(cls, options: Mapping[str, Any], items: int) -> int:
        return options.get("nlist") or _lists_for(min(items, TRAINING_ROWS))

    @classmethod
    def with_lists(cls, options: Mapping[str, Any], count: int) -> dict[str, Any]:
        return {**options, "nlist": count}

    def _nlist(self, n: int) -> int:
        """Lists for ``n`` training vectors: few enough that each centroid is learned from several.

        Raises:
            InputError: more lists were asked for than there are vectors.
        """
        chosen: int | None = self.options.nlist
        if chosen is None:
            return _lists_for(n)
        if chosen > n:
            raise InputError(f"backend '{self.name}': nlist {chosen} needs at least as many training vectors, got {n}")
        return chosen

    def _scanned(self, queries: int, options: Any) -> float:
        lists: int = max(1, self._leaf.nlist)
        looked_into: float = min(1.0, options.nprobe / lists)
        return super()._scanned(queries, options) * looked_into

    def _adjust(self, leaf: Any) -> None:
        leaf.nprobe = parse_options(ProbeOptions, {}).nprobe  # for radius queries, which take no options


def _lists_for(n: int) -> int:
    return max(1, min(round(4 * math.sqrt(n)), n // _PER_LIST))
