"""What every part of a backend's contract works with: an engine to test, seeded content, and NumPy's answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from cbir_faiss.base import Backend
from cbir_faiss.errors import CbirError
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


class BackendTests(Contract):
    """Makes, fills and searches what ``plugin`` names; the tests are in the classes that derive from this."""

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

    def keeps(self, backend: Backend) -> bool:
        """Whether its engine stores what outlives it, where another can open it."""
        return backend.own_storage and backend.capabilities.persist != "refused"

    def twin(self, backend: Backend, **changed: Any) -> Backend:
        """Another one with the options of ``backend``, some of them ``changed``."""
        return type(backend)(**{**chosen_options(backend), **changed})

    # -- machinery

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", self.all_cases(), ids="-".join)

    def all_cases(self) -> Sequence[Case]:
        """``cases``, or all that the plugin declares."""
        declared = [(k, m) for k in sorted(self.plugin.accepts) for m in self.plugin.metrics]
        # Hamming goes with codes, unless the backend makes its codes itself, from floats.
        return self.cases or [c for c in declared if (c[0] == "binary") == (c[1] == "hamming")] or declared

    @pytest.fixture
    def empty(self, case: Case, tmp_path: Path) -> Iterator[Backend]:
        """Created and trained, holding nothing."""
        backend = self.make(tmp_path, case)
        self.create(backend, case)
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

    def agree(self, hits: Hits, truth: Matrix, ids: Ids, recall: float | None = None) -> None:
        """``hits`` are nearest neighbours by the distances ``truth`` ``(queries, items)``; inf where not allowed.

        Which of several items at one distance is returned is left to the engine.
        """
        k, wanted, right = hits.ids.shape[1], 0, 0
        least = self.recall if recall is None else recall
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
        assert right >= least * wanted, f"{right} of {wanted} true neighbours were found"

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

    def create(self, backend: Backend, case: Case) -> None:
        """Create and train ``backend``."""
        backend.create(self.width(case), case[0])
        backend.train(self.data(case))


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


def ids_of(hits: Hits) -> set[int]:
    """All ids among ``hits``."""
    return set(hits.ids.ravel().tolist()) - {MISSING_ID}


def chosen_options(backend: Backend) -> dict[str, Any]:
    """The options that ``backend`` was made with, as JSON."""
    return dict(backend.options.model_dump(mode="json", exclude_unset=True))


def canonical(payload: Sequence[Mapping[str, Any]]) -> list[str]:
    """Payloads as texts that differ where true is 1, 1 is 1.0, or the last digit of an integer is another."""
    return [json.dumps(dict(value), sort_keys=True) for value in payload]


def refused(call: Callable[[], Any]) -> bool:
    """Whether ``call`` fails, as everything fails here: a CbirError of one line. Anything else is raised."""
    try:
        call()
    except CbirError as error:
        said = str(error)
    else:
        return False
    assert said.strip(), "an error that says nothing"
    assert len(said.splitlines()) == 1, f"not one line: {said}"
    return True
