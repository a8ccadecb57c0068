"""Moving everything from one store to another, interrupted and not, and telling where two differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _qdrant_server import QdrantServer
from cbir_connectors.lancedb import Lancedb
from cbir_connectors.qdrant import Qdrant
from cbir_connectors.usearch import Usearch
from hypothesis import given, settings
from hypothesis import strategies as st

from cbir_faiss.base import Backend
from cbir_faiss.collection.transfer import ONE_SIGN, compare, transfer
from cbir_faiss.errors import BackendError, ConfigError, InputError
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


def test_everything_arrives(source: Backend, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    target = Qdrant(path=str(tmp_path / "edge"))
    done = transfer(source, target, batch_size=200, progress=lambda n, total: seen.append((n, total)))
    assert (done.items, done.resumed, done.one_sign) == (500, 0, None)
    assert seen == [(200, 500), (400, 500), (500, 500)]
    difference = compare(source, target, queries=20)
    assert not difference
    assert (difference.items, difference.agreement) == (500, 1.0)
    assert transfer(source, target).items == 500  # again, over what is there
    assert target.count() == 500
    target.close()


def test_an_interrupted_push_goes_on(source: Backend, tmp_path: Path) -> None:
    journal = tmp_path / "here" / "journal"
    with QdrantServer() as server:
        target = Qdrant(url=server.url, retries=0, parallel=1)
        server.lives = 2
        with pytest.raises(BackendError, match="storing stopped"):
            transfer(source, target, journal=journal, batch_size=100)
        assert journal.exists()
        server.lives, server.writes = None, 0
        done = transfer(source, target, journal=journal, batch_size=100)
        assert (done.items, done.resumed) == (500, 200)
        assert server.writes == 3
        assert target.count() == 500
        assert not journal.exists()
        assert not compare(source, target)
        target.close()


def test_a_journal_is_not_believed_blindly(source: Backend, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    for text in ("", "{", "[]", '{"key": "other", "before": 0, "last": 600, "sent": 200}', '{"sent": 3}'):
        journal.write_text(text)
        target = Usearch()
        assert transfer(source, target, journal=journal).resumed == 0
        assert target.count() == 500
        target.close()
    # its own journal, but the target has lost what was sent
    target = Usearch()
    target.create(64, "binary")
    journal.write_text(f'{{"key": "{target!r} 64 binary", "before": 0, "last": 600, "sent": 200}}')
    assert transfer(source, target, journal=journal).resumed == 0
    assert target.count() == 500
    target.close()


def test_an_engine_that_loses_items_is_found_out(source: Backend) -> None:
    class Leaky(Usearch):
        def _flush(self) -> None:
            self._delete(np.array([3]))

    with pytest.raises(BackendError, match="holds 499 items after 500"):
        transfer(source, Leaky())


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
