"""Comparisons: every valid combination is a row of the documented shape, measured as documented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

import cbir_faiss as cf
from cbir_faiss.comparison.run import run
from cbir_faiss.config import load_config, parse_config
from cbir_faiss.errors import ConfigError, DimensionMismatch, InputError

ROW = {"source", "extractor", "codec", "bits", "backend", "metric", "rescore", "options", "items", "queries", "metrics"}
ROW |= {"bytes", "seconds", "latency_ms", "qps"}
BYTES = {"codes", "backend_file", "codec_state", "rescore", "resident", "memory", "disk", "memory_per_item"}
BYTES |= {"disk_per_item", "memory_per_item_at_million", "disk_per_item_at_million"}


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    """Five classes of 60 vectors of 16 dimensions, and 4 queries each."""
    rng = np.random.default_rng(1)
    centres = rng.standard_normal((5, 16)) * 1.2
    y = np.repeat(np.arange(5), 64)
    x = (centres[y] + rng.standard_normal((320, 16))).astype(np.float32)
    queries = np.arange(320) % 16 == 0
    return {"vectors": x[~queries], "queries": x[queries], "labels": y[~queries], "query_labels": y[queries]}


CONFIG = """\
source: {{name: folder, root: pictures}}
queries: {{every: 4}}
extractors: [{{name: hog, size: 32}}]
codecs: [{{name: raw}}, {{name: lsh, bits: [16, 64]}}]
backends: [{{name: faiss-flat}}, {{name: faiss-lsh, bits: 32}}, {{name: faiss-binary-flat}}]
rescore: [{{name: none}}, {{name: float, candidates: 10}}]
metrics: {{k: [1, 5]}}
{more}"""


@pytest.fixture
def config(pictures: Path) -> Path:
    path = pictures.parent / "c.yaml"
    path.write_text(CONFIG.format(more=""))
    return path


def test_results_have_the_documented_shape(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(load_config(config), out)
    stored = json.loads((out / "results.json").read_text())
    assert {"cpu", "threads", "versions"} <= set(stored["environment"])
    assert len(stored["rows"]) == 8  # (flat, lsh index, 2 binary) x 2 rescorers
    for row in stored["rows"]:
        assert set(row) >= ROW
        assert set(row["bytes"]) == BYTES
        assert set(row["seconds"]) == {"extract", "fit", "encode", "build"}
        assert set(row["latency_ms"]) == {"p50", "p95", "p99", "k", "threads", "rounds"}
        assert (row["items"], row["queries"]) == (27, 9)
        for name in ("map@5", "map@5_min", "map@5_max", "map@5_observed", "map@5_ci95", "map_full@5", "precision@5"):
            assert name in row["metrics"]
        assert {"hit@5", "recall@5", "knn_recall@10"} <= set(row["metrics"])
        with np.load(out / row["raw"]) as neighbours:
            assert neighbours["ids"].shape == (9, 10)
    by_backend = {(row["codec"], row["backend"], row["rescore"]): row for row in stored["rows"]}
    assert by_backend["raw", "faiss-flat", "none"]["bits"] is None
    assert by_backend["raw", "faiss-lsh", "none"]["bits"] == 32
    assert (
        by_backend["raw", "faiss-flat", "none"]["bytes"]["codes"]
        == 27 * 4 * by_backend["raw", "faiss-flat", "none"]["dim"]
    )
    assert by_backend["raw", "faiss-lsh", "none"]["bytes"]["codes"] == 27 * 4


@pytest.mark.usefixtures("only_measured")
def test_ties_have_a_spread_and_approximate_search_has_none(config: Path, tmp_path: Path) -> None:
    rows = run(load_config(config), tmp_path / "out")["rows"]
    for row in rows:
        metrics = row["metrics"]
        if row["rescore"] != "none":
            assert metrics["map@5_min"] is None
            assert metrics["map@5"] == metrics["map@5_observed"]
        else:
            for key in ("", "_observed"):
                assert metrics["map@5_min"] - 1e-12 <= metrics[f"map@5{key}"] <= metrics["map@5_max"] + 1e-12


@pytest.mark.usefixtures("only_measured")
def test_short_codes_tie_and_say_so(data: dict[str, Any]) -> None:
    (row,) = cf.compare(**data, codecs=[{"name": "lsh", "bits": 8}], backends=["faiss-binary-flat"])
    metrics = row["metrics"]
    assert metrics["map@5_min"] < metrics["map@5"] < metrics["map@5_max"]


@pytest.mark.usefixtures("only_measured")
def test_codecs_that_differ_in_an_option_alone_are_named_by_it(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace("bits: [16, 64]", "bits: 16, seed: [0, 1]"))
    results = run(load_config(config), tmp_path / "out", margin=1.0)
    page = (tmp_path / "out/report.html").read_text()
    for seed in (0, 1):
        assert f"lsh seed={seed} 16 bits, faiss-binary-flat<" in page
    assert "lsh seed=" in results["recommendation"]["name"]


@pytest.mark.usefixtures("only_measured")
def test_a_combination_that_cannot_be_is_skipped_with_its_reason(config: Path, tmp_path: Path) -> None:
    config.write_text(config.read_text().replace("{name: raw}", "{name: raw}, {name: itq, bits: 512}"))
    results = run(load_config(config), tmp_path / "out")
    assert len(results["rows"]) == 8
    (skipped,) = results["skipped"]
    assert skipped["combination"] == "itq bits=512"
    assert "at most 320 bits" in skipped["reason"]
    assert "at most 320 bits" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.usefixtures("only_measured")
def test_raw_rows_equal_sklearn_over_the_full_ranking(data: dict[str, Any]) -> None:
    n = len(data["vectors"])
    (row,) = cf.compare(**data, codecs=["raw"], backends=["faiss-flat"], k=[n])
    distances = ((data["queries"][:, None] - data["vectors"][None]) ** 2).sum(2)
    expected = [
        average_precision_score(data["labels"] == y, -d) for y, d in zip(data["query_labels"], distances, strict=True)
    ]
    assert row["metrics"][f"map@{n}"] == pytest.approx(np.mean(expected), abs=1e-6)
    assert row["metrics"][f"map_full@{n}"] == pytest.approx(np.mean(expected), abs=1e-6)


@pytest.mark.usefixtures("only_measured")
def test_map_over_the_whole_ranking_needs_no_hits_of_it(data: dict[str, Any]) -> None:
    n = len(data["vectors"])
    sections: dict[str, Any] = {
        "codecs": ["raw", {"name": "lsh", "bits": 16}],
        "backends": ["faiss-flat", "faiss-ivf", "faiss-binary-flat"],
        "rescore": ["none", {"name": "float", "candidates": "all"}],
    }
    few, all_ = (cf.compare(**data, **sections, k=[k]) for k in (5, n))
    for row, deep in zip(few, all_, strict=True):
        exact = row["rescore"] == "none" and row["backend"] != "faiss-ivf"
        assert ("map" in row["metrics"]) == exact
        if exact:
            for suffix in ("", "_min", "_max"):
                assert row["metrics"]["map" + suffix] == pytest.approx(deep["metrics"][f"map@{n}{suffix}"], abs=1e-9)
            assert row["metrics"]["map_ci95"] == pytest.approx(deep["metrics"][f"map@{n}_ci95"], abs=1e-9)


@pytest.mark.usefixtures("only_measured")
def test_the_same_codes_in_any_exact_backend_measure_the_same(data: dict[str, Any]) -> None:
    rows = cf.compare(
        **data,
        codecs=[{"name": "lsh", "bits": 32}],
        backends=["faiss-binary-flat", {"name": "faiss", "factory": "BFlat"}],
    )
    assert rows[0]["metrics"]["map@5"] == rows[1]["metrics"]["map@5"]
    assert rows[0]["curves"]["pr"] == rows[1]["curves"]["pr"]


@pytest.mark.usefixtures("only_measured")
def test_rescoring_all_items_by_l2_equals_raw(data: dict[str, Any]) -> None:
    rows = cf.compare(
        **data,
        codecs=["raw", {"name": "lsh", "bits": 8}],
        backends=["faiss-flat", "faiss-binary-flat"],
        rescore=["none", {"name": "float", "candidates": "all", "metric": "l2"}],
        truth={"metric": "l2", "k": 10},
    )
    raw = next(r for r in rows if r["codec"] == "raw" and r["rescore"] == "none")
    again = next(r for r in rows if r["codec"] == "lsh" and r["rescore"] == "float")
    assert again["metrics"]["map@10"] == pytest.approx(raw["metrics"]["map@10"], abs=1e-9)
    assert again["metrics"]["knn_recall@10"] == 1.0
    assert again["bytes"]["rescore"] == len(data["vectors"]) * 16 * 4


@pytest.mark.usefixtures("only_measured")
def test_exact_neighbours_are_those_of_what_is_searched(data: dict[str, Any]) -> None:
    def truths(**more: Any) -> list[tuple[str, str, str, str]]:
        rows = cf.compare(
            **data,
            codecs=["raw", {"name": "rotate", "normalise": True}, {"name": "lsh", "bits": 16}],
            backends=[{"name": "faiss-flat", "metric": ["l2", "ip"]}, "faiss-binary-flat"],
            rescore=["none", {"name": "float", "candidates": 20}],
            **more,
        )
        for row in rows:
            if row["exact"] and row["rescore"] == "none" and row["codec"] == "raw" and not more:
                assert row["metrics"]["knn_recall@10"] == 1.0, "it is its own truth"
        return [(row["codec"], row["metric"], row["rescore"], row["truth"]["metric"]) for row in rows]

    assert truths() == [
        ("raw", "l2", "none", "l2"),
        ("raw", "l2", "float", "cosine"),
        ("raw", "ip", "none", "ip"),
        ("raw", "ip", "float", "cosine"),
        ("rotate", "l2", "none", "cosine"),
        ("rotate", "l2", "float", "cosine"),
        ("rotate", "ip", "none", "ip"),
        ("rotate", "ip", "float", "cosine"),
        ("lsh", "hamming", "none", "cosine"),
        ("lsh", "hamming", "float", "cosine"),
    ]
    assert {metric for *_, metric in truths(truth={"metric": "l2", "k": 10})} == {"l2"}


def test_bytes_count_everything_and_say_what_grows(data: dict[str, Any], tmp_path: Path) -> None:
    rows = cf.compare(
        **data,
        codecs=["raw", {"name": "itq", "bits": 16}],
        backends=["faiss-flat", {"name": "faiss", "factory": "PQ8x4"}, "faiss-binary-flat"],
        rescore=["none", {"name": "float", "candidates": 20}],
    )
    for row in rows:
        b, n = row["bytes"], row["items"]
        assert b["memory"] >= b["codes"]
        assert b["disk"] >= b["memory"] - b["codec_state"]
        assert b["memory_per_item"] == pytest.approx(b["memory"] / n)
        assert b["memory_per_item_at_million"] < b["memory_per_item"], "what does not grow is shared by more"
    by = {(row["codec"], row["backend"], row["rescore"]): row["bytes"] for row in rows}
    floats = 4 * 16
    assert by["raw", "faiss-flat", "none"]["memory_per_item_at_million"] == pytest.approx(floats, abs=1)
    kept = by["itq", "faiss-binary-flat", "float"]["disk"] - by["itq", "faiss-binary-flat", "none"]["disk"]
    assert floats * 300 <= kept < floats * 300 + 2000, "the floats, and what the rescorer learnt"


def test_disk_is_what_a_build_of_the_row_takes(config: Path, pictures: Path, tmp_path: Path) -> None:
    text = config.read_text().replace("every: 4", "source: {name: folder, root: pictures}")
    config.write_text(text.replace("[16, 64]", "64"))
    rows = run(load_config(config), tmp_path / "out")["rows"]
    row = next(row for row in rows if (row["backend"], row["rescore"]) == ("faiss-binary-flat", "float"))
    document = {
        "source": {"name": "folder", "root": str(pictures)},
        "extractors": [{"name": "hog", "size": 32}],
        "codecs": [{"name": "lsh", "bits": 64}],
        "backends": [{"name": "faiss-binary-flat"}],
        "rescore": [{"name": "float", "candidates": 10}],
    }
    with cf.Collection.build(parse_config(document), tmp_path / "x.cbir") as collection:
        kept = collection.info()["bytes"]
    built = sum(size for name, size in kept.items() if not name.startswith("extractor"))
    heads = 128 * sum(name.endswith(".npy") for name in kept)  # of array files
    assert abs(row["bytes"]["disk"] - built) <= heads


@pytest.mark.usefixtures("only_measured")
def test_latency_is_of_one_thread_and_the_best_of_rounds(data: dict[str, Any]) -> None:
    (row,) = cf.compare(**data, threads=2)
    latency = row["latency_ms"]
    assert (latency["k"], latency["threads"], row["qps_threads"]) == (10, 1, 2)
    assert len(latency["rounds"]) == 3
    assert latency["p50"] == min(latency["rounds"])
    assert latency["p50"] <= latency["p95"] <= latency["p99"]


@pytest.mark.usefixtures("only_measured")
def test_without_labels_only_neighbours_are_measured(data: dict[str, Any]) -> None:
    (row,) = cf.compare(vectors=data["vectors"], queries=data["queries"])
    assert row["metrics"] == {"knn_recall@10": pytest.approx(row["metrics"]["knn_recall@10"])}


@pytest.mark.usefixtures("only_measured")
def test_several_labels_an_item_are_relevant_by_one_in_common(data: dict[str, Any]) -> None:
    labels = [[str(y), "all"] for y in data["labels"]]
    (row,) = cf.compare(vectors=data["vectors"], queries=data["queries"], labels=labels, query_labels=[["all"]] * 20)
    assert row["metrics"]["precision@10"] == 1.0


@pytest.mark.usefixtures("only_measured")
def test_a_factory_goes_with_the_codecs_of_its_kind(data: dict[str, Any]) -> None:
    rows = cf.compare(
        **data,
        codecs=["raw", {"name": "lsh", "bits": 32}],
        backends=[
            {"name": "faiss", "factory": ["PQ4x4", "BFlat"]},
            {"name": "faiss", "factory": "SQ8", "metric": "l2"},
        ],
    )
    assert [(row["codec"], row["options"]["backend"]["factory"]) for row in rows] == [
        ("raw", "PQ4x4"),
        ("raw", "SQ8"),
        ("lsh", "BFlat"),
    ]


@pytest.mark.usefixtures("only_measured")
def test_k_beyond_the_collection(data: dict[str, Any]) -> None:
    (row,) = cf.compare(
        vectors=data["vectors"][:3],
        queries=data["queries"],
        labels=[0, 1, 2],
        query_labels=data["query_labels"],
        k=[50],
    )
    assert 0 <= row["metrics"]["map@50"] <= 1
    assert row["metrics"]["knn_recall@10"] == 1.0


@pytest.mark.usefixtures("only_measured")
def test_one_class_only(data: dict[str, Any]) -> None:
    (row,) = cf.compare(vectors=data["vectors"], queries=data["queries"], labels=["x"] * 300, query_labels=["x"] * 20)
    assert row["metrics"]["map@5"] == 1.0


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"queries": np.ones((3, 5), np.float32)}, DimensionMismatch, "16 dimensions"),
        ({"vectors": np.full((9, 16), np.nan, np.float32)}, InputError, "NaN"),
        ({"labels": [1, 2]}, InputError, "2 labels for 300 vectors"),
        ({"vectors": [[1.0]]}, InputError, "float vectors of shape"),
        ({"codecs": [{"name": "lsh", "bits": 9}]}, ConfigError, "multiple of 8"),
        ({"codecs": ["lsh"]}, ConfigError, "bits: is required"),
        ({"k": [0]}, ConfigError, "greater than or equal to 1"),
        ({"codecs": ["raw"], "backends": ["faiss-binary-flat"]}, ConfigError, "no backend to go with"),
    ],
)
def test_wrong_arrays_and_sections(
    data: dict[str, Any], changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cf.compare(**{**data, **changed})


@pytest.mark.usefixtures("only_measured")
def test_a_second_run_extracts_nothing(config: Path, tmp_path: Path) -> None:
    first = run(load_config(config), tmp_path / "a")["rows"]
    again = run(load_config(config), tmp_path / "b")["rows"]
    assert first[0]["seconds"]["extract"] > 0
    assert again[0]["seconds"]["extract"] == 0
    assert [row["metrics"] for row in again] == [row["metrics"] for row in first]


@pytest.mark.usefixtures("only_measured")
def test_a_search_option_makes_a_search_exact(data: dict[str, Any]) -> None:
    (backend,) = [{"name": "usearch", "search": {"exact": [True, False]}}]
    rows = cf.compare(**data, codecs=[{"name": "lsh", "bits": 32}], backends=[backend, "faiss-binary-flat"])
    by_search = {str(row["options"]["search"].get("exact")): row["metrics"] for row in rows}
    assert by_search["True"]["map@5"] == by_search["None"]["map@5"]
    assert by_search["False"]["map@5_min"] is None


@pytest.mark.usefixtures("only_measured")
def test_broken_files_are_counted_in_the_results(config: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "blob" / "zz.png").write_bytes(b"no picture")
    results = run(load_config(config), tmp_path / "out")
    assert [failure["path"] for failure in results["failed"]] == ["blob/zz.png"]
    assert results["rows"][0]["failed"] == 1


@pytest.mark.usefixtures("only_measured")
def test_queries_from_another_source(pictures: Path, tmp_path: Path) -> None:
    text = CONFIG.format(more="").replace("{every: 4}", "{source: {name: folder, root: pictures}}")
    (pictures.parent / "c.yaml").write_text(text)
    rows = run(load_config(pictures.parent / "c.yaml"), tmp_path / "out")["rows"]
    assert rows[0]["items"] == rows[0]["queries"] == 36
    assert rows[0]["metrics"]["map@1"] == 1.0  # every query finds itself


def test_no_queries_left_is_an_error(pictures: Path, tmp_path: Path) -> None:
    for path in sorted(pictures.rglob("*.png"))[1:]:
        path.unlink()
    (pictures.parent / "c.yaml").write_text(CONFIG.format(more=""))
    with pytest.raises(InputError, match="0 items and 1 queries"):
        run(load_config(pictures.parent / "c.yaml"), tmp_path / "out")
