"""How good a network is on pictures that it was not trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import InputError
from cbir_faiss.measures.curves import map_curve, map_curve_tied
from cbir_faiss.measures.histograms import hamming_histograms
from cbir_faiss.measures.rankings import full_rankings
from cbir_faiss.measures.relevance import Relevance


def retrieval_map(embedding: NDArray[np.float32], labels: NDArray[np.int64], binary: bool) -> float:
    """Mean AP over the whole ranking when every other picture of each class is searched for among the rest.

    Codes (``binary``) are searched by the Hamming distance of their signs, in expectation over ties; features by
    cosine. nan where no class has two pictures, so that there is nothing to find.
    """
    order = np.argsort(labels, kind="stable")
    queries, items = order[::2], order[1::2]
    if not len(items) or not np.isin(labels[queries], labels[items]).any():
        return float("nan")
    # Pictures of a class without a second one have nothing to find.
    queries = queries[np.isin(labels[queries], labels[items])]
    names = [(str(label),) for label in labels.tolist()]
    relevance = Relevance.from_labels([names[i] for i in items], [names[i] for i in queries])
    if relevance is None:
        raise InputError("validation needs labels")
    if binary:
        codes = np.packbits(embedding > 0, axis=1)
        histograms = hamming_histograms(codes[queries], codes[items], relevance)
        return float(map_curve_tied(histograms, [len(items)])[0])
    # Features of zeros, as ReLUs can give, have no direction: their cosine to all others counts as 0.
    unit = embedding / np.maximum(np.linalg.norm(embedding, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    rankings = full_rankings(unit[items], unit[queries], relevance, "ip")
    return float(map_curve(np.concatenate(list(rankings)))[-1])
