"""Moving everything from one store to another, interrupted and not, and telling where two differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _postgres import running_postgres
from _qdrant_server import QdrantServer
from cbir_connectors.lancedb import Lancedb
from cbir_connectors.pgvector import Pgvector
from cbir_connectors.qdrant import Qdrant
from cbir_connectors.usearch import Usearch
from hypothesis import given, settings
from hypothesis import strategies as st

from cbir_faiss.base import Backend
from cbir_faiss.collection.transfer import ONE_SIGN, Transferred, compare, transfer
from cbir_faiss.errors import BackendError, CbirError, ConfigError, InputError
from cbir_faiss.types import Batch, Codes


def codes(n: int, bits: int = 64, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(0, 256, (n, bits // 8), dtype=np.uint8)


def payloads(n: int) -> list[dict[str, Any]]:
    return [{"label": str(i % 7), "n": i} for i in range(n)]


@pytest.fixture
def source() -> Iterator[Backend]:
    """500 codes under ids with gaps."""
    backend = Usearch()
    backend.upsert(np.arange(500) * 3, codes(500), payloads(500))
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    with running_postgres() as path:
        yield path


@pytest.fixture(params=["qdrant", "lancedb", "pgvector"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """An empty place in each engine that keeps what it is given."""
    if request.param == "pgvector":
        postgres = request.getfixturevalue("postgres")
        backend: Backend = Pgvector(path=str(postgres), table=tmp_path.name, overwrite=True)
    else:
        backend = {"qdrant": Qdrant, "lancedb": Lancedb}[request.param](path=str(tmp_path / "engine"))
    yield backend
    backend.close()


def did(done: Transferred) -> tuple[int, int, int, int]:
    return done.items, done.new, done.changed, done.removed


def test_everything_arrives(source: Backend, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    target = Qdrant(path=str(tmp_path / "edge"))
    done = transfer(source, target, batch_size=200, progress=lambda n, total: seen.append((n, total)))
    assert (did(done), done.one_sign) == ((500, 500, 0, 0), None)
    assert seen == [(200, 500), (400, 500), (500, 500)]
    difference = compare(source, target, queries=20)
    assert not difference
    assert (difference.items, difference.agreement) == (500, 1.0)
    target.close()


def test_a_transfer_makes_the_target_equal(source: Backend, engine: Backend) -> None:
    """Whatever the target held: other vectors, other payload, fewer items, items that are gone from the source."""
    assert did(transfer(source, engine)) == (500, 500, 0, 0)
    assert did(transfer(source, engine)) == (500, 0, 0, 0)  # again: nothing is sent
    source.upsert(np.arange(10) * 3, codes(10, seed=1), payloads(10))
    source.upsert(np.arange(10, 20) * 3, codes(500)[10:20], [{"label": "other"}] * 10)
    source.upsert(np.arange(100) * 3 + 1, codes(100, seed=2), payloads(100))
    source.delete(np.arange(300, 400) * 3)
    assert did(transfer(source, engine, dry_run=True)) == (500, 100, 20, 100)
    assert len(compare(source, engine, queries=0).extra) == 100  # it only looked
    assert did(transfer(source, engine, batch_size=30)) == (500, 100, 20, 100)
    assert not compare(source, engine, queries=0)
    assert engine.count() == 500


def test_items_that_only_the_target_has_may_stay(source: Backend) -> None:
    target = Usearch()
    target.upsert(np.arange(100) * 3 + 1, codes(100))
    assert did(transfer(source, target, keep_extra=True)) == (500, 500, 0, 0)
    assert target.count() == 600
    assert compare(source, target).extra.tolist() == [i * 3 + 1 for i in range(100)]


def test_most_of_a_target_is_not_removed_unasked(source: Backend) -> None:
    target = Usearch()
    transfer(source, target)
    source.delete(np.arange(249, 500) * 3)
    source.upsert(np.array([0]), codes(1, seed=7))
    with pytest.raises(CbirError, match=r"251 of its 500 items would be removed.*--yes"):
        transfer(source, target)
    assert len(compare(source, target, queries=0).vectors) == 1  # nothing was done
    assert did(transfer(source, target, dry_run=True)) == (249, 0, 1, 251)
    assert did(transfer(source, target, remove_most=True)) == (249, 0, 1, 251)
    assert not compare(source, target)


def test_a_source_of_which_everything_was_deleted(source: Backend) -> None:
    target = Usearch()
    transfer(source, target)
    source.delete(np.arange(500) * 3)
    assert did(transfer(source, target, remove_most=True)) == (0, 0, 0, 500)
    assert target.count() == 0


def test_an_interrupted_push_goes_on(source: Backend) -> None:
    with QdrantServer() as server:
        target = Qdrant(url=server.url, retries=0, parallel=1)
        server.lives = 2
        with pytest.raises(BackendError, match="storing stopped"):
            transfer(source, target, batch_size=100)
        server.lives, server.writes = None, 0
        assert did(transfer(source, target, batch_size=100)) == (500, 300, 0, 0)
        assert server.writes == 3
        assert not compare(source, target)
        target.close()


class Killed(Exception):
    pass


@pytest.mark.parametrize("calls", range(9))
def test_a_transfer_that_dies_at_any_call_goes_on(source: Backend, calls: int) -> None:
    class Mortal(Usearch):
        left: int | None = None

        def _die(self) -> None:
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise Killed

        def _upsert(self, *arguments: Any) -> None:
            self._die()
            super()._upsert(*arguments)

        def _delete(self, ids: Any) -> None:
            self._die()
            super()._delete(ids)

        def _flush(self) -> None:
            self._die()

    target = Mortal()
    target.upsert(np.arange(300) * 2, codes(300, seed=5), payloads(300))
    target.left = calls
    with pytest.raises(Killed):
        transfer(source, target, remove_most=True, batch_size=100)
    target.left = None
    transfer(source, target, remove_most=True, batch_size=100)
    assert not compare(source, target)
    assert target.count() == 500


def test_an_engine_that_loses_items_is_found_out(source: Backend) -> None:
    class Leaky(Usearch):
        def _flush(self) -> None:
            self._delete(np.array([3]))

    with pytest.raises(BackendError, match="holds 499 items after 500"):
        transfer(source, Leaky())


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [(True, 1), (1, True), (0, False), (1, 1.0), ([1], [True]), ({"a": 2.0}, {"a": 2}), ("1", 1), (None, False)],
)
def test_equal_in_python_is_not_equal_in_json(mine: Any, theirs: Any) -> None:
    one, two = Usearch(), Usearch()
    for backend, value in ((one, mine), (two, theirs)):
        backend.upsert(np.arange(2), codes(2), [{"x": value, "y": 1}, {"y": 1}])
    assert compare(one, two).payload.tolist() == [0]
    assert did(transfer(one, two)) == (2, 0, 1, 0)
    assert not compare(one, two)


def test_engines_keep_what_json_tells_apart(engine: Backend) -> None:
    values = [
        True,
        False,
        None,
        1,
        1.0,
        0,
        0.0,
        -2.0,
        1e15,
        1e16,
        1e300,
        2**53 + 1,
        -(2**63),
        [1, 1.0, True],
        {"a": [2.0]},
    ]
    source = Usearch()
    source.upsert(np.arange(len(values)), codes(len(values)), [{"x": value} for value in values])
    transfer(source, engine)
    assert not compare(source, engine)
    assert did(transfer(source, engine)) == (len(values), 0, 0, 0)


def test_the_order_of_keys_is_no_difference() -> None:
    one, two = Usearch(), Usearch()
    one.upsert(np.arange(1), codes(1), [{"x": 1, "y": [True, {"a": 1.0, "b": 2}]}])
    two.upsert(np.arange(1), codes(1), [{"y": [True, {"b": 2, "a": 1.0}], "x": 1}])
    assert not compare(one, two)


def test_what_does_not_go_together(source: Backend, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        transfer(Usearch(), Usearch())
    narrow = Usearch()
    narrow.create(32, "binary")
    with pytest.raises(ConfigError, match="dim 64, the other 32"):
        transfer(source, narrow)
    with pytest.raises(ConfigError, match="dim"):
        compare(source, narrow)
    x = np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32)
    one, two = Usearch(metric="l2"), Usearch(metric="ip")
    one.upsert(np.arange(5), x)
    with pytest.raises(ConfigError, match="metric l2, the other ip"):
        transfer(one, two)


def test_a_source_out_of_order(source: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    backwards = [Batch(np.array([2, 1]), codes(2), [{}, {}])]
    monkeypatch.setattr(source, "scroll", lambda batch_size=1000: iter(backwards))
    with pytest.raises(InputError, match="order of its ids"):
        transfer(source, Usearch())
    with pytest.raises(InputError, match="order of its ids"):
        compare(source, source)


def test_vectors_of_one_sign_are_noticed(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((200, 16), dtype=np.float32)
    for vectors, much in ((np.maximum(x, 0) + 1e-3, True), (x, False), (-np.abs(x), True)):
        source = Usearch(metric="l2")
        source.upsert(np.arange(200), vectors)
        share = transfer(source, Usearch(metric="l2")).one_sign
        assert share is not None
        assert (share > ONE_SIGN) == much


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    left=st.sets(st.integers(0, 60)), right=st.sets(st.integers(0, 60)), changed=st.sets(st.integers(0, 60)),
    batch_size=st.integers(1, 20),
)  # fmt: skip
def test_differences_are_found(left: set[int], right: set[int], changed: set[int], batch_size: int) -> None:
    data = codes(61)
    one, two = Usearch(), Usearch()
    for backend, ids, other in ((one, sorted(left), set()), (two, sorted(right), changed)):
        if ids:
            vectors, payload = data[ids], [{"n": i} for i in ids]
            for row, i in enumerate(ids):
                if i in other and i % 2:
                    vectors[row, 0] ^= 1
                elif i in other:
                    payload[row]["n"] = -1
            backend.upsert(np.array(ids), vectors, payload)
    found = compare(one, two, batch_size=batch_size, queries=5, k=3)
    both = left & right & changed
    assert found.missing.tolist() == sorted(left - right)
    assert found.extra.tolist() == sorted(right - left)
    assert found.vectors.tolist() == sorted(i for i in both if i % 2)
    assert found.payload.tolist() == sorted(i for i in both if not i % 2)
    assert bool(found) == bool(left ^ right or both)
    assert (found.agreement is None) == (not left or not right)
    if left:
        done = transfer(one, two, remove_most=True, batch_size=batch_size)
        assert did(done) == (len(left), len(left - right), len(both), len(right - left))
        assert not compare(one, two)


def test_half_precision_is_no_difference(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((300, 32), dtype=np.float32)
    source, target = Usearch(metric="cosine"), Lancedb(path=str(tmp_path), metric="cosine", datatype="float16")
    source.upsert(np.arange(300), x)
    transfer(source, target)
    found = compare(source, target)
    assert not found
    assert found.agreement is not None
    assert found.agreement > 0.95
    target.upsert(np.arange(10), -x[:10])
    assert compare(source, target, queries=0).vectors.tolist() == list(range(10))
    assert compare(source, target, queries=0).agreement is None
    target.close()
