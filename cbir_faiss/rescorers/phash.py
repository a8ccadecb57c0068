"""Ties in a code ordered by a perceptual hash (Zeng, Hu and Xiao, "Deep hash for latent image retrieval", 2019)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cbir_faiss import base
from cbir_faiss.base.checks import check_codes
from cbir_faiss.rescorers._rerank import Candidates, rerank
from cbir_faiss.types import Columns, Floats, Hits

_WHO = "rescorer 'phash'"
_HASH_BITS = 64
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # multiples of it, modulo 2**64, spread evenly (Knuth, TAOCP 3, 6.4)


class PHashRescorer(base.Rescorer):
    """Orders items by the Hamming distance h of their codes, and those that tie by the distance v of their 64-bit
    perceptual hashes: column ``phash``, which extractor ``joined`` puts beside another's. What still ties comes in
    a fixed order that is not that of the ids, since in many data sets those are sorted by class.

    ``formula: strict`` is h + v / 65: no difference of hashes outweighs a bit of the code. ``printed`` is equation 3 of
    the paper. With codes of n bits and s the share of agreeing bits it gives s(code) + s(hash) / n where the codes
    differ, and (n - 1) / n + s(hash) / n where they are equal: 1 - (max(h, 1) - s(hash)) / n for both. So n does not
    decide the order, and the distance is max(h, 1) - s(hash). Items of an equal code mix with those one bit away.

    ``candidates`` is the least number of them: every hit that ties with the last is one too (and, for the printed
    formula, every hit one bit beyond).
    """

    name: ClassVar[str] = "phash"
    needs_items: ClassVar[tuple[str, ...]] = ("code", "phash")
    needs_queries: ClassVar[tuple[str, ...]] = ("code", "phash")

    class Options(base.Options):
        candidates: Candidates = 100
        formula: Literal["strict", "printed"] = "strict"

    options: Options

    @property
    def reach(self) -> float:
        # By the printed formula an item one bit beyond the cut can be as near as one inside it, or nearer.
        return 0.0 if self.options.formula == "strict" else 1.0

    def _fit(self, columns: Columns, labels: NDArray[Any] | None) -> None:
        _checked(columns["phash"])

    def _pack(self, columns: Columns) -> dict[str, NDArray[Any]]:
        return {"phash": _checked(columns["phash"])}

    def _rescore(self, queries: Columns, hits: Hits, fetch: base.Fetch) -> Hits:
        hashes, codes = _checked(queries["phash"]), queries["code"]
        codes = check_codes(codes, f"{_WHO}: 'code'", 8 * codes.shape[1])
        # Equals keep this order: the engine's must decide nothing, and that of the ids may be that of the classes.
        fixed = np.argsort(hits.ids.astype(np.uint64) * _GOLDEN, axis=1)
        return rerank(
            np.concatenate([hashes, codes], axis=1),
            Hits(np.take_along_axis(hits.ids, fixed, axis=1), np.take_along_axis(hits.distances, fixed, axis=1)),
            lambda ids: np.concatenate([fetch(ids, "phash"), fetch(ids, "code")], axis=1),
            self._distances,
        )

    def _distances(self, queries: NDArray[Any], items: NDArray[Any]) -> Floats:
        """float32 ``(n, m)`` of rows of hash and code, packed, side by side."""
        width = _HASH_BITS // 8
        visual = _hamming(queries[:, :width], items[:, :width])
        deep = _hamming(queries[:, width:], items[:, width:])
        if self.options.formula == "strict":
            return deep + visual / np.float32(_HASH_BITS + 1)
        distances: Floats = np.maximum(deep, 1) - 1 + visual / np.float32(_HASH_BITS)
        return distances


def _hamming(queries: NDArray[np.uint8], items: NDArray[np.uint8]) -> Floats:
    distances: Floats = np.bitwise_count(_words(queries)[:, None] ^ _words(items)[None]).sum(axis=2, dtype=np.float32)
    return distances


def _words(codes: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Packed codes ``(n, bytes)`` filled up with zeros to words ``(n, ceil(bytes / 8))``."""
    n, width = codes.shape
    filled = np.zeros((n, -(-width // 8) * 8), np.uint8)
    filled[:, :width] = codes
    return filled.view(np.uint64)


def _checked(hashes: NDArray[Any]) -> NDArray[np.uint8]:
    """Packed uint8 ``(n, 8)``; InputError or DimensionMismatch where they are anything else."""
    return check_codes(hashes, f"{_WHO}: 'phash'", _HASH_BITS)
