"""A backend gives back what was stored: whole, once, under its id, whatever the payload and however much of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

from cbir_faiss.base import Backend
from cbir_faiss.errors import UnknownId, Unsupported
from cbir_faiss.testing._backends import PAYLOADS, BackendTests, Case, canonical, ids_of, refused
from cbir_faiss.types import MISSING_ID

FAITHFUL: list[dict[str, Any]] = [
    {"a.b": 1, "a": {"b": 2, "b.c": [3]}, "a.b.c": {"d.e": None}, ".": "", "long": "0123456789" * 10_000 + "end"},
    {"largest": 2**63 - 1, "smallest": -(2**63), "not a float": 2**53 + 1, "inside": [[2**63 - 1], {"x": 2**60 + 1}]},
    {"text": "猫 e\u0301 é \u2028\t🐈", "é.ü": "Ω", "quotes": "'\"`\\%s{}$1;--"},
    {
        "same": [True, 1, 1.0, "1", False, 0, None, "null"],
        "nested": [[1, [2, [[]]]], {}, [{"x": [None]}]],
        "none": None,
    },
]
"""What every engine gives back as it was, to the last digit."""
AWKWARD: list[dict[str, Any]] = [
    {"half a surrogate pair": "\ud800"},
    {"a zero byte": "a\0b"},
    {"beyond 63 bits": [2**63, 2**64 - 1]},
    {"beyond 64 bits": [2**64, -(2**70)]},
    {"a long key " * 1000: 1},
    {"deep": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]},
]
"""What an engine may refuse."""


class Storing(BackendTests):
    """Upserts, deletions, payloads, and more of all than fits a page of an engine's."""

    def test_upsert_twice_is_upsert_once(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: an index that appends duplicates must drop the old row."""
        before = self.find(filled, self.data(case, 4, seed=1))
        filled.upsert(self.ids(), self.data(case), [{"again": True}] * self.items)
        filled.flush()
        after = self.find(filled, self.data(case, 4, seed=1))
        assert filled.count() == self.items
        if self.recall == 1:
            np.testing.assert_allclose(after.distances, before.distances, rtol=1e-4, atol=1e-4)
            return
        # Which items an approximate search passes over may depend on where in a list they stand.
        kept = 0
        for old, new in zip(before, after, strict=True):
            was, now = ({hit.id: hit.distance for hit in hits} for hits in (old, new))
            both = was.keys() & now.keys()
            np.testing.assert_allclose([now[i] for i in both], [was[i] for i in both], rtol=1e-4, atol=1e-4)
            kept += len(both)
        assert kept >= 0.9 * before.ids.size

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
            assert ids_of(self.find(filled, queries, 10, {"label": "cat"})) == set()

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

    def test_scroll_goes_on_behind_a_cursor(self, filled: Backend) -> None:
        """Troubleshooting: ``_scroll_after`` gives what ``_scroll`` would have given behind the cursor."""
        if filled.capabilities.vectors == "refused":
            pytest.skip("keeps no vectors")
        whole = list(filled.scroll(batch_size=20))
        first = whole[0]
        rest = list(filled.scroll(20, after=int(first.ids[-1]) if first.cursor is None else first.cursor))
        assert [i for batch in rest for i in batch.ids.tolist()] == np.sort(self.ids())[20:].tolist()
        assert [p for batch in rest for p in batch.payload] == [p for batch in whole[1:] for p in batch.payload]

    def test_large_ids(self, empty: Backend, case: Case) -> None:
        """Troubleshooting: ids are 64 bits wide; a client that goes through float64 changes these."""
        ids = np.array([0, 2**31, 2**53 + 1, 2**63 - 1], np.int64)
        empty.upsert(ids, self.data(case)[:4])
        empty.flush()
        assert ids_of(self.find(empty, self.data(case)[:1], k=4)) == set(ids.tolist())

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

    def test_payload_keeps_every_value(self, empty: Backend, case: Case) -> None:
        """Troubleshooting: a dot in a key is a letter, an integer has 64 bits, and a text is as long as it is."""
        ids, data = np.arange(len(FAITHFUL)), self.data(case)[: len(FAITHFUL)]
        empty.upsert(ids, data, FAITHFUL)
        empty.flush()
        assert canonical(empty.payload(ids)) == canonical(FAITHFUL)
        if empty.capabilities.vectors != "refused":
            assert canonical([p for batch in empty.scroll() for p in batch.payload]) == canonical(FAITHFUL)
        if empty.capabilities.filter == "refused":
            return
        wheres: list[tuple[dict[str, Any], set[int]]] = [
            ({"a.b": 1}, {0}),
            ({"a.b": 2}, set()),
            ({"largest": 2**63 - 1}, {1}),
            ({"largest": 2**63 - 2}, set()),
            ({"not a float": 2**53}, set()),
            ({"same": True}, {3}),
            ({"é.ü": "Ω"}, {2}),
        ]
        for where, rows in wheres:
            assert ids_of(self.find(empty, data[:1], len(FAITHFUL), where)) == rows, f"filter {where}"

    def test_a_payload_is_stored_whole_or_refused(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: what an engine cannot hold is an error; never a little less than what was given."""
        ids, data = np.arange(10**6, 10**6 + len(AWKWARD)), self.data(case, len(AWKWARD), seed=4)
        altered = []
        for i, vector, payload in zip(ids[:, None], data[:, None], AWKWARD, strict=True):
            if not refused(partial(filled.upsert, i, vector, [payload])):
                filled.flush()
                altered += [payload] if canonical(filled.payload(i)) != canonical([payload]) else []
        assert altered == []
        filled.flush()
        assert canonical(filled.payload(self.ids()[: len(PAYLOADS)])) == canonical(PAYLOADS)

    def test_bulk(self, empty: Backend, case: Case) -> None:
        """Troubleshooting: engines page, cap and cut: store in batches, ask for every page, and for k as it is."""
        n, k = 3000, 400
        ids = np.random.default_rng(6).permutation(n).astype(np.int64) * 2 + 1
        data, queries = self.data(case, n, seed=2), self.data(case, 3, seed=1)
        payload = [{"n": i, "third": i % 3} for i in range(n)]
        empty.upsert(ids, data, payload)
        empty.flush()
        assert empty.count() == n
        truth = self.truth(empty, case, queries, data)
        # A graph does not promise the last of so many neighbours, nor as many that match a filter.
        exact = empty.is_exact(empty.SearchOptions(**(self.exhaustive or {})))
        recall = self.recall if exact else 0.8 * self.recall
        hits = self.find(empty, queries, k)
        assert (hits.ids != MISSING_ID).all(), f"a search for {k} of {n} items is not filled"
        self.agree(hits, truth, ids, recall)
        assert empty.payload(ids) == payload
        if empty.capabilities.vectors != "refused":
            assert len(empty.fetch(ids)) == n
            scrolled = np.concatenate([batch.ids for batch in empty.scroll()])
            assert np.array_equal(scrolled, np.sort(ids))
        if empty.capabilities.filter != "refused":
            truth[:, np.arange(n) % 3 != 0] = np.inf
            hits = self.find(empty, queries, k, {"third": 0})
            assert not exact or (hits.ids != MISSING_ID).all(), f"a search for {k} that match is not filled"
            self.agree(hits, truth, ids, self.recall if exact else 0)
        if empty.capabilities.delete != "refused":
            empty.delete(ids[: n - 500])
            empty.flush()
            assert empty.count() == 500
