"""A backend says what it is, refuses what it cannot take, and fails in one line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbir_faiss.base import Backend
from cbir_faiss.errors import ConfigError, DimensionMismatch, InputError, UnknownId, Unsupported
from cbir_faiss.testing._backends import BackendTests, Case, refused
from cbir_faiss.types import MISSING_ID


class Form(BackendTests):
    """What it declares, an empty one, bad input, and how it fails."""

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

    # -- failures

    def test_fails_in_one_line_when_closed(self, filled: Backend, case: Case) -> None:
        """Troubleshooting: put every call into a client in ``engine_errors``; opening again by itself is fine, too."""
        ids, data = self.ids()[:2], self.data(case)[:2]
        filled.close()
        calls: list[Callable[[], Any]] = [
            lambda: filled.upsert(ids, data),
            filled.flush,
            lambda: filled.delete(ids),
            lambda: filled.search(data, 3),
            filled.count,
            lambda: filled.payload(ids),
            lambda: filled.fetch(ids),
            lambda: list(filled.scroll()),
            lambda: filled.range_search(data, 1.0),
        ]
        for call in calls:
            refused(call)
        filled.close()

    def test_an_unusable_place(self, case: Case, tmp_path: Path) -> None:
        """Troubleshooting: opening a file or folder is a call into the client like any other."""
        if "path" not in self.plugin.Options.model_fields:
            pytest.skip("is not told a path")
        probe = self.make(tmp_path, case)
        probe.close()
        file = tmp_path / "file"
        for place in (file, file / "below"):
            file.write_text("this is no engine's file, although it stands where one is looked for\n" * 100)
            assert refused(partial(self._used, probe, place, case)), f"{place} was taken for an engine's"

    def _used(self, like: Backend, place: Path, case: Case) -> None:
        backend = self.twin(like, path=str(place))
        try:
            self.create(backend, case)
            backend.upsert(self.ids(), self.data(case))
            backend.flush()
        finally:
            backend.close()
