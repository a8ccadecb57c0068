"""The comparison with other libraries: what a peer is given, what is measured, what is held, what is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cbir_faiss.measures.neighbours import exact_thresholds, knn_recall, true_distances

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import _peers

Vectors = NDArray[np.float32]
K = 10


@pytest.fixture(scope="module")
def x() -> Vectors:
    """Clusters of vectors of all lengths, as features are."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.standard_normal((20, 64))
    return (centres[rng.integers(0, 20, 2000)] + rng.standard_normal((2000, 64))).astype(np.float32)


@pytest.fixture(scope="module")
def queries(x: Vectors) -> Vectors:
    return x[:50] + np.float32(0.1)


def found(peer: _peers.Peer, build: dict[str, Any], x: Vectors, queries: Vectors, folder: Path) -> Any:
    """The nearest by an index with these settings, saved and opened, at the widest of its searches."""
    peer.make(x, folder, 1, build)
    return np.asarray(peer.open(folder, 1, build)(K, **peer.searches(build)[-1])(queries)).astype(np.int64)


def recall(rows: Any, x: Vectors, queries: Vectors) -> float:
    distances = np.sort(true_distances(x, queries, rows, "l2"), axis=1)
    return float(knn_recall(distances, exact_thresholds(x, queries, K, "l2"), K).mean())


# ------------------------------------------------------------------------------------------------- what a peer is given


def test_eight_bits_of_usearch_keep_the_lengths_of_vectors(x: Vectors, queries: Vectors, tmp_path: Path) -> None:
    pytest.importorskip("usearch")
    build = {"dtype": "i8", "connectivity": 16}
    assert recall(found(_peers.PEERS["usearch"], build, x, queries, tmp_path), x, queries) > 0.9


def test_what_is_beyond_eight_bits_is_cut_off() -> None:
    assert _peers.int8(np.array([-3.0, -1.0, 0.5, 3.0]), 2.0).tolist() == [-127, -64, 32, 127]
