"""Rescorers against distances taken one by one in float64."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbir_faiss.base import registry
from cbir_faiss.errors import ConfigError, CorruptCollection, DimensionMismatch, InputError
from cbir_faiss.rescorers import _rerank
from cbir_faiss.types import Hits

RNG = np.random.default_rng(0)
ITEMS = (RNG.standard_normal((300, 24)) + 3).astype(np.float32)
QUERIES = (RNG.standard_normal((37, 24)) + 3).astype(np.float32)


def hits_of(ids):
    ids = np.asarray(ids, np.int64)
    return Hits(ids, np.where(ids < 0, np.inf, np.arange(ids.shape[1])).astype(np.float32))


def store(rescorer, items=ITEMS):
    """``fetch`` over what the rescorer packs, and a record of what was asked of it."""
    packed = rescorer.pack({"embedding": items})
    return Stored(packed)


class Stored:
    def __init__(self, packed):
        self.packed, self.asked = packed, []

    def __call__(self, ids, column):
        self.asked.append(ids)
        return self.packed[column][ids]


def everything():
    return hits_of(np.stack([RNG.permutation(len(ITEMS)) for _ in QUERIES]))


def expected(metric, center, items=ITEMS, queries=QUERIES):
    mean = items.astype(np.float64).mean(axis=0) if center else 0
    x, q = items.astype(np.float64) - mean, queries.astype(np.float64) - mean
    if metric == "l2":
        return ((q[:, None] - x[None]) ** 2).sum(axis=2)
    if metric == "ip":
        return -(queries.astype(np.float64) @ items.T)
    return 1 - (q @ x.T) / (np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(x, axis=1))


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_float_ranks_by_the_exact_distance(metric, center):
    rescorer = registry.make("rescorers", "float", metric=metric, center=center, candidates="all")
    rescorer.fit({"embedding": ITEMS})
    hits = rescorer.rescore({"embedding": QUERIES}, everything(), store(rescorer), k=10)
    truth = expected(metric, center)
    assert hits.ids.dtype == np.int64
    assert hits.distances.dtype == np.float32
    np.testing.assert_array_equal(hits.ids, np.argsort(truth, axis=1)[:, :10])
    np.testing.assert_allclose(hits.distances, np.sort(truth, axis=1)[:, :10], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "dtype", "error"), [("float16", np.float16, 2e-3), ("int8", np.uint8, 2e-2)])
def test_float_keeps_fewer_bytes_at_a_small_error(kind, dtype, error):
    rescorer = registry.make("rescorers", "float", store=kind, candidates="all").fit({"embedding": ITEMS})
    packed = rescorer.pack({"embedding": ITEMS})["embedding"]
    assert packed.dtype == dtype
    assert packed.shape == ITEMS.shape
    hits = rescorer.rescore({"embedding": QUERIES}, everything(), store(rescorer), k=len(ITEMS))
    truth = np.take_along_axis(expected("cosine", True), hits.ids, axis=1)
    np.testing.assert_allclose(hits.distances, truth, atol=error)


def test_float_clips_what_is_added_later_and_survives_a_constant_dimension():
    items = ITEMS.copy()
    items[:, 3] = 7
    rescorer = registry.make("rescorers", "float", store="int8").fit({"embedding": items})
    later = rescorer.pack({"embedding": np.full((1, 24), 1e6, np.float32)})["embedding"]
    assert (later == 255).all()
    assert (rescorer.pack({"embedding": items})["embedding"][:, 3] == 127).all()


def test_more_results_than_candidates_are_all_ranked():
    """The caller asks the first stage for max(k, candidates); nothing found is thrown away."""
    rescorer = registry.make("rescorers", "float", candidates=5).fit({"embedding": ITEMS})
    assert rescorer.candidates == 5
    first = hits_of(everything().ids[:, :10])
    hits = rescorer.rescore({"embedding": QUERIES}, first, store(rescorer), k=10)
    np.testing.assert_array_equal(np.sort(hits.ids), np.sort(first.ids))
    assert (np.diff(hits.distances) >= 0).all()


def test_more_candidates_than_hits_are_no_error():
    rescorer = registry.make("rescorers", "float", candidates=1000).fit({"embedding": ITEMS})
    hits = rescorer.rescore({"embedding": QUERIES}, hits_of([[4, 2]] * len(QUERIES)), store(rescorer), k=10)
    assert hits.ids.shape == (len(QUERIES), 2)


def test_missing_hits_stay_last_and_are_never_fetched():
    rescorer = registry.make("rescorers", "float").fit({"embedding": ITEMS})
    ids = [[5, -1, -1], [-1, -1, -1], [1, 2, 3]]
    fetch = store(rescorer)
    hits = rescorer.rescore({"embedding": QUERIES[:3]}, hits_of(ids), fetch, k=3)
    assert hits.ids[0].tolist() == [5, -1, -1]
    assert hits.ids[1].tolist() == [-1, -1, -1]
    assert np.isinf(hits.distances[0, 1:]).all()
    assert np.isinf(hits.distances[1]).all()
    assert all((asked >= 0).all() for asked in fetch.asked)


def test_nothing_found_at_all():
    rescorer = registry.make("rescorers", "float").fit({"embedding": ITEMS})
    for ids in (np.full((2, 3), -1), np.empty((2, 0))):
        hits = rescorer.rescore({"embedding": QUERIES[:2]}, hits_of(ids), store(rescorer), k=3)
        assert hits.ids.shape == ids.shape


def test_a_vector_without_direction_is_at_one_and_equals_keep_their_order():
    items = np.zeros((4, 8), np.float32)
    rescorer = registry.make("rescorers", "float").fit({"embedding": items})
    hits = rescorer.rescore({"embedding": items[:1]}, hits_of([[2, 0, 3, 1]]), store(rescorer, items), k=4)
    assert hits.ids[0].tolist() == [2, 0, 3, 1]
    assert hits.distances[0].tolist() == [1, 1, 1, 1]


def test_few_and_many_queries_agree_with_one():
    rescorer = registry.make("rescorers", "float", candidates=50).fit({"embedding": ITEMS})
    fetch, first = store(rescorer), everything()
    together = rescorer.rescore({"embedding": QUERIES}, first, fetch, k=50)
    for i in range(len(QUERIES)):
        one = Hits(first.ids[i : i + 1], first.distances[i : i + 1])
        alone = rescorer.rescore({"embedding": QUERIES[i : i + 1]}, one, fetch, k=50)
        np.testing.assert_allclose(alone.distances[0], together.distances[i], atol=1e-6)


@settings(deadline=None, max_examples=50, derandomize=True)
@given(bits=st.integers(1, 70), items=st.integers(1, 40), queries=st.integers(1, 20), seed=st.integers(0, 99))
def test_asymmetric_is_the_signed_sum_of_projections(bits, items, queries, seed):
    rng = np.random.default_rng(seed)
    signs = rng.integers(0, 2, (items, bits), dtype=np.uint8)
    codes = np.packbits(signs, axis=1)
    projection = rng.standard_normal((queries, bits)).astype(np.float32)
    first = hits_of(np.stack([rng.permutation(items) for _ in range(queries)]))
    rescorer = registry.make("rescorers", "asymmetric", candidates="all")
    hits = rescorer.rescore({"projection": projection}, first, lambda ids, column: codes[ids], k=items)
    truth = -(projection @ (signs * 2.0 - 1).T)
    np.testing.assert_allclose(hits.distances, np.sort(truth, axis=1), atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(truth, hits.ids, axis=1), hits.distances, atol=1e-4)


def test_asymmetric_keeps_no_floats():
    rescorer = registry.make("rescorers", "asymmetric")
    assert rescorer.needs_items == ("code",)
    assert rescorer.needs_queries == ("projection",)
    assert rescorer.pack({"embedding": ITEMS}) == {}
    assert rescorer.resident_bytes(10, {"code": 32, "embedding": 5120}) == 320


def test_asymmetric_refuses_codes_of_another_length():
    codes = np.zeros((3, 4), np.uint8)
    rescorer = registry.make("rescorers", "asymmetric")
    with pytest.raises(DimensionMismatch, match="projections of 16 bits, codes of 32"):
        rescorer.rescore({"projection": np.ones((1, 16), np.float32)}, hits_of([[0, 1]]), lambda i, c: codes[i], k=2)


def test_none_changes_nothing():
    first = everything()
    hits = registry.make("rescorers", "none").rescore({}, first, lambda ids, column: ids, k=7)
    np.testing.assert_array_equal(hits.ids, first.ids[:, :7])
    np.testing.assert_array_equal(hits.distances, first.distances[:, :7])


@pytest.mark.parametrize("kind", ["float32", "float16", "int8"])
def test_saved_state_ranks_the_same(tmp_path, kind):
    rescorer = registry.make("rescorers", "float", store=kind).fit({"embedding": ITEMS})
    rescorer.save(tmp_path / "state")
    again = registry.make("rescorers", "float", store=kind, candidates=9).restore(tmp_path / "state")
    first = everything()
    for k in (rescorer, again):
        assert k.pack({"embedding": ITEMS})["embedding"].dtype == np.dtype({"int8": "uint8"}.get(kind, kind))
    one = rescorer.rescore({"embedding": QUERIES}, Hits(first.ids[:, :9], first.distances[:, :9]), store(rescorer), 9)
    two = again.rescore({"embedding": QUERIES}, Hits(first.ids[:, :9], first.distances[:, :9]), store(again), 9)
    np.testing.assert_array_equal(one.ids, two.ids)


def test_state_of_another_rescorer_or_altered_is_refused(tmp_path):
    path = tmp_path / "state"
    registry.make("rescorers", "float").fit({"embedding": ITEMS}).save(path)
    with pytest.raises(CorruptCollection, match="int8"):
        registry.make("rescorers", "float", store="int8").restore(path)
    with pytest.raises(CorruptCollection, match="state of 'float'"):
        registry.make("rescorers", "none").restore(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptCollection, match="cut short or altered"):
        registry.make("rescorers", "float").restore(path)


def test_bad_input_is_one_clear_error():
    rescorer = registry.make("rescorers", "float")
    fetch = lambda ids, column: ITEMS[ids]  # noqa: E731
    with pytest.raises(InputError, match="not fitted"):
        rescorer.rescore({"embedding": QUERIES[:1]}, hits_of([[0]]), fetch, k=1)
    with pytest.raises(InputError, match="no vectors"):
        rescorer.fit({"embedding": ITEMS[:0]})
    rescorer.fit({"embedding": ITEMS})
    with pytest.raises(InputError, match="needs 'embedding' of 1 queries, got none"):
        rescorer.rescore({}, hits_of([[0]]), fetch, k=1)
    with pytest.raises(InputError, match="got 2 rows"):
        rescorer.rescore({"embedding": QUERIES[:2]}, hits_of([[0]]), fetch, k=1)
    with pytest.raises(DimensionMismatch, match="24 dimensions, got 3"):
        rescorer.rescore({"embedding": QUERIES[:1, :3]}, hits_of([[0]]), fetch, k=1)
    with pytest.raises(InputError, match="NaN"):
        rescorer.rescore({"embedding": np.full((1, 24), np.nan, np.float32)}, hits_of([[0]]), fetch, k=1)
    big = registry.make("rescorers", "float", store="float16").fit({"embedding": ITEMS})
    with pytest.raises(InputError, match="does not fit in float16"):
        big.pack({"embedding": ITEMS * 1e6})


@pytest.mark.parametrize(
    "options", [{"candidates": 0}, {"candidates": "some"}, {"metric": "hamming"}, {"store": "int4"}]
)
def test_bad_options_are_config_errors(options):
    with pytest.raises(ConfigError):
        registry.make("rescorers", "float", **options)


class Lying:
    """``fetch`` of whoever says where rows lie: those of even ids in one matrix, of odd ones in another."""

    def __init__(self, rescorer, items):
        packed = rescorer.pack({"embedding": items})["embedding"]
        self.parts = [np.ascontiguousarray(packed[::2]), np.ascontiguousarray(packed[1::2])]

    def __call__(self, ids, column):
        raise AssertionError("what lies in matrices is not fetched")

    def located(self, ids, column):
        return [(x, np.where((ids >= 0) & (ids % 2 == odd), ids // 2, -1)) for odd, x in enumerate(self.parts)]


@settings(deadline=None, max_examples=40)
@given(
    metric=st.sampled_from(["cosine", "l2", "ip"]),
    center=st.booleans(),
    queries=st.integers(1, 5),
    candidates=st.integers(0, 12),
    offset=st.sampled_from([0.0, 3.0, 100.0]),
    seed=st.integers(0, 50),
)
def test_rows_are_scored_where_they_lie(metric, center, queries, candidates, offset, seed):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(seed)
    items = (rng.standard_normal((30, 16)) + offset).astype(np.float32)
    asked = (rng.standard_normal((queries, 16)) + offset).astype(np.float32)
    ids = rng.integers(-1, 30, (queries, candidates))
    ids = np.take_along_axis(ids, np.argsort(ids < 0, axis=1, kind="stable"), 1)
    rescorer = registry.make("rescorers", "float", metric=metric, center=center).fit({"embedding": items})
    hits = rescorer.rescore({"embedding": asked}, hits_of(ids), Lying(rescorer, items), k=12)
    np.testing.assert_array_equal(np.sort(hits.ids, axis=1), np.sort(ids, axis=1))
    assert (np.diff(hits.distances[np.isfinite(hits.distances).all(axis=1)], axis=1) >= 0).all()
    exact = np.take_along_axis(expected(metric, center, items, asked), np.maximum(hits.ids, 0), axis=1)
    exact[hits.ids < 0] = np.inf
    np.testing.assert_allclose(hits.distances, exact, rtol=2e-5, atol=2e-6)


def test_what_lies_and_has_no_direction_is_at_one():
    pytest.importorskip("faiss")
    items = np.zeros((4, 8), np.float32)
    rescorer = registry.make("rescorers", "float").fit({"embedding": items})
    hits = rescorer.rescore({"embedding": items[:1]}, hits_of([[2, 0, 3, -1]]), Lying(rescorer, items), k=4)
    assert hits.ids[0].tolist() == [2, 0, 3, -1]
    assert hits.distances[0].tolist() == [1, 1, 1, np.inf]


def test_what_is_kept_in_fewer_bytes_is_fetched():
    rescorer = registry.make("rescorers", "float", store="int8").fit({"embedding": ITEMS})
    fetch = store(rescorer)
    fetch.located = None  # not even asked
    rescorer.rescore({"embedding": QUERIES[:2]}, hits_of([[1, 2], [3, 4]]), fetch, k=2)
    assert fetch.asked


def test_int8_loses_no_more_than_half_a_step_of_each_dimension():
    items = np.random.default_rng(0).standard_normal((500, 24)).astype(np.float32) * np.geomspace(
        0.01, 10, 24, dtype="f4"
    )
    rescorer = registry.make("rescorers", "float", store="int8").fit({"embedding": items})
    kept = rescorer.unpack(rescorer.pack({"embedding": items}))["embedding"]
    bound = np.linalg.norm((items.max(axis=0) - items.min(axis=0)) / 255) / 2
    apart = np.linalg.norm(kept - items, axis=1)
    assert apart.max() <= bound * (1 + 1e-4)
    query = items[:1] + 1
    moved = np.abs(np.linalg.norm(query - kept, axis=1) - np.linalg.norm(query - items, axis=1))
    assert moved.max() <= bound * (1 + 1e-4)


def test_int8_is_the_range_of_each_dimension_in_255_steps():
    rescorer = registry.make("rescorers", "float", store="int8").fit({"embedding": ITEMS})
    packed = rescorer.pack({"embedding": ITEMS})["embedding"]
    assert (packed.min(axis=0) == 0).all()
    assert (packed.max(axis=0) == 255).all()
    step = (ITEMS.max(axis=0) - ITEMS.min(axis=0)) / 255
    unpacked = rescorer.unpack({"embedding": packed})["embedding"]
    assert (np.abs(unpacked - ITEMS) <= step * 0.501 + 1e-6).all()
    below = rescorer.pack({"embedding": ITEMS.min(axis=0, keepdims=True) - 1})["embedding"]
    assert (below == 0).all()


def test_int8_has_steps_for_a_dimension_that_has_not_varied_yet():
    items = ITEMS.copy()
    items[:, 3] = 5
    rescorer = registry.make("rescorers", "float", store="int8").fit({"embedding": items})
    step = float(np.median(np.ptp(np.delete(items, 3, axis=1), axis=0))) / 255
    some = np.repeat(items[:1], 4, axis=0)
    some[:, 3] = (5, 5 + 0.4, 5 - 0.4, 5 + 100 * step)
    kept = rescorer.unpack(rescorer.pack({"embedding": some}))["embedding"]
    np.testing.assert_allclose(kept[:, 3], some[:, 3], atol=0.51 * step)


@pytest.mark.parametrize(("share", "told"), [(0.5, True), (0.002, False)])
def test_int8_tells_once_that_many_are_clipped(share, told, caplog):
    rescorer = registry.make("rescorers", "float", store="int8").fit({"embedding": ITEMS})
    more = np.repeat(ITEMS[:1], 1_000, axis=0)
    more[: round(share * len(more))] += 1_000
    for _ in range(2):
        rescorer.pack({"embedding": more})
    assert [record.message for record in caplog.records] == [
        "rescorer 'float', store: int8: 500 of 1000 items have values beyond the range that was learned, and are "
        "clipped to it; build the collection anew, or use store: float16"
    ][: int(told)]


@pytest.mark.parametrize("kind", ["float16", "int8"])
def test_many_queries_are_shared_among_threads(kind, monkeypatch):
    rescorer = registry.make("rescorers", "float", store=kind).fit({"embedding": ITEMS})
    hits = hits_of(np.stack([RNG.choice(300, 20, replace=False) for _ in range(100)]))
    queries = {"embedding": RNG.standard_normal((100, 24)).astype(np.float32)}
    alone = rescorer.rescore(queries, hits, store(rescorer), k=10)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr("cbir_faiss._lib.threads.ONE_THREAD_BYTES", 1)
    fetch, callers = store(rescorer), set()

    def told(ids, column):
        callers.add(threading.get_ident())
        time.sleep(0.001)  # so that no thread is through before another begins
        return fetch(ids, column)

    together = rescorer.rescore(queries, hits, told, k=10)
    assert len(callers) > 1
    np.testing.assert_array_equal(together.ids, alone.ids)
    np.testing.assert_array_equal(together.distances, alone.distances)


@pytest.mark.parametrize("shared", [True, False], ids=["alike", "apart"])
def test_the_size_of_blocks_changes_nothing(shared, monkeypatch):
    rescorer = registry.make("rescorers", "float", metric="l2").fit({"embedding": ITEMS})
    ids = everything().ids if shared else RNG.integers(0, 300, (len(QUERIES), 6))
    ids[3, -2:] = -1
    truth = np.where(ids < 0, np.inf, np.take_along_axis(expected("l2", False), np.maximum(ids, 0), axis=1))
    for queries, rows_bytes in ((16, 1 << 23), (5, 4 * 24 * 3), (1, 1)):
        monkeypatch.setattr(_rerank, "_QUERIES", queries)
        monkeypatch.setattr(_rerank, "_ROWS_BYTES", rows_bytes)
        hits = rescorer.rescore({"embedding": QUERIES}, hits_of(ids), store(rescorer), k=400)
        np.testing.assert_allclose(hits.distances, np.sort(truth, axis=1), rtol=1e-4, atol=1e-4)


def test_candidates_that_queries_share_are_read_once():
    rescorer = registry.make("rescorers", "float").fit({"embedding": ITEMS})
    fetch = store(rescorer)
    rescorer.rescore({"embedding": QUERIES[:16]}, hits_of(everything().ids[:16]), fetch, k=5)
    assert sum(map(len, fetch.asked)) == len(ITEMS)
    far = store(rescorer)
    rescorer.rescore({"embedding": QUERIES[:4]}, hits_of([[0, 1], [299, 2], [3, 4], [150, 5]]), far, k=2)
    assert sum(map(len, far.asked)) == 8


def test_no_more_than_float16_holds_and_no_less():
    largest = float(np.finfo(np.float16).max)
    rescorer = registry.make("rescorers", "float", store="float16").fit({"embedding": ITEMS})
    packed = rescorer.pack({"embedding": np.full((1, 24), -largest, np.float32)})["embedding"]
    assert np.isfinite(packed).all()
    with pytest.raises(InputError, match="65600 does not fit in float16"):
        rescorer.pack({"embedding": np.full((1, 24), -65600, np.float32)})


def test_defaults_of_the_options():
    options = registry.make("rescorers", "float").options.model_dump()
    assert options == {"candidates": 100, "metric": "cosine", "center": True, "store": "float32"}
    assert registry.make("rescorers", "asymmetric").candidates == 100
    assert registry.make("rescorers", "phash").options.model_dump() == {"candidates": 100, "formula": "strict"}
    relevance = registry.make("rescorers", "relevance").options.model_dump()
    assert relevance == {"candidates": 100, "t": 0.2, "priors": "none"}
    assert registry.make("rescorers", "float", candidates=1).candidates == 1


def test_candidates_reach_as_far_as_another_order_can():
    """By the printed formula a hash outweighs one bit of the code, and never two."""
    assert registry.make("rescorers", "phash").reach == 0
    assert registry.make("rescorers", "phash", formula="printed").reach == 1
    assert registry.make("rescorers", "float").reach is None
