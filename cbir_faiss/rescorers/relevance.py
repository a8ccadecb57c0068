"""Fused similarity of Varga and Szirányi, "Fast content-based image retrieval using CNN and hash function" (2016)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss import base
from cbir_faiss.base.checks import check_codes, check_floats
from cbir_faiss.errors import InputError
from cbir_faiss.rescorers._rerank import Candidates, rerank
from cbir_faiss.types import MISSING_ID, Columns, Floats, Hits

_WHO = "rescorer 'relevance'"
_SUM_TOLERANCE = 0.01  # probabilities may have been kept in half precision


class RelevanceRescorer(base.Rescorer):
    """Distance 1 - R(a,b)·(1 - d) of query a and item b; what has R(a,b) <= ``t`` is dropped.

    R is the relevance of two images by the classes m that they may belong to, from column ``probs``: P(m|x).
    d = sqrt(hamming / bits) is the Euclidean distance of their codes as a share of the largest there can be.

    ``priors: none`` is R(a,b) = Σₘ P(m|a)·P(m|b), the chance that both images are of one class. It lies in 0…1, which
    is what the paper's best threshold, 0.2, asks for. The paper prints Σₘ P(a|m)·P(b|m)·P(m), but its softmax gives
    P(m|x): by Bayes' rule, all images being equally likely, P(x|m) is P(m|x) / P(m) up to a constant, and the printed
    sum Σₘ P(m|a)·P(m|b) / P(m). ``priors: estimated`` takes that sum, divided by the number of classes, with P(m) the
    database's mean of P(m|x) (and one item more, which is of each class alike, so that no prior is 0). It is the same
    as without priors where all classes are equally common. Pictures of a rare class count for more: there R may exceed
    1, and the distance be below 0.

    ``candidates`` must be ``all`` for the paper's ranking, which looks at every image.
    """

    name: ClassVar[str] = "relevance"
    needs_items: ClassVar[tuple[str, ...]] = ("probs", "code")
    # The projection's width is the code's true length: a packed code may end in padding.
    needs_queries: ClassVar[tuple[str, ...]] = ("probs", "code", "projection")

    class Options(base.Options):
        candidates: Candidates = 100
        t: float = Field(0.2, ge=0, le=1)
        priors: Literal["none", "estimated"] = "none"

    def _fit(self, columns: Columns, labels: NDArray[Any] | None) -> None:
        probs = _checked(columns["probs"], "items")
        n, classes = probs.shape
        weights = np.ones(classes, np.float32)
        if self.options.priors == "estimated":
            priors = (probs.sum(axis=0, dtype=np.float64) + 1 / classes) / (n + 1)
            weights = (1 / (classes * priors)).astype(np.float32)
        self.state = {"weights": weights}

    def _pack(self, columns: Columns) -> dict[str, NDArray[Any]]:
        return {"probs": _checked(columns["probs"], "items", self._classes)}

    def _rescore(self, queries: Columns, hits: Hits, fetch: base.Fetch) -> Hits:
        bits, classes = queries["projection"].shape[1], self._classes
        weighted = _checked(queries["probs"], "queries", classes) * self.state["weights"]

        def score(asked: Floats, stored: NDArray[Any]) -> Floats:
            """float32 ``(n, m)`` of rows of probabilities and signs side by side; inf where an item is dropped."""
            relevance = asked[:, :classes] @ stored[:, :classes].T
            hamming = (bits - asked[:, classes:] @ stored[:, classes:].T) / 2
            distances: Floats = 1 - relevance * (1 - np.sqrt(hamming / bits))
            distances[relevance <= np.float32(self.options.t)] = np.inf
            return distances

        asked = np.concatenate([weighted, _signs(queries["code"], bits)], axis=1)
        found = rerank(
            asked,
            hits,
            lambda ids: np.concatenate([fetch(ids, "probs"), _signs(fetch(ids, "code"), bits)], axis=1),
            score,
        )
        return Hits(np.where(np.isinf(found.distances), MISSING_ID, found.ids), found.distances)

    @property
    def _classes(self) -> int:
        if "weights" not in self.state:
            raise InputError(f"{_WHO} is not fitted: call fit(columns) with the database's columns first")
        return len(self.state["weights"])


def _checked(probs: NDArray[Any], side: str, classes: int | None = None) -> Floats:
    """``probs`` as float32 ``(n, classes)``; InputError where a row is no distribution."""
    checked = check_floats(probs, f"{_WHO}: 'probs' of {side}", classes)
    sums = checked.sum(axis=1)
    wrong = (np.abs(sums - 1) > _SUM_TOLERANCE) | (checked < 0).any(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"{_WHO}: row {row} of 'probs' of {side} is not a distribution over classes: it sums to {sums[row]:g}, "
            f"its least value is {checked[row].min(initial=np.inf):g}"
        )
    return checked


def _signs(codes: NDArray[Any], bits: int) -> Floats:
    """float32 ``(n, bits)`` of -1 and 1, padding left out: the product of two is bits - 2·hamming."""
    codes = check_codes(codes, _WHO, 8 * -(-bits // 8))
    signs: Floats = np.unpackbits(codes, axis=1, count=bits).astype(np.float32)
    signs *= 2
    signs -= 1
    return signs
