"""The contract of a backend. Every answer is compared with NumPy's, and what is declared is tested as declared."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from cbir_faiss.base import Backend
from cbir_faiss.errors import ConfigError, CorruptCollection, DimensionMismatch, InputError, UnknownId, Unsupported
from cbir_faiss.testing._contract import Contract, sample
from cbir_faiss.types import MISSING_ID, Codes, Hits, Ids, Kind, Metric

Case = tuple[Kind, Metric]
Matrix = NDArray[np.float64]

PAYLOADS: list[dict[str, Any]] = [
    {"label": "cat", "year": 1990, "tags": ["a", "b"]},
    {"label": "dog", "year": 1995, "tags": ["b"]},
    {"label": "cat", "year": 2000.5, "ok": True},
    {"label": "žába", "year": 2005, "ok": False, "tags": []},
    {"label": None, "year": 2010},
    {"year": 1},
    {"label": "o\"ne'; --", "year": -3, "ok": 1},
    {},
]
FILTERS: list[tuple[Any, set[int]]] = [
    ({"label": "cat"}, {0, 2}),
    ('label = "cat"', {0, 2}),
    ({"label": "žába"}, {3}),
    ({"label": "o\"ne'; --"}, {6}),
    ({"label": "bird"}, set()),
    ({"nowhere": 1}, set()),
    ({"label": None}, {4}),
    ({"ok": True}, {2}),
    ({"ok": 1}, {6}),
    ({"year": 1995}, {1}),
    ({"year": {"gt": 1990, "lte": 2005}}, {1, 2, 3}),
    ({"year": {"gte": 1990, "lt": 2000.5}}, {0, 1}),
    ({"label": {"gte": "d", "lt": "e"}}, {1}),
    ({"label": {"in": ["dog", "žába"]}}, {1, 3}),
    ({"tags": "b"}, {0, 1}),
    ({"label": "cat", "year": 1990}, {0}),
    ({"and": [{"label": "cat"}, {"year": {"gt": 1995}}]}, {2}),
    ({"or": [{"label": "dog"}, {"year": {"lt": 0}}]}, {1, 6}),
    ({"not": {"label": "cat"}}, {1, 3, 4, 5, 6, 7}),
    ({"not": {"or": [{"year": {"gte": 1}}, {"label": "cat"}]}}, {6, 7}),
]


class BackendContract(Contract):
    """Subclass it with ``plugin`` (and ``options``). A plugin with a ``path`` option gets a fresh folder for each test.

    An approximate backend names in ``exhaustive`` the search options under which it looks at everything; a lossy one
    (PQ, RaBitQ, …) lowers ``recall`` and raises ``tolerance``.
    """

    plugin: ClassVar[type[Backend]]
    options: ClassVar[Mapping[str, Any]] = {}
    cases: ClassVar[Sequence[Case] | None] = None
    """Kinds and metrics to test; None: all that the plugin declares."""
    exhaustive: ClassVar[Mapping[str, Any] | None] = None
    recall: ClassVar[float] = 1.0
    """Share of the true neighbours that must be among the answers, over all queries of a test."""
    tolerance: ClassVar[float] = 1e-4
    """Largest error of a distance, relative to 1 + its size."""
    items: ClassVar[int] = 60
    dim: ClassVar[int] = 16
    bits: ClassVar[int] = 64

    # -- what a subclass may replace

    def make(self, place: Path, case: Case) -> Backend:
        """A backend at ``place``: empty at first, and holding what was stored there when it is called again."""
        options: dict[str, Any] = dict(self.options)
        fields = self.plugin.Options.model_fields
        if "metric" in fields and case[1] != "hamming":
            options.setdefault("metric", case[1])
        if "path" in fields:
            options.setdefault("path", str(place / "engine"))
        return self.plugin(**options)

    def reopen(self, backend: Backend, place: Path, case: Case) -> Backend:
        """The same content after a restart: from ``place``, or from files that ``save`` wrote."""
        if not backend.own_storage:
            backend.save(place / "saved")
        backend.close()
        again = self.make(place, case)
        if not again.own_storage:
            again.restore(place / "saved")
        return again

    # -- machinery

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            declared = [(k, m) for k in sorted(self.plugin.accepts) for m in self.plugin.metrics]
            # Hamming goes with codes, unless the backend makes its codes itself, from floats.
            natural = [c for c in declared if (c[0] == "binary") == (c[1] == "hamming")] or declared
            metafunc.parametrize("case", self.cases or natural, ids="-".join)

    @pytest.fixture
    def empty(self, case: Case, tmp_path: Path) -> Iterator[Backend]:
        """Created and trained, holding nothing."""
        backend = self.make(tmp_path, case)
        self._create(backend, case)
        yield backend
        backend.close()

    @pytest.fixture
    def filled(self, empty: Backend, case: Case) -> Backend:
        """Holds ``data`` under ``ids``, and PAYLOADS with the first of them."""
        ids, data = self.ids(), self.data(case)
        payload = PAYLOADS + [{"n": n} for n in range(len(ids) - len(PAYLOADS))]
        empty.upsert(ids[:20], data[:20], payload[:20])
        empty.upsert(ids[20:], data[20:], payload[20:])
        empty.flush()
        return empty

    def ids(self) -> Ids:
        """Not in order, and not without gaps."""
        return np.random.default_rng(5).permutation(self.items).astype(np.int64) * 3 + 5

    def width(self, case: Case) -> int:
        return self.bits if case[0] == "binary" else self.dim

    def data(self, case: Case, n: int = 0, seed: int = 0) -> Codes:
        return sample(case[0], n or self.items, self.width(case), seed)

    def find(self, backend: Backend, queries: Codes, k: int = 5, where: Any = None) -> Hits:
        """A search that looks at everything, its form checked."""
        hits = backend.search(queries, k, where, self.exhaustive)
        assert hits.ids.shape == hits.distances.shape == (len(queries), k), "Hits are (queries, k), padded"
        assert [hits.ids.dtype, hits.distances.dtype] == [np.dtype(np.int64), np.dtype(np.float32)]
        missing = hits.ids == MISSING_ID
        assert np.array_equal(missing, np.isinf(hits.distances)), "missing is (-1, inf), and nothing else is"
        assert bool((hits.distances[:, 1:] >= hits.distances[:, :-1]).all()), "nearest first, missing last"
        for row in hits.ids:
            found = row[row != MISSING_ID]
            assert len(set(found.tolist())) == len(found), f"an id occurs twice in one answer: {row}"
        return hits

    def agree(self, hits: Hits, truth: Matrix, ids: Ids) -> None:
        """``hits`` are nearest neighbours by the distances ``truth`` ``(queries, items)``; inf where not allowed.

        Which of several items at one distance is returned is left to the engine.
        """
        k, wanted, right = hits.ids.shape[1], 0, 0
        column = {int(i): c for c, i in enumerate(ids)}
        for found, distances, true in zip(hits.ids, hits.distances, truth, strict=True):
            found = found[found != MISSING_ID]
            assert set(found.tolist()) <= column.keys(), "an answer holds an id that is not stored"
            real = true[[column[int(i)] for i in found]]
            assert np.isfinite(real).all(), "an answer holds an item that the filter or a deletion excludes"
            self.close_to(distances[: len(found)], real)
            best = np.sort(true[np.isfinite(true)])[:k]
            wanted += len(best)
            right += int((real <= best[-1] + 1e-4 * (1 + abs(best[-1]))).sum()) if len(best) else 0
        assert right >= self.recall * wanted, f"{right} of {wanted} true neighbours were found"

    def close_to(self, got: NDArray[Any], expected: NDArray[Any]) -> None:
        """Equal up to ``tolerance``, at least in shape."""
        assert got.shape == expected.shape
        if np.isfinite(self.tolerance):
            np.testing.assert_allclose(got, expected, rtol=self.tolerance, atol=self.tolerance)

    def truth(self, backend: Backend, case: Case, queries: Codes, data: Codes) -> Matrix:
        """Distances ``(queries, items)`` by NumPy, in the backend's metric."""
        if case == ("float", "hamming"):
            own = [
                codes for codes in (backend.hamming_codes(queries), backend.hamming_codes(data)) if codes is not None
            ]
            assert len(own) == 2, "a backend that takes floats and ranks by Hamming distance tells its codes"
            queries, data = own
        return distances(case[1], queries, data)

    def _create(self, backend: Backend, case: Case) -> None:
        backend.create(self.width(case), case[0])
        backend.train(self.data(case))

    # -- the contract: form

    def test_declares_itself(self) -> None:
        """Troubleshooting: set ``name``, ``accepts``, ``metrics``; every search option has a default."""
        assert self.plugin.name
        assert self.plugin.accepts
        assert self.plugin.accepts <= {"float", "binary"}
        assert self.plugin.metrics
        assert set(self.plugin.metrics) <= {"l2", "ip", "cosine", "hamming"}
        self.plugin.SearchOptions()
        with pytest.raises(ConfigError, match="no_such_option"):
            self.plugin(**{**self.options, "no_such_option": 1})

    def test_empty(self, empty: Backend, case: Case) -> None:
        """Troubleshooting: an engine that fails on an empty collection needs a shortcut when ``_count()`` is 0."""
        hits = self.find(empty, self.data(case, 3))
        assert (hits.ids == MISSING_ID).all()
        assert empty.count() == 0
        if empty.capabilities.delete != "refused":
            empty.delete(np.array([1, 2]))
        if empty.capabilities.vectors != "refused":
            assert list(empty.scroll()) == []
            with pytest.raises(UnknownId):
                empty.fetch(np.array([1]))
        empty.upsert(np.array([], np.int64), self.data(case)[:0])
        assert empty.count() == 0

    def test_before_it_is_created(self, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: do nothing in ``_setup`` that makes a collection of unknown width."""
        backend = self.make(tmp_path, case)
        assert backend.count() == 0
        with pytest.raises(InputError):
            backend.search(self.data(case, 1), 1)
        backend.close()
        backend.close()

    def test_refuses_other_kinds(self, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: declare in ``accepts`` what ``_create`` really takes."""
        if len(self.plugin.accepts) == 2:
            pytest.skip("takes floats and codes")
        backend = self.make(tmp_path, case)
        with pytest.raises(Unsupported, match=case[0]):
            backend.create(64, "float" if case[0] == "binary" else "binary")
        backend.close()

    # -- search

    def test_finds_the_nearest(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: smaller is nearer: l2 is squared, ip negated, cosine 1 - cosine, hamming counts bits."""
        queries = np.concatenate([self.data(case, 5, seed=1), self.data(case)[:3]])
        hits = self.find(filled, queries)
        self.agree(hits, self.truth(filled, case, queries, self.data(case)), self.ids())

    def test_k_larger_than_the_collection(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: pad with (-1, inf); engines pad with 3.4e38, 2147483647 or not at all."""
        queries = self.data(case, 2, seed=1)
        hits = self.find(filled, queries, k=self.items + 7)
        assert (hits.ids[:, self.items :] == MISSING_ID).all()
        self.agree(hits, self.truth(filled, case, queries, self.data(case)), self.ids())

    def test_a_batch_gives_what_single_queries_give(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: queries of one batch must not share a candidate list."""
        queries = self.data(case, 6, seed=1)
        batch = self.find(filled, queries)
        single = [self.find(filled, queries[i : i + 1]) for i in range(6)]
        np.testing.assert_allclose(batch.distances, np.concatenate([h.distances for h in single]), rtol=1e-4, atol=1e-4)
        assert self.find(filled, queries[:0]).ids.shape == (0, 5)

    def test_leaves_its_input_alone(self, empty: Backend, case: Case) -> None:
        """Troubleshooting: normalise and convert into a copy."""
        data, ids = self.data(case), self.ids()
        payload: list[dict[str, Any]] = [{"a": [n]} for n in range(self.items)]
        kept = data.copy(), ids.copy()
        empty.upsert(ids, data, payload)
        empty.flush()
        self.find(empty, data[:4])
        payload[0]["a"].append("changed by the caller afterwards")
        assert np.array_equal(data, kept[0])
        assert np.array_equal(ids, kept[1])
        assert empty.payload(ids[:1]) == [{"a": [0]}]

    def test_hamming_golden_vectors(self, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: the first bit is the highest of the first byte (``numpy.packbits``)."""
        if case != ("binary", "hamming") or self.recall < 1:
            pytest.skip("no exact Hamming search over codes")
        backend = self.make(tmp_path, case)
        backend.create(16, "binary")
        codes = np.array([[0x80, 0x00], [0x00, 0x01], [0x00, 0x00], [0xFF, 0xFF], [0xF0, 0x0F]], np.uint8)
        backend.train(codes)
        ids = np.arange(5) + 10
        backend.upsert(ids, codes)
        backend.flush()
        hits = self.find(backend, np.array([[0x80, 0x00], [0xFF, 0xFE]], np.uint8), k=5)
        by_id = [dict(zip(i.tolist(), d.tolist(), strict=True)) for i, d in zip(hits.ids, hits.distances, strict=True)]
        assert by_id[0] == {10: 0, 11: 2, 12: 1, 13: 15, 14: 7}
        assert by_id[1] == {10: 14, 11: 16, 12: 15, 13: 1, 14: 9}
        if backend.capabilities.vectors != "refused":
            assert np.array_equal(backend.fetch(ids), codes)
        backend.close()

    @pytest.mark.parametrize("bits", [8, 4096])
    def test_short_and_long_codes(self, bits: int, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: 8 bits give many ties and duplicates; 4,096 bits exceed what a byte can count."""
        if case != ("binary", "hamming"):
            pytest.skip("codes only")
        data, queries = sample("binary", self.items, bits), sample("binary", 3, bits, seed=1)
        queries[0] = ~data[0]
        backend = self.make(tmp_path, case)
        backend.create(bits, "binary")
        backend.train(data)
        backend.upsert(self.ids(), data)
        backend.flush()
        self.agree(self.find(backend, queries, self.items), distances("hamming", queries, data), self.ids())
        backend.close()

    # -- content

    def test_upsert_twice_is_upsert_once(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: an index that appends duplicates must drop the old row."""
        before = self.find(filled, self.data(case, 4, seed=1))
        filled.upsert(self.ids(), self.data(case), [{"again": True}] * self.items)
        filled.flush()
        after = self.find(filled, self.data(case, 4, seed=1))
        assert filled.count() == self.items
        np.testing.assert_allclose(after.distances, before.distances, rtol=1e-4, atol=1e-4)

    def test_upsert_replaces_vector_and_payload(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: replace the whole item; payload that is not given anew is gone."""
        ids, data = self.ids(), self.data(case)
        data[:4] = self.data(case, 4, seed=9)
        filled.upsert(ids[:2], data[:2], [{"label": "new"}] * 2)
        filled.upsert(ids[2:4], data[2:4])
        filled.flush()
        queries = data[:4]
        self.agree(self.find(filled, queries), self.truth(filled, case, queries, data), ids)
        assert filled.payload(ids[:4]) == [{"label": "new"}, {"label": "new"}, {}, {}]
        if filled.capabilities.filter != "refused":
            assert _found(self.find(filled, queries, 10, {"label": "cat"})) == set()

    def test_delete(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: deleting what is not there is no error; a deleted id can be stored again."""
        ids, data = self.ids(), self.data(case)
        if filled.capabilities.delete == "refused":
            with pytest.raises(Unsupported):
                filled.delete(ids[:1])
            return
        filled.delete(np.concatenate([ids[:30], [1, 2, 10**6]]))
        filled.flush()
        assert filled.count() == self.items - 30
        truth = self.truth(filled, case, data[:4], data)
        truth[:, :30] = np.inf
        self.agree(self.find(filled, data[:4], k=self.items), truth, ids)
        with pytest.raises(UnknownId):
            filled.payload(ids[:1])
        filled.upsert(ids[:1], data[:1])
        filled.flush()
        assert filled.count() == self.items - 29
        assert filled.payload(ids[:1]) == [{}]
        filled.delete(ids)
        filled.flush()
        assert (self.find(filled, data[:2]).ids == MISSING_ID).all()

    def test_fetch_and_scroll(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: rows come back in the order of the ids asked for; scroll is in the order of ids."""
        ids, data = self.ids(), self.data(case)
        if filled.capabilities.vectors == "refused":
            with pytest.raises(Unsupported):
                filled.fetch(ids[:1])
            with pytest.raises(Unsupported):
                filled.scroll()
            return
        if case[1] == "cosine":
            data = data / np.linalg.norm(data, axis=1, keepdims=True)
        mine = [7, 3, 3, 50]
        self.close_to(filled.fetch(ids[mine]), data[mine])
        with pytest.raises(UnknownId, match="1000000"):
            filled.fetch(np.array([ids[0], 10**6]))
        batches = list(filled.scroll(batch_size=25))
        assert max(len(b.ids) for b in batches) <= 25
        order = np.argsort(ids)
        assert np.array_equal(np.concatenate([b.ids for b in batches]), ids[order])
        scrolled = np.concatenate([b.vectors for b in batches])
        self.close_to(scrolled, data[order])
        payload = [p for b in batches for p in b.payload]
        assert [payload[int(np.flatnonzero(order == n)[0])] for n in range(len(PAYLOADS))] == PAYLOADS

    def test_large_ids(self, empty: Backend, case: Case) -> None:
        """Troubleshooting: ids are 64 bits wide; a client that goes through float64 changes these."""
        ids = np.array([0, 2**31, 2**53 + 1, 2**63 - 1], np.int64)
        empty.upsert(ids, self.data(case)[:4])
        empty.flush()
        assert _found(self.find(empty, self.data(case)[:1], k=4)) == set(ids.tolist())

    def test_payload_round_trip(self, empty: Backend, case: Case) -> None:
        """Troubleshooting: store JSON, not columns of one type; 1, 1.0, true and "1" are different."""
        payload: list[dict[str, Any]] = [
            {"text": 'a "quoted" \\ line\nand 猫 🐈', "int": -(2**53), "float": 0.1, "exp": 1e-300},
            {"true": True, "false": False, "null": None, "one": 1, "text": "1"},
            {"list": [1, "a", None, [True]], "object": {"é": {"deep": []}}, "empty": {}, "": "empty key"},
            {},
        ]
        empty.upsert(np.arange(4), self.data(case)[:4], payload)
        empty.flush()
        back = empty.payload(np.array([3, 2, 1, 0]))
        assert back == payload[::-1]
        assert type(back[2]["one"]) is int
        assert type(back[2]["true"]) is bool

    # -- filters and range

    def test_filters(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: a missing key matches nothing, its ``not`` does; true is not 1; lists match by element."""
        queries, data = self.data(case, 3, seed=1), self.data(case)
        if filled.capabilities.filter == "refused":
            with pytest.raises(Unsupported):
                filled.search(queries, 3, FILTERS[0][0])
            return
        for where, rows in FILTERS:
            others = set(range(len(PAYLOADS), self.items)) if "not" in where else set()
            truth = self.truth(filled, case, queries, data)
            truth[:, [n for n in range(self.items) if n not in rows | others]] = np.inf
            for k in (2, self.items):
                hits = self.find(filled, queries, k, where)
                try:
                    self.agree(hits, truth, self.ids())
                except AssertionError as error:
                    raise AssertionError(f"filter {where!r}, k={k}: {error}") from error

    def test_filter_after_changes(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: whatever a filter remembers must learn of every upsert and delete."""
        if filled.capabilities.filter == "refused":
            pytest.skip("no filters")
        ids, data = self.ids(), self.data(case)
        assert _found(self.find(filled, data[:2], 9, {"label": "cat"})) == set(ids[[0, 2]].tolist())
        filled.upsert(ids[8:9], data[8:9], [{"label": "cat"}])
        filled.upsert(ids[:1], data[:1], [{"label": "dog"}])
        filled.flush()
        assert _found(self.find(filled, data[:2], 9, {"label": "cat"})) == set(ids[[2, 8]].tolist())
        if filled.capabilities.delete != "refused":
            filled.delete(ids[2:3])
            filled.flush()
            assert _found(self.find(filled, data[:2], 9, {"label": "cat"})) == {int(ids[8])}

    def test_range_search(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: the radius is inclusive, in the backend's own metric, and the nearest come first."""
        queries, data, ids = self.data(case, 3, seed=1), self.data(case), self.ids()
        if filled.capabilities.range == "refused":
            with pytest.raises(Unsupported):
                filled.range_search(queries, 1.0)
            return
        truth = self.truth(filled, case, queries, data)
        ordered = np.unique(truth)
        at = len(ordered) // 3
        # Hamming radii are whole numbers and inclusive; elsewhere a radius on a distance would hang on rounding.
        radius = float(ordered[at] if case[1] == "hamming" else (ordered[at] + ordered[at + 1]) / 2)
        for where, allowed in ((None, set(range(self.items))), ({"label": "cat"}, {0, 2})):
            if where is not None and filled.capabilities.filter == "refused":
                continue
            hits = filled.range_search(queries, radius, where)
            assert len(hits) == 3
            for query in range(3):
                found = hits[query]
                assert all(a.distance <= b.distance for a, b in pairwise(found))
                assert all(hit.distance <= radius for hit in found)
                right = {int(ids[n]) for n in np.flatnonzero(truth[query] <= radius) if n in allowed}
                if self.recall == 1 and self.exhaustive is None:
                    assert {hit.id for hit in found} == right
                else:
                    assert {hit.id for hit in found} <= {int(ids[n]) for n in allowed}
        nothing = filled.range_search(queries, float(ordered[0]) - 1)
        assert nothing.limits.tolist() == [0, 0, 0, 0] or self.recall < 1

    # -- life

    def test_persistence(self, filled: Backend, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: after close and open, or save and restore: same answers, payload and count."""
        if filled.capabilities.persist == "refused":
            with pytest.raises(Unsupported):
                filled.save(tmp_path / "saved")
            return
        queries, ids = self.data(case, 4, seed=1), self.ids()
        if filled.capabilities.delete != "refused":
            filled.delete(ids[:3])
            filled.flush()
        before, count = self.find(filled, queries), filled.count()
        again = self.reopen(filled, tmp_path, case)
        assert (again.dim, again.kind, again.metric) == (self.width(case), *case)
        assert again.count() == count
        np.testing.assert_allclose(self.find(again, queries).distances, before.distances, rtol=1e-4, atol=1e-4)
        assert again.payload(ids[3:8]) == PAYLOADS[3:8]
        if again.capabilities.filter != "refused":
            assert _found(self.find(again, queries, 9, {"label": "žába"})) == {int(ids[3])}
        again.close()

    def test_changes_after_loading(self, filled: Backend, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: what was loaded is as alive as what was built; ids must not collide."""
        if filled.capabilities.persist == "refused":
            pytest.skip("keeps nothing")
        ids, data = self.ids(), self.data(case)
        again = self.reopen(filled, tmp_path, case)
        new = self.data(case, 5, seed=7)
        again.upsert(np.concatenate([ids[:2], [10**6, 10**6 + 1, 10**6 + 2]]), new, [{"label": "new"}] * 5)
        again.flush()
        data = np.concatenate([data, new[2:]])
        data[:2] = new[:2]
        ids = np.concatenate([ids, [10**6, 10**6 + 1, 10**6 + 2]])
        truth = self.truth(again, case, new, data)
        if again.capabilities.delete != "refused":
            again.delete(ids[4:6])
            again.flush()
            truth[:, 4:6] = np.inf
        self.agree(self.find(again, new), truth, ids)
        assert again.payload(ids[:2]) == [{"label": "new"}] * 2
        third = self.reopen(again, tmp_path / "third", case) if not again.own_storage else again
        self.agree(self.find(third, new), truth, ids)
        third.close()

    def test_mapped_files_are_read_only(self, filled: Backend, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: changing a mapped FAISS index kills the process; refuse it before."""
        if filled.own_storage or filled.capabilities.persist == "refused":
            pytest.skip("writes no files")
        queries, ids = self.data(case, 4, seed=1), self.ids()
        before = self.find(filled, queries)
        filled.save(tmp_path / "saved")
        mapped = self.make(tmp_path, case)
        mapped.restore(tmp_path / "saved", mmap=True)
        np.testing.assert_allclose(self.find(mapped, queries).distances, before.distances, rtol=1e-4, atol=1e-4)
        assert mapped.payload(ids[:4]) == PAYLOADS[:4]
        with pytest.raises(Unsupported, match="read-only"):
            mapped.upsert(ids[:1], self.data(case)[:1])
        if mapped.capabilities.delete != "refused":
            self.hides_or_refuses(mapped, ids[:1], queries)
        mapped.close()
        again = self.make(tmp_path, case)
        again.restore(tmp_path / "saved")  # checks the digests: no file was touched
        assert again.count() == filled.count()
        again.close()

    def hides_or_refuses(self, mapped: Backend, ids: Ids, queries: Codes) -> None:
        """Deleting from a mapped index is refused, or hides the items from this process."""
        with suppress(Unsupported):
            mapped.delete(ids)
            assert not _found(self.find(mapped, queries, mapped.count() + 1)) & set(ids.tolist())

    def test_damaged_files_are_refused(self, filled: Backend, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: write a size and a digest of every file, and check them before the engine reads it."""
        if filled.own_storage or filled.capabilities.persist == "refused":
            pytest.skip("writes no files")
        filled.save(tmp_path / "saved")
        for name in sorted(file.name for file in (tmp_path / "saved").iterdir()):
            for damage in (_cut, _alter, Path.unlink):
                broken = tmp_path / "broken"
                shutil.copytree(tmp_path / "saved", broken)
                damage(broken / name)
                backend = self.make(tmp_path, case)
                with pytest.raises(CorruptCollection):
                    backend.restore(broken)
                backend.close()
                shutil.rmtree(broken)
        backend = self.make(tmp_path, case)
        with pytest.raises(CorruptCollection):
            backend.restore(tmp_path / "nowhere")
        backend.close()

    def test_threads_search_while_one_writes(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: guard the engine with a lock, or give each thread a connection."""
        data, errors, done = self.data(case, seed=3), list[BaseException](), threading.Event()

        def search() -> None:
            try:
                while not done.is_set():
                    self.find(filled, data[:3])
            except BaseException as error:  # also a failed assert must reach the test
                errors.append(error)

        threads = [threading.Thread(target=search) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for turn in range(6):
                filled.upsert(np.arange(8) + 1000 + 4 * turn, data[turn * 8 : turn * 8 + 8], [{"turn": turn}] * 8)
                filled.flush()
                if filled.capabilities.delete != "refused":
                    filled.delete(self.ids()[turn : turn + 1])
        finally:
            done.set()
            for thread in threads:
                thread.join()
        filled.flush()
        assert errors == []
        gone = 6 if filled.capabilities.delete != "refused" else 0
        assert filled.count() == self.items + 28 - gone

    # -- bad input

    def test_bad_vectors(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: the base class checks; do not override ``upsert`` and ``search`` themselves."""
        good = self.data(case)[:2]
        bad: list[tuple[Any, type[Exception]]] = [
            (good[:, :-1], DimensionMismatch),
            (good[0], InputError),
            (good.astype(np.int32), InputError),
            (good.tolist(), InputError),
            (good.view(np.uint8) if case[0] == "float" else good.astype(np.float32), InputError),
        ]
        if case[0] == "float":
            for value in (np.nan, np.inf):
                broken = good.copy()
                broken[1, 3] = value
                bad.append((broken, InputError))
        if case[1] == "cosine":
            bad.append((np.zeros_like(good), InputError))
        for vectors, error in bad:
            with pytest.raises(error):
                filled.upsert(np.array([500, 501]), vectors)
            with pytest.raises(error):
                filled.search(vectors, 3)
        filled.flush()
        assert filled.count() == self.items

    def test_bad_arguments(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: nothing of a refused batch is stored."""
        two = self.data(case)[:2]
        calls: list[Callable[[], Any]] = [
            lambda: filled.upsert(np.array([500, 500]), two),
            lambda: filled.upsert(np.array([500, -1]), two),
            lambda: filled.upsert(np.array([500.0, 501.0]), two),
            lambda: filled.upsert(np.array([500]), two),
            lambda: filled.upsert(np.array([500, 501]), two, [{}]),
            lambda: filled.upsert(np.array([500, 501]), two, [{}, {"x": object()}]),
            lambda: filled.upsert(np.array([500, 501]), two, [{}, {"x": float("nan")}]),
            lambda: filled.search(two, 0),
        ]
        if filled.capabilities.filter != "refused":
            calls += [lambda: filled.search(two, 1, {}), lambda: filled.search(two, 1, "label =")]
        for call in calls:
            with pytest.raises(InputError):
                call()
        with pytest.raises(ConfigError, match="no_such_option"):
            filled.search(two, 1, options={"no_such_option": 1})
        filled.flush()
        assert filled.count() == self.items


def distances(metric: Metric, queries: Codes, data: Codes) -> Matrix:
    """All distances ``(queries, items)`` in float64, as ``types.Metric`` defines them."""
    if metric == "hamming":
        differing = np.bitwise_xor(queries[:, None], data[None])
        return np.asarray(np.unpackbits(differing, axis=2).sum(axis=2), np.float64)
    q, x = queries.astype(np.float64), data.astype(np.float64)
    if metric == "l2":
        return np.asarray(((q[:, None] - x[None]) ** 2).sum(axis=2))
    if metric == "cosine":
        q, x = q / np.linalg.norm(q, axis=1, keepdims=True), x / np.linalg.norm(x, axis=1, keepdims=True)
        return np.asarray(1 - q @ x.T)
    return np.asarray(-(q @ x.T))


def _found(hits: Hits) -> set[int]:
    return set(hits.ids.ravel().tolist()) - {MISSING_ID}


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def _alter(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(bytes(content))
