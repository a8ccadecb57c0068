"""Codes of floats inside an index: what options make of them, former names of options, files of earlier versions."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import cbir_faiss as cf
from cbir_faiss.base import Options
from cbir_faiss.base.options import parse_options
from cbir_faiss.config import parse_choices
from cbir_faiss.errors import ConfigError, CorruptCollection, InputError, MissingDependency, Unsupported

N, DIM = 1200, 32
FIXTURE = Path(__file__).parent / "fixtures" / "faiss-rabitq-0.1"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@pytest.fixture(scope="module")
def x() -> Any:
    return np.random.default_rng(0).standard_normal((N, DIM), dtype=np.float32)


def filled(name: str, x: Any, **options: Any) -> Any:
    backend = cf.load_backend(name, **options)
    backend.create(x.shape[1], "float")
    backend.train(x)
    backend.upsert(np.arange(len(x)), x)
    return backend


def recall(backend: Any, x: Any, search: dict[str, Any]) -> float:
    queries = np.random.default_rng(1).standard_normal((60, x.shape[1]), dtype=np.float32)
    near = ((queries[:, None] - x[None]) ** 2).sum(axis=2).argsort(axis=1)[:, :10]
    found = backend.search(queries, 10, None, search).ids
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(near.tolist(), found.tolist(), strict=True)]))


# ----------------------------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("faiss-rabitq", {"nlist": 4}, "IndexIVFRaBitQ"),
        ("faiss-rabitq", {"nlist": 4, "fast_scan": True}, "IndexIVFRaBitQFastScan"),
        ("faiss-rabitq", {"nlist": 0}, "IndexRaBitQFastScan"),
        ("faiss-rabitq", {"nlist": 0, "fast_scan": False}, "IndexRaBitQ"),
        ("faiss-eden", {"nlist": 4}, "IndexIVFEDEN"),
        ("faiss-eden", {"nlist": 0}, "IndexEDEN"),
    ],
)
def test_every_bit_is_worth_something(name: str, options: dict[str, Any], kind: str, x: Any) -> None:
    search = {"nprobe": 4} if options["nlist"] else {}
    most = 8 if name == "faiss-eden" else 9
    found = []
    for bits in (1, 2, 4, most):
        backend = filled(name, x, bits=bits, **options)
        assert type(backend._leaf).__name__ == kind
        assert bits * DIM <= backend.code_bits <= bits * DIM + 8 * 40
        found.append(recall(backend, x, search))
    assert found == sorted(found)
    assert found[0] > 0.2
    assert found[-1] > 0.95


@pytest.mark.parametrize("storage", ["float16", "sq8", "sq6", "sq4", "rabitq1", "rabitq4", "rabitq9"])
def test_a_graph_over_codes(storage: str, x: Any, tmp_path: Path) -> None:
    backend = filled("faiss-hnsw", x, storage=storage)
    least = {"sq4": 0.6, "sq6": 0.85, "rabitq1": 0.25, "rabitq4": 0.8}.get(storage, 0.95)
    assert recall(backend, x, {"ef": 200}) > least
    assert 0 < backend.code_bits < 32 * DIM
    backend.save(tmp_path / "saved")
    again = cf.load_backend("faiss-hnsw", storage=storage)
    again.restore(tmp_path / "saved", mmap=True)
    np.testing.assert_array_equal(again.search(x[:5], 3).ids, backend.search(x[:5], 3).ids)


def test_many_lists_are_found_by_a_graph(x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbir_faiss.backends.faiss._lists._BY_GRAPH", 32)
    for name, options in (("faiss-ivf", {}), ("faiss-rabitq", {"bits": 8}), ("faiss-pq", {"bits": 128})):
        backend = filled(name, x, nlist=64, **options)
        assert backend._lists_found_by is not None
        few, most = (recall(backend, x, {"nprobe": nprobe}) for nprobe in (4, 64))
        assert few < most
        assert most > (0.6 if name == "faiss-pq" else 0.95)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("faiss-rabitq", {"bits": 0}, "bits"),
        ("faiss-rabitq", {"bits": 10}, "bits"),
        ("faiss-rabitq", {"bits": 2, "nb_bits": 2}, "nb_bits: is called 'bits' now: give one of the two"),
        ("faiss-rabitq", {"nlist": -1}, "nlist"),
        ("faiss-rabitq", {"fast_scan": "yes"}, "fast_scan"),
        ("faiss-eden", {"bits": 9}, "bits"),
        ("faiss-hnsw", {"storage": "rabitq10"}, "storage"),
        ("faiss-hnsw", {"storage": "rabitq4", "metric": "cosine"}, "compared by l2 only"),
        ("faiss-ivf", {"nlist": 0}, "nlist"),
    ],
)
def test_wrong_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cf.load_backend(name, **options)


def test_lists_that_are_not_there_cannot_be_looked_into(x: Any) -> None:
    backend = filled("faiss-rabitq", x, nlist=0)
    assert backend.search(x[:1], 3).ids[0, 0] == 0
    with pytest.raises(ConfigError, match="nprobe: IndexRaBitQFastScan has no such search option"):
        backend.search(x[:1], 3, options={"nprobe": 4})


# ------------------------------------------------------------------------------------------------- names of options


def test_the_former_name_of_an_option_is_taken(x: Any) -> None:
    assert cf.load_backend("faiss-rabitq", nb_bits=4).options == cf.load_backend("faiss-rabitq", bits=4).options
    (first, second) = parse_choices("backends", [{"name": "faiss-rabitq", "nb_bits": [2, 4]}], "backends")
    assert [first.options, second.options] == [{"nb_bits": 2}, {"nb_bits": 4}]
    with pytest.raises(ConfigError, match=r"backends\.0\.nb_bits\.1: must be less"):
        parse_choices("backends", [{"name": "faiss-rabitq", "nb_bits": [2, 10]}], "backends")


def test_an_option_without_another_name_is_itself() -> None:
    class Plain(Options):
        size: int = 1

    assert parse_options(Plain, {"size": 3}).size == 3
    with pytest.raises(ConfigError, match="did you mean 'size'"):
        parse_options(Plain, {"siz": 3})


def test_an_index_of_an_earlier_version_opens(tmp_path: Path) -> None:
    """Saved with the options ``nb_bits: 2`` and without those that came later."""
    expected = json.loads((FIXTURE / "expected.json").read_text())
    shutil.copytree(FIXTURE, tmp_path / "saved")
    for options in ({"nb_bits": 2, "nlist": 2}, {"bits": 2, "nlist": 2}):
        backend = cf.load_backend("faiss-rabitq", **options)
        backend.restore(tmp_path / "saved")
        vectors = np.asarray(expected["queries"], np.float32)
        hits = backend.search(vectors, 3)
        assert hits.ids.tolist() == expected["ids"]
        np.testing.assert_allclose(hits.distances, expected["distances"], rtol=1e-4)
        backend.upsert(np.array([1000]), vectors[:1])
        assert 1000 in backend.search(vectors[:1], 5).ids
        backend.save(tmp_path / "again")
    with pytest.raises(CorruptCollection, match="written by"):
        cf.load_backend("faiss-rabitq", bits=3, nlist=2).restore(tmp_path / "saved")


# ----------------------------------------------------------------------------------------------------------- rabitqlib


class TestRabitqlib:
    @pytest.fixture(autouse=True, scope="class")
    def installed(self) -> None:
        pytest.importorskip("rabitqlib", reason="needs rabitqlib: Python 3.11 or newer")

    def test_every_bit_is_worth_something(self, x: Any) -> None:
        found = []
        for bits in (1, 2, 4, 9):
            backend = filled("rabitq", x, bits=bits, nlist=4)
            assert backend.code_bits >= bits * DIM
            found.append(recall(backend, x, {"nprobe": 4}))
        assert found == sorted(found)
        assert found[0] > 0.2
        assert found[-1] > 0.95

    @pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
    @pytest.mark.parametrize(
        ("name", "options", "search"), [("rabitq", {"nlist": 4}, {"nprobe": 4}), ("rabitq-hnsw", {}, {"ef": 200})]
    )
    def test_distances_are_ours(
        self, name: str, options: dict[str, Any], search: dict[str, Any], metric: str, x: Any
    ) -> None:
        hits = filled(name, x, bits=9, metric=metric, **options).search(x[:20], 5, options=search)
        q, found = x[:20, None].astype(np.float64), x[hits.ids].astype(np.float64)
        products, norms = (q * found).sum(axis=2), np.linalg.norm(q, axis=2) * np.linalg.norm(found, axis=2)
        true = {"l2": ((q - found) ** 2).sum(axis=2), "ip": -products, "cosine": 1 - products / norms}[metric]
        np.testing.assert_allclose(hits.distances, true, atol=0.02 * (1 if metric == "cosine" else np.abs(true).max()))

    def test_a_wider_walk_finds_more_and_never_fewer_than_are_wanted(self, x: Any) -> None:
        backend = filled("rabitq-hnsw", x, m=8, ef_construction=20)
        found = [recall(backend, x, {"ef": ef}) for ef in (10, 20, 200)]
        assert found == sorted(found)
        assert found[-1] > 0.9
        assert (backend.search(x[:5], 100, options={"ef": 10}).ids >= 0).all()

    def test_a_graph_makes_room_for_what_is_added(self, x: Any, tmp_path: Path) -> None:
        backend = filled("rabitq-hnsw", x[:10])
        for start in (10, 11, 300):
            stop = {10: 11, 11: 300, 300: N}[start]
            backend.upsert(np.arange(start, stop), x[start:stop])
            assert backend.count() == stop
            backend.save(tmp_path / "saved")
            backend = cf.load_backend("rabitq-hnsw")
            backend.restore(tmp_path / "saved")
        assert (backend.search(x[::50], 1, options={"ef": 200}).ids[:, 0] == np.arange(0, N, 50)).mean() > 0.95

    @pytest.mark.parametrize("name", ["rabitq", "rabitq-hnsw"])
    def test_what_it_learnt_is_saved_before_it_holds_anything(self, name: str, x: Any, tmp_path: Path) -> None:
        empty = cf.load_backend(name)
        empty.create(DIM, "float")
        empty.train(x)
        assert empty.count() == 0
        assert (empty.search(x[:2], 3).ids == -1).all()
        empty.save(tmp_path / "saved")
        again = cf.load_backend(name)
        again.restore(tmp_path / "saved")
        assert (again.search(x[:2], 3).ids == -1).all()
        again.upsert(np.arange(5), x[:5])
        assert again.search(x[:5], 1).ids[:, 0].tolist() == list(range(5))

    def test_items_are_added_to_what_was_saved(self, x: Any, tmp_path: Path) -> None:
        backend = filled("rabitq", x[:500], nlist=4, bits=8)
        backend.save(tmp_path / "saved")
        again = cf.load_backend("rabitq", nlist=4, bits=8)
        again.restore(tmp_path / "saved")
        again.upsert(np.arange(500, N), x[500:])
        assert (again.search(x[::100], 1).ids[:, 0] == np.arange(0, N, 100)).all()
        again.upsert(np.array([3]), x[7:8] * 2)
        assert again.search(x[3:4], 1).ids[0, 0] != 3
        again.save(tmp_path / "saved")
        last = cf.load_backend("rabitq", nlist=4, bits=8)
        last.restore(tmp_path / "saved", mmap=True)
        assert last.count() == N
        assert last.search(x[7:8] * 2, 1).ids[0, 0] == 3
        with pytest.raises(Unsupported, match="read-only"):
            last.upsert(np.array([1]), x[:1])

    @pytest.mark.parametrize("name", ["rabitq", "rabitq-hnsw"])
    def test_it_keeps_no_vectors(self, name: str, x: Any) -> None:
        with pytest.raises(Unsupported, match="vectors"):
            filled(name, x[:50]).fetch(np.array([1]))

    @pytest.mark.parametrize("name", ["rabitq", "rabitq-hnsw"])
    def test_damaged_files(self, name: str, x: Any, tmp_path: Path) -> None:
        filled(name, x[:300]).save(tmp_path / "saved")
        file = tmp_path / "saved" / "index.rabitq"
        whole = file.read_bytes()
        for content in (whole[:-10], whole[:100] + bytes([whole[100] ^ 255]) + whole[101:]):
            file.write_bytes(content)
            with pytest.raises(CorruptCollection, match=r"index\.rabitq"):
                cf.load_backend(name).restore(tmp_path / "saved")

    def test_more_lists_than_vectors(self, x: Any) -> None:
        with pytest.raises(InputError, match="nlist 64 needs at least as many training vectors, got 10"):
            filled("rabitq", x[:10], nlist=64)

    @pytest.mark.parametrize("name", ["rabitq", "rabitq-hnsw"])
    def test_searches_beside_changes(self, name: str, x: Any) -> None:
        """The library refuses a call beside another that changes something; ours wait for each other."""
        backend, failed = filled(name, x[:200]), list[BaseException]()

        def work(step: int) -> None:
            try:
                for i in range(20):
                    if step == 0:
                        backend.upsert(np.arange(200 + 10 * i, 210 + 10 * i), x[10 * i : 10 * i + 10])
                    else:
                        backend.search(x[:3], 5, None if step == 1 else np.arange(0, 200, 50))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(step,)) for step in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert backend.count() == 400


def test_without_rabitqlib_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rabitqlib", None)
    with pytest.raises(MissingDependency, match=r"pip install 'cbir-faiss\[rabitq\]'"):
        cf.load_backend("rabitq")


@pytest.mark.slow
def test_peers_run_and_what_cannot_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark of other libraries, small: rows in their fixed form, what fails with its reason, no work twice."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    peers = importlib.import_module("peers")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "items.npy", rng.standard_normal((600, 64), dtype=np.float32))
    np.save(tmp_path / "queries.npy", rng.standard_normal((20, 64), dtype=np.float32))
    builds = ({"factory": "IVF4,Flat"}, {"factory": "Nonsense"})
    monkeypatch.setattr(peers.PEERS["faiss"], "builds", lambda n, dim: builds)
    monkeypatch.setattr(peers.signal, "signal", lambda *_: None)
    given = f"--data=small={tmp_path / 'items.npy'},{tmp_path / 'queries.npy'}"
    monkeypatch.setattr(sys, "argv", ["peers.py", given, "--items=500", f"--out={tmp_path}", "--only=faiss"])
    peers.main()
    first = json.loads((tmp_path / "peers.json").read_text())
    peers.main()
    stored = json.loads((tmp_path / "peers.json").read_text())
    assert stored["rows"] == first["rows"]
    keys = {"peer", "version", "data", "items", "settings", "recall@10", "p50_ms", "p99_ms", "qps"}
    keys |= {"growing_bytes", "total_bytes", "build_s"}
    assert all(set(row) == keys | {"run"} for row in stored["rows"])
    searched = [{"factory": "IVF4,Flat", "nprobe": nprobe} for nprobe in (8, 16, 32, 64)]
    assert [row["settings"] for row in stored["rows"]] == searched
    assert all((row["peer"], row["items"], row["recall@10"]) == ("faiss", 500, 1) for row in stored["rows"])
    assert all(4 * 64 <= row["growing_bytes"] < 4 * 64 + 32 and row["qps"] > 0 for row in stored["rows"])
    assert [(entry["peer"], entry["settings"]) for entry in stored["absent"]] == [("faiss", {"factory": "Nonsense"})]
    assert "Nonsense" in stored["absent"][0]["reason"]
    assert "environment" in stored
