"""A backend finds what NumPy finds: the nearest, those that a filter allows, those within a radius."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbir_faiss.base import Backend
from cbir_faiss.errors import Unsupported
from cbir_faiss.testing._backends import PAYLOADS, BackendTests, Case, distances, ids_of
from cbir_faiss.testing._contract import sample
from cbir_faiss.types import MISSING_ID

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


class Searching(BackendTests):
    """Nearest neighbours, filters and ranges."""

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

    def test_large_filters(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: bind values, never paste them; what an engine cannot take goes by ``search_filtered``."""
        if filled.capabilities.filter == "refused":
            pytest.skip("no filters")
        deep: dict[str, Any] = {"label": "cat"}
        for _ in range(70):
            deep = {"not": deep}
        wheres: list[tuple[Any, set[int]]] = [
            (deep, {0, 2}),
            ({"year": {"in": list(range(1200, 2400))}}, {0, 1, 3, 4}),
            ({"label": {"in": [f"no {n}" for n in range(1200)] + ["cat"]}}, {0, 2}),
        ]
        for where, rows in wheres:
            hits = self.find(filled, self.data(case)[:2], 9, where)
            assert ids_of(hits) == set(self.ids()[list(rows)].tolist())

    def test_filter_after_changes(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: whatever a filter remembers must learn of every upsert and delete."""
        if filled.capabilities.filter == "refused":
            pytest.skip("no filters")
        ids, data = self.ids(), self.data(case)
        assert ids_of(self.find(filled, data[:2], 9, {"label": "cat"})) == set(ids[[0, 2]].tolist())
        filled.upsert(ids[8:9], data[8:9], [{"label": "cat"}])
        filled.upsert(ids[:1], data[:1], [{"label": "dog"}])
        filled.flush()
        assert ids_of(self.find(filled, data[:2], 9, {"label": "cat"})) == set(ids[[2, 8]].tolist())
        if filled.capabilities.delete != "refused":
            filled.delete(ids[2:3])
            filled.flush()
            assert ids_of(self.find(filled, data[:2], 9, {"label": "cat"})) == {int(ids[8])}

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
