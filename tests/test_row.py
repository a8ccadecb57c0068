"""Rows of a comparison: what is stored of them, what 0.1 stored, and the table of them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from _rows import made_up, raw

from cbir_faiss.errors import CorruptCollection
from cbir_faiss.report.charts import family_of
from cbir_faiss.report.row import BYTES, Row, knn_measure, main_measure, name_of, rows_of, tell_apart
from cbir_faiss.report.table import COLUMNS, DETAILS, text_table

STORED = sorted((Path(__file__).parents[1] / "benchmarks" / "results").glob("compare-*.json"))
KEYS = {
    "source", "extractor", "codec", "bits", "backend", "metric", "rescore", "title", "options", "chosen", "exact",
    "dim", "items", "queries", "failed", "bytes", "seconds", "codes", "metrics", "curves", "latency_ms", "qps", "raw",
    "supervised", "truth", "qps_threads", "classes", "worst",
}  # fmt: skip


def test_a_row_is_stored_without_its_values_and_read_again() -> None:
    row = made_up(supervised=True, truth={"metric": "cosine", "k": 10}, raw="raw/a.npz")
    stored = json.loads(json.dumps(row.as_json(), allow_nan=False))
    assert set(stored) == KEYS
    again = Row.from_json(stored)
    assert again.values == {}
    assert again.supervised
    assert (again.truth, again.raw, again.qps_threads) == ({"metric": "cosine", "k": 10}, "raw/a.npz", 2)
    assert again.latency_ms == {"p50": 1.0, "p95": 2.0, "p99": 3.0, "k": 10, "threads": 1, "rounds": [1.0]}
    assert Row.from_json(again.as_json()).as_json() == again.as_json()


OLD_BYTES = ("codes", "backend_file", "codec_state", "rescore", "resident")
NEW = ("supervised", "truth", "qps_threads", "classes", "worst")  # keys that rows of 0.1 do not have


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_stored_rows_are_read(path: Path) -> None:
    stored = json.loads(path.read_text())["rows"]
    rows = [Row.from_json(row) for row in stored]
    for row, told in zip(rows, stored, strict=True):
        assert set(row.bytes) == set(BYTES)
        assert row.bytes["codes"] == told["bytes"]["codes"]
        assert row.truth == told.get("truth", {})
    assert text_table(rows).count("\n") == len(rows)


@pytest.mark.parametrize("path", STORED, ids=lambda p: p.stem)
def test_rows_of_0_1_are_read(path: Path) -> None:
    for told in json.loads(path.read_text())["rows"]:
        old = {key: value for key, value in told.items() if key not in NEW}
        old["bytes"] = {
            key: told["bytes"][key] for key in ("codes", "backend_file", "codec_state", "rescore", "resident")
        }
        old["latency_ms"] = {key: told["latency_ms"][key] for key in ("p50", "p95", "p99")}
        row = Row.from_json(old)
        assert (row.bytes["codes"], row.bytes["memory_per_item"]) == (told["bytes"]["codes"], None)
        assert (row.supervised, row.truth, row.latency_ms["k"], row.latency_ms["rounds"]) == (None, {}, None, [])


@pytest.mark.parametrize("wrong", [[], "row", {}, {"codec": "raw"}])
def test_what_is_no_row_is_refused(wrong: Any) -> None:
    with pytest.raises(CorruptCollection, match="row of results"):
        Row.from_json(wrong)


def test_keys_of_later_versions_are_ignored() -> None:
    assert name_of(Row.from_json(raw().as_json() | {"later": 1})) == "raw, faiss-flat l2"


def with_options(part: str = "codec", title: str = "hog", **options: Any) -> Row:
    return made_up("learned", title=title, options={**made_up().options, part: options})


def test_rows_of_one_name_are_told_apart_by_the_options_in_which_they_differ() -> None:
    rows = [
        with_options(loss="csq", hidden=512),
        with_options(loss={"name": "likelihood", "alpha": 2, "balanced": True}, hidden=512),
        with_options(loss="csq", hidden=512, title="other"),
        made_up(),
    ]
    assert [name_of(row) for row in rows[:2]] == ["learned 64 bits, faiss-flat"] * 2
    tell_apart(rows)
    told = [
        "learned loss=csq 64 bits, faiss-flat",
        "learned loss=likelihood(alpha=2, balanced=True) 64 bits, faiss-flat",
        "learned 64 bits, faiss-flat",
        "itq 64 bits, faiss-flat",
    ]
    assert [name_of(row) for row in rows] == told
    stored = json.loads(json.dumps([row.as_json() for row in rows]))
    assert set(stored[0]) == KEYS
    assert [name_of(row) for row in rows_of(stored)] == told
    assert all(name in line for line, name in zip(text_table(rows).splitlines()[1:], told, strict=True))
    tell_apart(rows[:1])
    assert name_of(rows[0]) == "learned 64 bits, faiss-flat", "beside no other of that name"


@pytest.mark.parametrize(
    ("part", "options", "told"),
    [
        ("backend", {"m": 8}, "learned 64 bits, faiss-flat m=8"),
        ("extractor", {"path": "runs/a"}, "learned 64 bits, faiss-flat, path=runs/a"),
        ("codec", {"of": ["a", "b"]}, "learned of=a + b 64 bits, faiss-flat"),
    ],
)
def test_rows_are_told_apart_by_options_of_any_part(part: str, options: dict[str, Any], told: str) -> None:
    rows = [with_options(part, **options), with_options(part)]
    tell_apart(rows)
    assert [name_of(row) for row in rows] == [told, "learned 64 bits, faiss-flat"]


def test_what_is_told_apart_is_drawn_as_lines_of_their_own() -> None:
    rows = [with_options(loss="csq"), with_options(loss="bihalf")]
    tell_apart(rows)
    assert [family_of(row) for row in rows] == ["learned csq, faiss-flat", "learned bihalf, faiss-flat"]


def test_the_main_measure() -> None:
    row = made_up(metrics={"map@1": 0.5, "map@10": 0.5, "map@4": 0.5, "map@4_ci95": [0, 1], "knn_recall@7": 1.0})
    assert (main_measure([row]), knn_measure([row])) == ("map@4", "knn_recall@7")
    row = made_up(metrics={"knn_recall@7": 1.0})
    assert main_measure([row]) == "knn_recall@7"


def test_the_table_for_a_terminal() -> None:
    rows = [
        raw(memory=5120.4, disk=5140.0, qps=12345.6),
        made_up("ksh", 64, memory=8.26, disk=None, supervised=True, title=""),
    ]
    rows[0].metrics |= {"map@5_min": 0.79, "map@5_max": 0.8}
    head, first, second = text_table(rows).splitlines()
    assert head.split("  ")[0] == "extractor"
    heads = ["combination", "map@5", "95 %", "worst–best", "knn_recall@10", "memory/item", "disk/item", "p50 ms", "QPS"]
    assert [cell.strip() for cell in head.split("  ") if cell][1:] == heads
    assert [cell.strip() for cell in first.split("  ") if cell] == [
        "hog", "raw, faiss-flat l2", "0.8000", "0.100–0.900", "0.790–0.800", "0.5000", "5,120", "5,140", "1.00",
        "12,346",
    ]  # fmt: skip
    assert [cell.strip() for cell in second.split("  ") if cell] == [
        "hog", "ksh 64 bits, faiss-flat (saw labels)", "0.8000", "0.100–0.900", "–", "0.5000", "8.3", "–", "1.00",
        "100",
    ]  # fmt: skip


def test_every_column_can_be_missing() -> None:
    bare = made_up(metrics={"knn_recall@10": 0.5}, bytes={"codes": 80}, latency_ms={}, qps=None, seconds={})
    for column in (*COLUMNS, *DETAILS):
        text, key = column.text(bare, "map@5"), column.key(bare, "map@5")
        assert text
        assert (key is None) == (text == "–" or column.left)


def test_tables_of_documents_have_memory_and_disk_where_rows_know_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    tables = importlib.import_module("tables")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    rows = [raw(memory=5120.0, disk=5140.0), made_up(memory=8.26, disk=None)]
    for row in rows:
        row.metrics |= {"map@5_min": 0.79, "map@5_max": 0.8, "map@5_observed": 0.8}
    (tmp_path / "compare-new.json").write_text(json.dumps({"rows": [row.as_json() for row in rows]}))
    head, _, first, second = tables.table(["new"]).splitlines()
    assert head.startswith("| combination | memory an item | disk an item | map@5 |")
    assert first.startswith("| raw, faiss-flat l2 | 5,120 | 5,140 | 0.8000 |")
    assert second.startswith("| itq 64 bits, faiss-flat | 8.3 | – | 0.8000 |")
    for row in rows:
        row.bytes = {"codes": 80}
    (tmp_path / "compare-old.json").write_text(json.dumps({"rows": [row.as_json() for row in rows]}))
    assert tables.table(["old"]).splitlines()[2].startswith("| raw, faiss-flat l2 | 8 | 0.8000 |")
