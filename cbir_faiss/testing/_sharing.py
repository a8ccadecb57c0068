"""Several at once: threads of one backend, and several backends that have the same collection open."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from cbir_faiss.base import Backend
from cbir_faiss.testing._backends import PAYLOADS, BackendTests, Case, ids_of, refused


class Sharing(BackendTests):
    """Readers and writers side by side."""

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

    @pytest.fixture
    def second(self, filled: Backend, case: Case, tmp_path: Path) -> Iterator[Backend]:
        """Opens what ``filled`` has open, where the engine lets it."""
        if not self.keeps(filled):
            pytest.skip("keeps nothing that another could open")
        if filled.capabilities.shared == "refused":
            pytest.skip("is for one at a time")
        backend = self.make(tmp_path, case)
        yield backend
        backend.close()

    def test_one_at_a_time(self, filled: Backend, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: say ``shared="refused"`` where the engine locks its files, and one line to the second."""
        if filled.capabilities.shared != "refused":
            pytest.skip("may be open in several places")
        assert refused(lambda: self.make(tmp_path, case)), "two have it open"
        assert filled.count() == self.items

    def test_a_second_handle_sees_what_is_flushed(self, filled: Backend, second: Backend, case: Case) -> None:
        """Troubleshooting: nothing that one handle remembers (a version, a count) may hide another's writes."""
        ids, data = self.ids(), self.data(case)
        assert (second.dim, second.kind, second.metric) == (filled.dim, filled.kind, filled.metric)
        for one, other in ((filled, second), (second, filled)):
            assert other.count() == self.items
            self.agree(self.find(other, data[:3]), self.truth(other, case, data[:3], data), ids)
            new = self.data(case, 4, seed=10 + (one is second))
            payload = [{"label": f"new {n}", "second": one is second} for n in range(4)]
            one.upsert(ids[:4], new, payload)
            one.flush()
            data[:4] = new
            self.agree(self.find(other, new), self.truth(other, case, new, data), ids)
            assert other.payload(ids[:6]) == [*payload, *PAYLOADS[4:6]]
            if other.capabilities.filter != "refused":
                assert ids_of(self.find(other, new, 9, {"label": "new 2"})) == {int(ids[2])}
            if one.capabilities.delete != "refused":
                one.delete(ids[-1:])
                one.flush()
                assert other.count() == self.items - 1
                other.upsert(ids[-1:], data[-1:])
                other.flush()

    def test_two_writers(self, filled: Backend, second: Backend, case: Case) -> None:
        """Troubleshooting: an id is stored once, whoever stores it; the engine must find it, or serialise writers."""
        data, both = self.data(case, 60, seed=8), (filled, second)
        for turn, backend in enumerate([*both, *both]):
            backend.upsert(np.arange(1000, 1020), data[:20], [{"turn": turn}] * 20)
            backend.flush()
        for backend in both:
            assert backend.count() == self.items + 20
            assert backend.payload(np.arange(1000, 1020)) == [{"turn": 3}] * 20
        errors: list[BaseException] = []

        def write(backend: Backend, first: int) -> None:
            try:
                for start in range(first, first + 40, 10):
                    rows = slice(start, start + 10)
                    backend.upsert(np.arange(2000, 2060)[rows], data[rows], [{"first": first}] * 10)
                backend.flush()
            except BaseException as error:  # must reach the test
                errors.append(error)

        writers = [threading.Thread(target=write, args=pair) for pair in ((filled, 0), (second, 20))]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert errors == []
        for backend in both:
            assert backend.count() == self.items + 20 + 60
            firsts = [payload["first"] for payload in backend.payload(np.arange(2000, 2060))]
            assert firsts[:20] + firsts[40:] == [0] * 20 + [20] * 20
            hits = self.find(backend, data[:2], self.items + 80)
            assert ids_of(hits) >= set(range(2000, 2060))

    def test_a_table_has_one_owner(self, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: keep the owner of a ``Shape`` in the engine, with ``_adopt`` to change it, or keep none."""
        mine = self.make(tmp_path, case)
        mine.claim("mine")
        self.create(mine, case)
        mine.upsert(self.ids(), self.data(case))
        mine.flush()
        mine.close()
        if not self.keeps(mine):
            pytest.skip("keeps nothing by itself")
        with closing(self.make(tmp_path, case)) as stranger:
            kept = refused(lambda: stranger.claim("theirs"))
        for owner in (None, "theirs"):
            with closing(self.make(tmp_path, case)) as stranger:
                refused(partial(stranger.claim, owner))
                for write in self._writes(stranger, case):
                    assert refused(write) == kept, f"an owner is kept: {kept}, and yet"
                stranger.flush()
                assert stranger.count() == self.items
                self.find(stranger, self.data(case)[:2])  # everybody reads
        with closing(self.make(tmp_path, case)) as again:
            again.claim("mine")
            for write in self._writes(again, case):
                write()
            again.flush()
            assert again.count() == self.items

    def test_a_table_of_nobody_is_adopted(self, filled: Backend, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: a table without an owner is written to by whoever claims nothing, or adopts it."""
        if not self.keeps(filled):
            pytest.skip("keeps nothing by itself")
        filled.close()
        with closing(self.make(tmp_path, case)) as mine:
            kept = refused(lambda: mine.claim("mine"))
            mine.claim("mine", adopt=True)
            mine.upsert(self.ids()[:1], self.data(case)[:1])
            mine.flush()
        with closing(self.make(tmp_path, case)) as stranger:
            assert refused(lambda: stranger.claim("theirs", adopt=True)) == kept
            assert stranger.count() == self.items

    def _writes(self, backend: Backend, case: Case) -> list[Callable[[], None]]:
        ids, data = self.ids()[:2], self.data(case)[:2]
        writes = [lambda: backend.delete(ids)] if backend.capabilities.delete != "refused" else []
        return [*writes, lambda: backend.upsert(ids, data)]
