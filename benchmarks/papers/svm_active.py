"""Relevance feedback by support vector machines with active learning (Tong and Chang, ACM Multimedia 2001)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.options import need
from cbir_faiss.types import Floats

C = 10.0


def active_svm(
    items: Floats, query: Floats, relevant: NDArray[np.bool_], *, rounds: int, shown: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """How relevant each of ``items (n, dim)`` is to ``query (dim,)``, ``(n,)``, and the rows that a user was asked of.

    The former is the signed distance from the boundary of an SVM with a Gaussian kernel. Each round a user says of
    ``shown`` items whether they are relevant; here ``relevant (n,)`` answers. In the first they are random, then those
    nearest to the boundary by what was said so far; that the query itself is relevant is known. As long as all answers
    are yes, more random items are shown. Where that is so to the end there is no boundary, and nearness to the query
    is returned.
    """
    order = np.random.default_rng(seed).permutation(len(items))
    asked = order[:shown]
    while relevant[asked].all() and len(asked) < len(items):
        asked = order[: len(asked) + shown]
    if relevant[asked].all():
        nearness: NDArray[np.float64] = -((items - query) ** 2).sum(axis=1, dtype=np.float64)
        return nearness, asked
    margins = _margins(items, query, relevant, asked)
    for _ in range(rounds - 1):
        unsure = np.argsort(np.abs(margins), kind="stable")
        asked = np.concatenate([asked, unsure[~np.isin(unsure, asked)][:shown]])
        margins = _margins(items, query, relevant, asked)
    return margins, asked


def _margins(
    items: Floats, query: Floats, relevant: NDArray[np.bool_], asked: NDArray[np.int64]
) -> NDArray[np.float64]:
    known = np.vstack([query[None], items[asked]])
    # The kernel is computed here because a matrix product is several times as fast as libsvm's own loop.
    gamma = 1 / (items.shape[1] * float(items.var()) or 1.0)
    svm = need("sklearn.svm", "sklearn").SVC(C=C, kernel="precomputed")
    svm.fit(_gaussian(known, known, gamma), np.append(True, relevant[asked]))
    margins: NDArray[np.float64] = svm.decision_function(_gaussian(items, known, gamma))
    return margins


def _gaussian(a: Floats, b: Floats, gamma: float) -> Floats:
    """exp(-gamma |x - y|^2) of all pairs ``(len(a), len(b))``."""
    lengths = [np.einsum("ij,ij->i", x, x) for x in (a, b)]
    kernel: Floats = np.exp(-gamma * np.maximum(lengths[0][:, None] - 2 * (a @ b.T) + lengths[1], 0))
    return kernel
