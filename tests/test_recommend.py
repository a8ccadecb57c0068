"""The recommendation: the smallest index that is proven to be good enough, and what is said where none is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from _rows import made_up, raw

from cbir_faiss.errors import InputError
from cbir_faiss.report.recommend import Recommendation, recommend
from cbir_faiss.report.row import Row


def told(rows: list[Row], **options: Any) -> Recommendation:
    found = recommend(rows, **options)
    assert found is not None
    assert rows[found.index] is found.row
    return found


def noisy(mean: float, deviation: float = 0.05, queries: int = 200) -> Any:
    """Per-query values of exactly that mean, each row with the same pattern of noise."""
    noise = np.random.default_rng(0).normal(0, deviation, queries)
    return noise - noise.mean() + mean


def test_the_smallest_memory_that_is_proven_is_recommended() -> None:
    rows = [
        raw(0.84),
        made_up("itq", 64, 0.75, 8.0),
        made_up("itq", 256, 0.838, 32.0, p50=0.5),
        made_up("itq", 512, 0.85, 64.0),
    ]
    found = told(rows)
    assert found.row is rows[2]
    assert (found.tested, found.needed, found.supervised) == (3, None, None)
    assert found.difference == pytest.approx((-0.002, -0.002, -0.002))
    for part in (
        "Use hog with itq 256 bits",
        "map@5 0.838 against 0.840",
        "-0.0020 (95 % interval -0.0020 to -0.0020)",
        "32.0 instead of 5,120 bytes an item in memory",
        "32.0 instead of 5,120 on disk",
        "p50 0.50 instead of 1.00 ms a query (10 hits, 1 thread)",
    ):
        assert part in found.sentence


def test_a_codebook_counts() -> None:
    """PQ16 is 16 bytes of code, and with its codebook more than the binary codes beside it."""
    quantized = made_up("raw", None, 0.84, 430.0, backend="faiss-pq", exact=False)
    assert told([raw(0.84), quantized, made_up("itq", 256, 0.84, 45.0)]).row.codec == "itq"


def test_an_index_larger_than_raw_is_not_recommended() -> None:
    larger = made_up("raw", None, 0.84, 5623.0, backend="faiss", exact=False)
    found = told([raw(0.84), larger])
    assert found.index == 0
    assert found.sentence.startswith("Keep raw floats (hog with raw, faiss-flat l2): map@5 0.840, 5,120 bytes")
    assert "No smaller index whose memory is known was measured." in found.sentence
    assert found.tested == 0


def test_equal_memory_is_decided_by_disk_then_measure_then_time() -> None:
    base, common = raw(0.5), {"memory": 10.0}
    rows = [
        base,
        made_up("a", 64, 0.54, disk=30.0, **common),
        made_up("b", 64, 0.504, disk=20.0, p50=2.0, **common),
        made_up("c", 64, 0.496, disk=20.0, p50=1.0, **common),
        made_up("d", 64, 0.494, disk=20.0, p50=0.1, **common),
    ]
    assert told(rows).row is rows[3]  # b and c are 0.50, and c is faster; d is 0.49


def test_a_point_estimate_within_the_margin_is_not_enough() -> None:
    rows = [raw(np.full(60, 0.84)), made_up("itq", 64, noisy(0.838, 0.2, 60), 8.0)]
    found = told(rows)
    assert found.row is rows[0]
    assert found.difference is None
    assert found.needed is not None
    assert found.needed > 60
    assert "itq 64 bits" in found.sentence
    assert "-0.0020 (95 % interval -0.0" in found.sentence
    assert "queries instead of 60 it could be told" in found.sentence


def test_the_queries_said_to_be_needed_are_enough() -> None:
    few = noisy(0.838, 0.08, 60)
    found = told([raw(np.full(60, 0.84)), made_up("itq", 64, few, 8.0)])
    assert found.needed is not None
    more = np.tile(few, -(-found.needed // 60))
    again = told([raw(np.full(len(more), 0.84)), made_up("itq", 64, more, 8.0)])
    assert again.row.codec == "itq"


def test_no_number_of_queries_helps_where_the_mean_itself_loses() -> None:
    found = told([raw(0.84), made_up("itq", 64, 0.75, 8.0)])
    assert found.needed is None
    assert found.sentence.endswith("No smaller index comes within 0.01 of it.")


def test_the_margin_is_the_callers() -> None:
    rows = [raw(0.84), made_up("itq", 64, 0.75, 8.0)]
    found = told(rows, margin=0.1)
    assert (found.row, found.margin) == (rows[1], 0.1)
    assert "less than 0.1 is lost" in found.sentence
    with pytest.raises(InputError, match="margin"):
        recommend(rows, margin=-1.0)


def test_codes_that_saw_the_labels_do_not_compete() -> None:
    rows = [
        raw(0.84),
        made_up("ksh", 32, 0.95, 4.0, supervised=True),
        made_up("ksh", 64, 0.99, 8.0, supervised=True),
        made_up("itq", 256, 0.84, 32.0),
    ]
    found = told(rows)
    assert (found.row, found.tested) == (rows[3], 1)
    assert found.supervised is not None
    assert "hog with ksh 64 bits, faiss-flat: map@5 0.990, a difference of +0.1500" in found.supervised
    assert "8.0 instead of 5,120 bytes" in found.supervised
    trained = [raw(0.84, supervised=True), made_up("itq", 256, 0.84, 32.0, supervised=True)]
    assert recommend(trained) is None


def test_rows_over_the_latency_asked_for_do_not_compete() -> None:
    rows = [
        raw(0.84, p50=3.0),
        made_up("itq", 64, 0.84, 8.0, p50=2.0),
        made_up("itq", 256, 0.84, 32.0, p50=0.5),
        made_up("raw", None, 0.84, 6000.0, p50=0.1, backend="faiss-hnsw", exact=False),
    ]
    assert told(rows).row is rows[1]
    assert told(rows, max_ms=1.0).row is rows[2]
    assert told([rows[0], rows[3]]).row is rows[0]
    assert told([rows[0], rows[3]], max_ms=1.0).row is rows[3]  # raw is too slow, so what is larger may win
    kept = told(rows[:2], max_ms=1.0)
    assert kept.row is rows[0]
    assert "which is over the 1 ms asked for" in kept.sentence
    assert "No index that answers within 1 ms whose memory is known was measured" in kept.sentence


def test_rows_of_other_queries_or_unknown_memory_do_not_compete() -> None:
    base = raw(0.84)
    for other in (
        made_up("itq", 64, np.full(40, 0.84), 8.0),
        made_up("itq", 64, 0.84, 8.0, failed=1),
        made_up("itq", 64, 0.84, 8.0, source="list"),
        made_up("itq", 64, 0.84, None),
        Row.from_json(made_up("itq", 64, 0.84, 8.0).as_json()),
    ):
        assert told([base, other]).row is base


def test_the_best_raw_row_is_the_reference() -> None:
    rows = [raw(0.80, title="a"), raw(0.84, title="b"), made_up("itq", 64, 0.80, 8.0, title="a")]
    assert told(rows).row is rows[1]
    alike = [raw(0.84, None, backend="engine"), raw(0.8399, 5000.0), made_up("itq", 64, 0.84, 8.0)]
    assert "instead of 5,000" in told(alike).sentence


def test_there_is_none_without_what_it_takes() -> None:
    assert recommend([]) is None
    assert recommend([made_up("itq", 64, 0.8)]) is None
    assert recommend([raw(0.84, None), made_up("itq", 64, 0.84)]) is None
    stored = [Row.from_json(row.as_json()) for row in (raw(0.84), made_up("itq", 64, 0.84))]
    assert recommend(stored) is None


def test_neighbours_are_compared_within_one_extractor() -> None:
    def by_neighbours(row: Row, share: float) -> Row:
        row.metrics, row.values = {"knn_recall@10": share}, {"knn_recall@10": np.full(50, share)}
        return row

    rows = [
        by_neighbours(raw(1.0, title="a"), 1.0),
        by_neighbours(made_up("itq", 64, 1.0, 8.0, title="b"), 1.0),
        by_neighbours(made_up("itq", 128, 1.0, 16.0, title="a"), 1.0),
    ]
    found = told(rows)
    assert (found.row, found.measure) == (rows[2], "knn_recall@10")


def test_one_query_is_no_proof() -> None:
    found = told([raw(np.full(1, 0.8)), made_up("itq", 64, np.full(1, 0.9), 8.0)])
    assert (found.row.codec, found.needed) == ("raw", None)


def test_it_can_be_stored() -> None:
    rows = [raw(0.84), made_up("itq", 256, 0.838, 32.0), made_up("ksh", 64, 0.9, 8.0, supervised=True)]
    found = told(rows)
    stored = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert stored["row"] == 1
    assert (stored["title"], stored["name"]) == ("hog", "itq 256 bits, faiss-flat")
    assert stored["sentence"] == found.sentence
    assert stored["supervised"] == found.supervised
    assert len(stored["difference"]) == 3
