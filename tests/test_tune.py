"""`cbir tune`: the index that reaches a target, on real engines and files; what is said where none does."""

from __future__ import annotations

import importlib
import json
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from numpy.typing import NDArray

import cbir_faiss as cf
from cbir_faiss.cli import main
from cbir_faiss.collection import room
from cbir_faiss.config import load_config
from cbir_faiss.errors import BackendError, CbirError, ConfigError, InputError
from cbir_faiss.measures.neighbours import exact_neighbours, exact_thresholds, knn_recall, true_distances
from cbir_faiss.tuning import race, ways
from cbir_faiss.tuning.grown import Grown
from cbir_faiss.tuning.race import Entrant, Race
from cbir_faiss.tuning.tune import Tuned, tune
from cbir_faiss.tuning.ways import Judge, Setting, Way

tune_module = importlib.import_module("cbir_faiss.tuning.tune")
RUNGS = (400,)
CODES: dict[str, Any] = {
    "codecs": [{"name": "itq", "bits": [8, 32]}],
    "backends": [{"name": "faiss-binary-flat"}],
    "rescore": [{"name": "float", "center": False}],
}
LISTS: dict[str, Any] = {
    "codecs": [{"name": "raw"}],
    "backends": [{"name": "faiss-ivf", "metric": "cosine", "nlist": 16}],
    "rescore": [{"name": "none"}],
}


def clusters(n: int = 1_000, dim: int = 32, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 10, n)
    centres = 1.5 * np.random.default_rng(9).standard_normal((10, dim))
    return (centres[which] + rng.standard_normal((n, dim))).astype(np.float32), which


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config of 1,000 labelled vectors that narrows the space to two indexes."""
    x, labels = clusters()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "labels.npy", labels)
    source = {"name": "vectors", "file": "x.npy", "labels": "labels.npy"}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump({"source": source, **CODES}))
    return tmp_path / "data.yaml"


def narrowed(config: Path, **sections: Any) -> Path:
    document = {"source": yaml.safe_load(config.read_text())["source"], **sections}
    config.write_text(yaml.safe_dump(document))
    return config


def cbir(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_what_is_tuned_is_built_and_searched_as_it_was_tuned(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "found" / "tuned.yaml"
    out.parent.mkdir()
    found = cbir("tune", config, "--target", "knn_recall@10 >= 0.9", "--items", 20_000, "--out", out, "--json")
    assert found.exit_code == 0, found.output
    told = json.loads(found.stdout)
    assert told["met"] is True
    assert set(told["chosen"]) == {"codec", "backend", "rescore", "search", "bits"}
    measured = told["measured"]["knn_recall@10"]
    assert 0.9 <= measured["ci95"][0] <= measured["value"] <= measured["ci95"][1]
    assert {"bytes_per_item", "disk_bytes_per_item", "p50_ms"} <= set(told["measured"])
    predicted = told["predicted"]
    assert {"items", "knn_recall@10", "bytes_per_item", "disk_bytes_per_item", "p50_ms", "build_seconds"} <= set(
        predicted
    )
    assert predicted["disk_bytes_per_item"] > 4 * 32 > predicted["bytes_per_item"]
    assert predicted["items"] == 20_000
    assert predicted["knn_recall@10"]["value"] < measured["value"]
    assert told["front"]
    assert told["trials"] >= 2

    built = load_config(out).single()
    assert built.codecs[0].options["bits"] == told["chosen"]["bits"]
    collection = tmp_path / "tuned.cbir"
    assert cbir("build", out, "--out", collection).exit_code == 0
    with cf.Collection.open(collection) as opened:
        assert opened.manifest.rescore.options["candidates"] == told["chosen"]["rescore"]["candidates"]
        x, _ = clusters()
        fresh, _ = clusters(300, seed=5)
        hits = opened.search_hits(fresh, 10)
        recall = knn_recall(true_distances(x, fresh, hits.ids, "cosine"), exact_thresholds(x, fresh, 10, "cosine"), 10)
        assert recall.mean() >= 0.89
    page = (out.parent / "tuned.html").read_text()
    assert "knn_recall@10 &gt;= 0.9" in page
    assert "<svg" in page
    assert not list((out.parent / "tuned.tuning").glob("*.np*")), "only the trials are left"


def test_search_options_are_tuned_and_kept(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "tuned.yaml"
    found = tune(narrowed(config, **LISTS), "knn_recall@10 >= 0.8", minimise="latency", out=out, rungs=RUNGS)
    assert found.met
    assert found.chosen is not None
    nprobe = found.chosen["search"]["nprobe"]
    assert 1 <= nprobe < 16
    assert load_config(out).single().backends[0].searches == ({"nprobe": nprobe},)
    if Path("/proc/stat").exists():
        assert found.environment["busy"] in (True, False)
    again = tune(config, "knn_recall@10 >= 0.99", minimise="latency", rungs=RUNGS)
    assert again.chosen is not None
    assert again.chosen["search"]["nprobe"] > nprobe


def test_a_config_that_gives_values_is_kept_to_them(config: Path) -> None:
    backend = {**LISTS["backends"][0], "search": {"nprobe": [1, 5]}}
    found = tune(narrowed(config, **{**LISTS, "backends": [backend]}), "knn_recall@10 >= 0.95", rungs=RUNGS)
    assert found.chosen is not None
    assert found.chosen["search"] == {"nprobe": 5}
    given = [{"name": "float", "center": False, "candidates": 37}]
    found = tune(narrowed(config, **{**CODES, "rescore": given}), "knn_recall@10 >= 0.5", rungs=RUNGS)
    assert found.chosen is not None
    assert found.chosen["rescore"]["candidates"] == 37


def test_a_graph_walks_as_far_as_its_hits_go_on(config: Path) -> None:
    graph: dict[str, Any] = {
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss", "factory": "HNSW8_SQ4", "metric": "cosine"}],
        "rescore": [{"name": "float", "center": False}],
    }
    found = tune(narrowed(config, **graph), "knn_recall@10 >= 0.9", items=5_000, rungs=RUNGS)
    assert found.met
    assert found.chosen is not None
    assert found.chosen["search"]["ef"] == found.chosen["rescore"]["candidates"]
    kept = {**graph, "backends": [{**graph["backends"][0], "search": {"ef": 40}}]}
    found = tune(narrowed(config, **kept), "knn_recall@10 >= 0.9", rungs=RUNGS)
    assert found.chosen is not None
    assert found.chosen["search"] == {"ef": 40}


@pytest.mark.parametrize("name", ["lists", "graph"])
def test_what_is_looked_at_more_of_next(config: Path, name: str) -> None:
    """From the least setting to the widest, one option at a time, and no farther."""
    backend = {"lists": "IVF4,SQ4", "graph": "HNSW8_SQ4"}[name]
    backends = [{"name": "faiss", "factory": backend, "metric": "cosine"}]
    sections = {"codecs": [{"name": "raw"}], "backends": backends, "rescore": [{"name": "float", "center": False}]}
    seen: list[Setting] = []

    class Unsure(Judge):
        def ways(self) -> list[Way]:
            setting: Setting | None = next(self.grid(0))
            while setting is not None:
                seen.append(setting)
                setting = self.more(setting)
            return super().ways()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cbir_faiss.tuning.race.Judge", Unsure)
        assert tune(narrowed(config, **sections), "knn_recall@10 >= 0.5", rungs=()).met
    assert len({str(setting) for setting in seen}) == len(seen) > 5
    assert seen[-1].candidates == max(setting.candidates or 0 for setting in seen)


def test_targets_by_labels_and_against_raw(config: Path) -> None:
    found = tune(config, ["map@5 >= raw - 0.05", "knn_recall@5 >= 0.5"], rungs=RUNGS, items=50)
    assert found.met
    assert found.measured["map@5 - raw"]["ci95"][0] >= -0.05
    assert 0 < found.measured["map@5"]["value"] <= 1
    assert found.measured["knn_recall@5"]["value"] > 0.5
    assert found.predicted is not None
    assert found.predicted["knn_recall@5"]["value"] >= found.measured["knn_recall@5"]["value"] - 0.05, "fewer items"
    assert "map@5" not in found.predicted


def test_what_cannot_be_reached_is_said_with_what_comes_nearest(config: Path, tmp_path: Path) -> None:
    narrowed(config, **{**CODES, "rescore": [{"name": "none"}]})
    found = cbir("tune", config, "--target", "knn_recall@10 >= 0.95", "--out", tmp_path / "t.yaml", "--json")
    assert found.exit_code == 1
    told = json.loads(found.stdout)
    assert told["met"] is False
    assert told["chosen"]["codec"]["bits"] == 32, "the nearest"
    assert 0 < told["measured"]["knn_recall@10"]["value"] < 0.95
    assert "knn_recall@10 >= 0.95 cannot be met" in told["why"]
    assert not (tmp_path / "t.yaml").exists()
    plain = cbir("tune", config, "--target", "knn_recall@10 >= 0.95", "--out", tmp_path / "t.yaml")
    assert plain.exit_code == 1
    assert "nearest comes" in plain.stdout


def test_limits_rule_out_what_exceeds_them(config: Path) -> None:
    found = tune(config, "knn_recall@10 >= 0.9", max_bytes=1, rungs=RUNGS)
    assert not found.met
    assert all("bytes an item" in reason for _, reason in found.others)
    found = tune(config, "knn_recall@10 >= 0.9", max_disk_bytes=50, rungs=RUNGS)
    assert not found.met
    found = tune(config, "knn_recall@10 >= 0.9", max_ms=1e-6, rungs=RUNGS)
    assert not found.met
    assert "limits" in found.why


def test_bytes_are_known_before_an_index_is_filled(config: Path) -> None:
    """Lists that are not full yet, in blocks of 32, take more of an item than they will."""
    np.save(config.parent / "x.npy", clusters(8_000)[0])
    config.write_text(yaml.safe_dump({"source": {"name": "vectors", "file": "x.npy"}}))
    backends = [{"name": "faiss-pq", "metric": "cosine", "bits": [32, 64], "nlist": 100}]
    sections = {"codecs": [{"name": "raw"}], "backends": backends, "rescore": [{"name": "float", "center": False}]}
    found = tune(narrowed(config, **sections), "knn_recall@10 >= 0.8", rungs=(4_001,))
    assert found.met
    sizes = [check for check in found.checks if check.what == "bytes"]
    assert sizes
    for check in sizes:
        assert check.predicted == pytest.approx(check.measured, rel=0.05)
    said: list[str] = []
    found = tune(config, "knn_recall@10 >= 0.8", rungs=(4_001,), max_bytes=5, minimise="latency", note=said.append)
    assert not found.met
    assert found.chosen is not None
    assert found.chosen["backend"]["bits"] == 32, "the nearest to the limit"
    assert not any("64" in text for text in said[2:]), "of the other its bytes were enough"


class Killed(BaseException):
    """As if the process had died."""


def looks(config: Path, out: Path, die_after: int | None = None) -> tuple[list[str], Tuned | None]:
    """What was looked at, and what was found unless it died after so many looks."""
    said: list[str] = []

    def note(text: str) -> None:
        if len(said) == die_after:
            raise Killed
        said.append(text)

    try:
        return said, tune(config, "knn_recall@10 >= 0.95", out=out, note=note, rungs=RUNGS, minimise="latency")
    except Killed:
        return said, None


def test_an_interrupted_run_goes_on_and_looks_at_nothing_twice(config: Path, tmp_path: Path) -> None:
    whole, expected = looks(config, tmp_path / "whole.yaml")
    assert expected is not None
    assert len(whole) == len(set(whole)) >= 3
    first, none = looks(config, tmp_path / "t.yaml", die_after=2)
    assert none is None
    trials = tmp_path / "t.tuning" / "trials.jsonl"
    with trials.open("a") as file:
        file.write('{"run": "torn')
    then, found = looks(config, tmp_path / "t.yaml")
    assert found is not None
    assert not set(first) & set(then)
    assert found.met == expected.met
    assert found.chosen is not None
    assert not trials.exists(), "what has come to its end is looked at anew, for times change"
    # Other data are another run, also in the same place.
    np.save(config.parent / "x.npy", clusters(seed=3)[0])
    other, _ = looks(config, tmp_path / "t.yaml")
    assert len(other) >= 3


def test_a_run_that_died_while_an_index_was_judged_goes_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, calls = Judge.ways, []

    def dying(self: Judge) -> Any:
        calls.append(self)
        if len(calls) == 2:
            raise Killed
        return judged(self)

    monkeypatch.setattr(Judge, "ways", dying)
    with pytest.raises(Killed):
        tune(config, "knn_recall@10 >= 0.9", out=tmp_path / "t.yaml", rungs=RUNGS, minimise="latency")
    found = tune(config, "knn_recall@10 >= 0.9", out=tmp_path / "t.yaml", rungs=RUNGS, minimise="latency")
    assert found.met


def test_another_embedding_of_the_same_items_is_other_data(config: Path, tmp_path: Path) -> None:
    """Two collections of the same documents: nothing of a run on one is taken for the other."""
    flat = {"codecs": [{"name": "raw"}], "backends": [{"name": "faiss-flat"}], "rescore": [{"name": "none"}]}
    narrowed(config, **flat)
    for seed in (0, 7):
        np.save(tmp_path / "x.npy", clusters(seed=seed)[0])
        assert cbir("build", config, "--out", tmp_path / f"{seed}.cbir").exit_code == 0

    laid_out = []
    for seed in (0, 7):
        source = {"name": "collection", "path": f"{seed}.cbir"}
        config.write_text(yaml.safe_dump({"source": source, "extractors": [{"name": "vectors"}], **CODES}))
        looks(config, tmp_path / "t.yaml", die_after=2)
        laid_out.append(np.load(tmp_path / "t.tuning" / "data" / "items.npy"))
    assert not np.array_equal(*laid_out)


def test_an_index_that_was_lost_meanwhile_is_built_again(config: Path, tmp_path: Path) -> None:
    looks(config, tmp_path / "t.yaml", die_after=2)
    for file in (tmp_path / "t.tuning").rglob("index.faiss"):
        file.write_bytes(file.read_bytes()[:-7])
    _, found = looks(config, tmp_path / "t.yaml")
    assert found is not None
    assert found.met


def test_two_runs_at_one_place_are_one_line(config: Path, tmp_path: Path) -> None:
    def second(_: str) -> None:
        tune(config, "knn_recall@10 >= 0.5", out=tmp_path / "t.yaml", rungs=RUNGS)

    with pytest.raises(CbirError, match=r"t\.tuning"):
        tune(config, "knn_recall@10 >= 0.5", out=tmp_path / "t.yaml", rungs=RUNGS, note=second)


def test_a_disk_that_cannot_hold_the_vectors_is_said_before_they_are_copied(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: SimpleNamespace(free=100_000))
    with pytest.raises(CbirError, match=r"800 vectors to tune on take 0\.1 MB on the disk, and 0\.1 MB are free"):
        tune(config, "knn_recall@10 >= 0.5", out=tmp_path / "t.yaml", rungs=RUNGS)
    assert not (tmp_path / "t.tuning" / "data" / "items.npy").exists()


def test_no_time_is_said_with_what_was_reached(config: Path) -> None:
    found = tune(config, "knn_recall@10 >= 0.9", minutes=1e-9, rungs=RUNGS)
    assert not found.met
    assert "no time" in found.why
    assert json.loads(json.dumps(found.as_json()))["met"] is False


def test_a_collection_and_a_file_of_vectors_are_data_too(config: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(config.read_text())
    document |= {"codecs": [{"name": "raw"}], "backends": [{"name": "faiss-flat"}], "rescore": [{"name": "none"}]}
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump(document))
    collection = tmp_path / "raw.cbir"
    assert cbir("build", tmp_path / "raw.yaml", "--out", collection).exit_code == 0
    out = tmp_path / "t.yaml"
    found = tune(collection, "knn_recall@10 >= 0.6", out=out, **CODES)
    assert found.met
    assert load_config(out).source.name == "collection"
    assert cbir("build", out, "--out", tmp_path / "tuned.cbir").exit_code == 0
    assert tune(tmp_path / "x.npy", "knn_recall@10 >= 0.6", **CODES).met


@pytest.mark.parametrize(
    "name",
    [
        "qdrant",
        "usearch",
        pytest.param("lancedb", marks=pytest.mark.slow),
        pytest.param("pgvector", marks=pytest.mark.slow),
    ],
)
def test_an_engine_is_data_too(name: str, tmp_path: Path) -> None:
    x, labels = clusters()
    ids = np.arange(len(x)) * 7 + 3
    options = {"metric": "l2"} | ({} if name == "usearch" else {"path": str(tmp_path / "engine")})
    with closing(cf.load_backend(name, **options)) as backend:
        told = [{"label": str(label), "path": f"{i}.jpg", "year": i} for i, label in enumerate(labels.tolist())]
        backend.upsert(ids, x, None if name == "usearch" else told)
        backend.flush()
        targets = ["knn_recall@10 >= 0.8"] + (["hit@1 >= 0.5"] if name != "usearch" else [])
        flat = {"codecs": [{"name": "raw"}], "backends": [{"name": "faiss-flat", "metric": "l2"}], "rescore": ["none"]}
        out = tmp_path / "t.yaml"
        found = tune(backend, targets, out=out, **flat)
        assert found.met, "by the engine's own metric"
        assert backend.count() == len(x)
        copy = tmp_path / "t.tuning" / "given.npy"
        made = copy.stat().st_mtime_ns
        again = tune(backend, targets, out=out, **flat)
        assert again.chosen == found.chosen
        assert copy.stat().st_mtime_ns == made, "it is the same"
    assert cbir("build", out, "--out", tmp_path / "tuned.cbir").exit_code == 0
    with cf.Collection.open(tmp_path / "tuned.cbir") as built:
        number = int(built.search_hits(x[5:6], 1).ids[0, 0])
        (document,) = built.documents([number])
    assert document["path"] == ("38" if name == "usearch" else "5.jpg")
    assert document.get("year", 5) == 5


def test_an_engine_that_cannot_be_tuned_on_is_one_line(tmp_path: Path) -> None:
    target, out = ["--target", "knn_recall@10 >= 0.9"], ["--out", tmp_path / "t.yaml"]
    for place in (f"path={tmp_path / 'none'}", "url=http://127.0.0.1:9"):
        result = cbir("tune", "qdrant", place, *target, *out)
        assert result.exit_code == 1, result.output
        assert len(result.stderr.strip().splitlines()) == 1
    with closing(cf.load_backend("qdrant", path=str(tmp_path / "codes"))) as backend:
        backend.upsert(np.arange(300), np.random.default_rng(0).integers(0, 256, (300, 8), np.uint8))
        backend.flush()
        with pytest.raises(InputError, match="holds codes: tune on the vectors"):
            tune(backend, "knn_recall@10 >= 0.9")
    unknown = cbir("tune", "qdrand", "path=x", *target)
    assert unknown.exit_code == 1
    assert "did you mean 'qdrant'" in unknown.stderr
    assert cbir("tune", "nothing.yaml", *target).exit_code == 2
    assert cbir("tune", tmp_path, "path=x", *target).exit_code == 2


@pytest.mark.slow
def test_the_whole_space_can_be_built_and_compared() -> None:
    x, _ = clusters(750, 160)
    found = cf.tune(x, "knn_recall@10 >= 0.9", minimise="latency", rungs=RUNGS)
    assert found.met
    refused = [(title, reason) for title, reason in found.others if "FAISS" in reason or "Error" in reason]
    assert not refused


def test_vectors_in_memory_with_labels() -> None:
    x, labels = clusters(600)
    found = cf.tune(x, "hit@1 >= 0.5", labels=labels.tolist(), **CODES)
    assert found.met
    with pytest.raises(InputError, match="600 vectors"):
        cf.tune(x, "hit@1 >= 0.5", labels=[1, 2])


def test_vectors_in_memory_with_several_labels_or_none() -> None:
    x, labels = clusters(600)
    several = [(f"only-{row}", "all") if label else {"all"} for row, label in enumerate(labels.tolist())]
    assert cf.tune(x, "hit@1 >= 0.9", labels=several, **CODES).measured["hit@1"]["value"] == 1
    with pytest.raises(InputError, match="have none"):
        cf.tune(x, "hit@1 >= 0.1", labels=[None] * len(x), **CODES)


def test_a_perfect_ranking_is_no_more_than_perfect() -> None:
    x, labels = clusters(600)
    found = cf.tune(10 * x + 100 * np.eye(10, 32, dtype=np.float32)[labels], "ndcg@20 >= 0.5", labels=labels.tolist(),
                    codecs=["raw"], backends=["faiss-flat"], rescore=["none"])  # fmt: skip
    assert found.measured["ndcg@20"]["value"] == 1


def test_equal_distances_give_no_exact_index_up() -> None:
    x = np.clip(np.round(10 * clusters(2_500, 16)[0]), 0, 255).astype(np.float32)
    sections: dict[str, Any] = {"codecs": ["raw", {"name": "itq", "bits": 16}], "rescore": ["none"]}
    found = tune(x, "knn_recall@10 >= 0.9", metric="l2", rungs=(200,), items=100_000,
                 backends=["faiss-flat", "faiss-binary-flat"], **sections)  # fmt: skip
    assert found.met, found.why
    assert found.predicted is not None
    assert found.predicted["knn_recall@10"]["value"] > 0.95


def test_what_is_timed_is_the_search_that_is_asked_for(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depths = set()

    class Watched(ways.Timed):
        def round(self) -> None:
            depths.add(self.k)
            super().round()

    monkeypatch.setattr(ways, "Timed", Watched)
    assert tune(config, "knn_recall@5 >= 0.5", rungs=()).met
    assert tune(config, "knn_recall@50 >= 0.5", rungs=()).met
    assert depths == {10, 50}


def test_metrics_other_than_cosine(config: Path) -> None:
    flat = {"codecs": [{"name": "raw"}], "rescore": [{"name": "none"}]}
    for metric in ("l2", "ip"):
        backends = [{"name": "faiss-flat", "metric": metric}, {"name": "faiss-hnsw", "metric": metric, "m": 8}]
        found = tune(narrowed(config, **flat, backends=backends), "knn_recall@10 >= 0.9", metric=metric, rungs=RUNGS)  # type: ignore[arg-type]
        assert found.met
        assert found.chosen is not None
        assert found.chosen["backend"]["metric"] == metric


def test_an_exact_scan_that_is_named_alone_finds_all_neighbours() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1_000, 16), dtype=np.float32) * rng.uniform(0.1, 10, (1_000, 1)).astype(np.float32)
    found = tune(x, "knn_recall@10 >= 0.95", codecs=["raw"], backends=["faiss-flat"], rescore=["none"], rungs=())
    assert found.met, found.why
    codec = {"name": "itq", "bits": 16}
    found = tune(x, "knn_recall@10 >= 0.9", metric="l2", codecs=[codec], backends=["faiss-binary-flat"], rungs=(),
                 rescore=["float"])  # fmt: skip
    assert found.met, found.why
    assert found.chosen is not None
    assert found.chosen["rescore"]["metric"] == "l2"


def test_the_metric_is_that_of_the_config_and_stands_in_what_is_written(config: Path, tmp_path: Path) -> None:
    flat = {"codecs": [{"name": "raw"}], "backends": [{"name": "faiss-flat"}], "rescore": [{"name": "none"}]}
    narrowed(config, **flat, metrics={"k": [3], "truth": {"metric": "l2", "k": 7}}, engine="ray")
    out = tmp_path / "t.yaml"
    assert tune(config, "knn_recall@10 >= 0.9", out=out, rungs=()).met
    written = yaml.safe_load(out.read_text())
    assert written["backends"] == [{"name": "faiss-flat", "metric": "l2"}]
    assert written["metrics"] == {"k": [3], "truth": {"metric": "l2", "k": 7}}
    assert written["engine"] == "ray"
    tune(config, "knn_recall@10 >= 0.9", out=out, rungs=(), metric="ip")
    assert yaml.safe_load(out.read_text())["metrics"]["truth"]["metric"] == "ip"


def test_the_metric_is_that_of_the_collection(config: Path, tmp_path: Path) -> None:
    flat: dict[str, Any] = {"codecs": [{"name": "raw"}], "rescore": [{"name": "none"}]}
    narrowed(config, **flat, backends=[{"name": "faiss-flat", "metric": "ip"}])
    assert cbir("build", config, "--out", tmp_path / "ip.cbir").exit_code == 0
    found = tune(tmp_path / "ip.cbir", "knn_recall@10 >= 0.9", rungs=(), **flat, backends=["faiss-flat"])
    assert found.config["backends"] == [{"name": "faiss-flat", "metric": "ip"}]
    assert found.config["metrics"] == {"truth": {"metric": "ip"}}


def test_a_collection_is_read_as_it_was_extracted_not_as_a_codec_turned_it(config: Path, tmp_path: Path) -> None:
    """Of features that are never negative, a turn about their mean changes which are near by cosine."""
    np.save(tmp_path / "x.npy", np.maximum(clusters()[0], 0))
    turned: dict[str, Any] = {"codecs": [{"name": "rotate", "normalise": True}], "backends": [{"name": "faiss-flat"}]}
    flat = {"codecs": ["raw"], "backends": ["faiss-flat"], "rescore": ["none"]}
    for rescore in ("none", "float"):
        narrowed(config, **turned, rescore=[{"name": rescore}])
        assert cbir("build", config, "--out", tmp_path / f"{rescore}.cbir").exit_code == 0
    found = tune(tmp_path / "float.cbir", "knn_recall@10 >= 0.9", out=tmp_path / "t.yaml", **flat)  # type: ignore[arg-type]
    assert found.config["metrics"] == {"truth": {"metric": "cosine"}}
    with cf.Collection.build(tmp_path / "t.yaml", out=tmp_path / "t.cbir") as built:
        fresh = np.maximum(clusters(100, seed=5)[0], 0)
        near = exact_neighbours(np.load(tmp_path / "x.npy"), fresh, 1, "cosine")[0]
        assert (built.search_hits(fresh, 1).ids == near).mean() > 0.99
    with pytest.raises(InputError, match="what codec 'rotate' made of its embeddings"):
        tune(tmp_path / "none.cbir", "knn_recall@10 >= 0.9", **flat)  # type: ignore[arg-type]


def test_small_classes_of_which_a_sample_has_little_left_give_no_index_up() -> None:
    rng, labels = np.random.default_rng(0), np.repeat(np.arange(500), 4)
    x = rng.standard_normal((500, 32))[labels] + 0.4 * rng.standard_normal((len(labels), 32))
    codecs: list[Any] = ["raw", {"name": "itq", "bits": 32}]
    sections: dict[str, Any] = {"codecs": codecs, "backends": ["faiss-flat", "faiss-binary-flat"], "rescore": ["none"]}
    for rungs in ((), (500,)):
        found = tune(x.astype(np.float32), "hit@1 >= 0.7", labels=labels.tolist(), rungs=rungs, **sections)
        assert found.met
        assert found.chosen is not None
        assert found.chosen["codec"]["name"] == "itq", found.why


def test_targets_against_raw_may_look_deeper_than_a_hundred(config: Path) -> None:
    flat = {"codecs": ["raw"], "backends": ["faiss-flat"], "rescore": ["none"]}
    found = tune(config, "recall@200 >= raw - 0.05", rungs=(), **flat)  # type: ignore[arg-type]
    assert found.met
    assert found.measured["recall@200 - raw"]["value"] == pytest.approx(0, abs=1e-3), "raw is what raw is"


@pytest.mark.parametrize(("without", "there"), [(slice(200, 320), True), (slice(100, 200), False)])
def test_labels_are_looked_for_at_all_items_and_in_both_halves_of_the_queries(
    config: Path, without: slice, there: bool
) -> None:
    """The first 100 of those in random order are the queries to tune by, the next 100 the others."""
    _, labels = clusters()
    bare = set(np.random.default_rng(0).permutation(len(labels))[without].tolist())
    told = [{"path": str(i), **({} if i in bare else {"label": str(label)})} for i, label in enumerate(labels.tolist())]
    (config.parent / "some.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    source = {"name": "vectors", "file": "x.npy", "documents": "some.jsonl"}
    config.write_text(yaml.safe_dump({"source": source, **CODES}))
    if there:
        assert tune(config, "hit@1 >= 0.5", rungs=RUNGS).met
        return
    with pytest.raises(InputError, match="half of the queries, have none"):
        tune(config, "hit@1 >= 0.5", rungs=RUNGS)


def test_an_interval_near_one_is_not_of_width_nought_and_too_few_queries_are_said(config: Path) -> None:
    flat: dict[str, Any] = {"codecs": ["raw"], "backends": ["faiss-flat"], "rescore": ["none"]}
    found = tune(config, "knn_recall@10 >= 0.99", rungs=(), **flat)
    assert found.measured["knn_recall@10"]["value"] == 1
    assert found.measured["knn_recall@10"]["ci95"][0] < 0.99, "100 queries cannot say more"
    assert not found.met
    assert "100 queries that took no part in choosing are too few to show knn_recall@10 >= 0.99" in found.why
    assert "cannot be met" not in found.why


def test_what_comes_nearest_is_near_to_the_limits_too(config: Path) -> None:
    sections: dict[str, Any] = {"codecs": ["raw", {"name": "itq", "bits": 16}], "rescore": ["none"]}
    both = ["faiss-flat", "faiss-binary-flat"]
    found = tune(config, "knn_recall@10 >= 0.9", max_disk_bytes=170, rungs=(), backends=both, **sections)
    assert not found.met
    assert found.chosen is not None
    assert found.chosen["codec"]["name"] == "itq", "raw takes twice and more of what is allowed"
    found = tune(config, "knn_recall@10 >= 0.9", max_disk_bytes=380, rungs=(), backends=both, **sections)
    assert found.chosen is not None
    assert found.chosen["codec"]["name"] == "raw", "a tenth too large is nearer than half of the recall"


def test_what_a_prediction_gave_up_is_looked_at_again_the_cheapest_first(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each prediction is off, and the index that comes nearest is not confirmed."""
    monkeypatch.setattr(Judge, "_may", lambda self, target, mean, error: self.growth == 1)
    monkeypatch.setattr(Judge, "_exceeds", lambda self, target, mean, error: -0.05 if self.growth > 1 else 0.01)
    confirm = Race._confirm

    def but_the_first(race: Race, entrant: Entrant) -> bool:
        asked.append(entrant.structure.title)
        return len(asked) > 1 and confirm(race, entrant)

    asked: list[str] = []
    monkeypatch.setattr(Race, "_confirm", but_the_first)
    codecs = [{"name": "itq", "bits": [16, 24, 32]}]
    found = tune(narrowed(config, **{**CODES, "codecs": codecs}), "knn_recall@10 >= 0.2", rungs=RUNGS)
    assert found.met
    assert len(asked) == 2


@pytest.mark.parametrize("slow", [1.4, 1.6])
def test_a_noisy_moment_decides_nothing_among_those_that_are_as_quick(
    slow: float, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quicker of two was timed at a moment at which all took longer; beyond half as long again it is not asked."""
    took = {8: 1.0, 32: 1.2}
    asked: list[tuple[int, int]] = []

    def timed(self: Judge, way: Way, rounds: int = 3) -> Way:
        bits = self._structure.codec.options["bits"]
        asked.append((bits, rounds))
        ms = took[bits] * (1.2 * slow if (bits, rounds) == (8, 3) else 1.0)
        return replace(way, p50_ms=ms, p95_ms=ms, p99_ms=ms, batch_ms=ms)

    monkeypatch.setattr(Judge, "timed", timed)
    found = tune(config, "knn_recall@10 >= 0.5", minimise="latency", rungs=())
    assert found.chosen is not None
    assert found.chosen["codec"]["bits"] == (8 if slow < 1.5 else 32)
    in_turn = [bits for bits, rounds in asked if rounds == 1]
    assert in_turn == ([8, 32] * 3 if slow < 1.5 else [])
    assert found.measured["p50_ms"] == took[found.chosen["codec"]["bits"]]


def test_where_bytes_count_nothing_is_timed_in_turn(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Race, "_time_in_turn")
    assert tune(config, "knn_recall@10 >= 0.5", rungs=()).met


def test_what_does_not_fit_the_memory_is_not_filled(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "available_memory", lambda: 20_000)
    sections: dict[str, Any] = {"codecs": ["raw", {"name": "itq", "bits": 32}], "rescore": ["none"]}
    both = ["faiss-flat", "faiss-binary-flat"]
    found = tune(config, "knn_recall@10 >= 0.9", rungs=RUNGS, backends=both, **sections)
    assert not found.met
    assert found.chosen is not None
    assert found.chosen["codec"]["name"] == "itq"
    (reason,) = [reason for title, reason in found.others if "raw" in title]
    assert re.fullmatch(r"takes 0\.1 MB of memory, there are 0\.0 MB", reason)


class Clock:
    """A clock that stands still but for what is said to have taken time."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("spent", ["_weigh", "_grow", "_confirmed"])
def test_the_minutes_are_kept_wherever_they_are_spent(
    config: Path, monkeypatch: pytest.MonkeyPatch, spent: str
) -> None:
    """Each call takes all of the time there is: nothing is begun after the first."""
    clock, calls, real = Clock(), list[str](), getattr(Race, spent)
    np.save(config.parent / "x.npy", clusters(8_000)[0])
    config.write_text(yaml.safe_dump({"source": {"name": "vectors", "file": "x.npy"}, **CODES}))

    def slow(self: Race, *given: Any) -> Any:
        calls.append(spent)
        clock.now += 60
        return real(self, *given)

    monkeypatch.setattr(race, "time", clock)
    monkeypatch.setattr(tune_module, "time", clock)
    monkeypatch.setattr(Race, spent, slow)
    found = tune(config, "knn_recall@10 >= 0.3", minutes=1, items=10_000, rungs=(5_000,))
    assert len(calls) == 1
    assert "no time" in found.why
    if found.predicted is not None:
        assert "knn_recall@10" not in found.predicted


def test_the_next_look_is_expected_to_take_as_long_as_its_queries_and_items(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, has_time = list[float](), Race._has_time_for

    def asked(self: Race, entrant: Entrant) -> bool:
        if entrant.items == 400:
            last = entrant.looks[-1]
            times = 2.0  # 800 items in place of 400, and as many queries
            expected.append(self._expected(entrant, 800) / (400 * last.item_seconds + times * last.judge_seconds))
        return has_time(self, entrant)

    monkeypatch.setattr(Race, "_has_time_for", asked)
    assert tune(config, "knn_recall@10 >= 0.9", rungs=RUNGS).met
    assert expected
    assert expected == pytest.approx([1.0] * len(expected))


@pytest.mark.parametrize("ended", ["refused", "killed", "judging"])
def test_a_run_goes_on_with_its_own_after_another_was_begun_in_its_place(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    narrowed(config, **{**CODES, "codecs": [{"name": "itq", "bits": 32}]})
    _, whole = looks(config, tmp_path / "whole.yaml")
    out, other = tmp_path / "t.yaml", tmp_path / "other.yaml"
    first, _ = looks(config, out, die_after=1)
    np.save(tmp_path / "y.npy", clusters(seed=3)[0])
    other.write_text(config.read_text().replace("x.npy", "y.npy"))
    with monkeypatch.context() as patch:
        if ended == "refused":
            patch.setattr(room.shutil, "disk_usage", lambda folder: SimpleNamespace(free=-200_000))
        elif ended == "killed":
            patch.setattr("cbir_faiss.tuning.data.write_durably", raising(Killed()))
        else:
            patch.setattr(Judge, "ways", raising(Killed()))
        with pytest.raises((CbirError, Killed)):
            tune(other, "knn_recall@10 >= 0.95", out=out, rungs=RUNGS, minimise="latency")
    then, found = looks(config, out)
    assert found is not None
    assert whole is not None
    assert not set(first) & set(then)
    assert found.chosen == whole.chosen
    assert found.measured["knn_recall@10"] == whole.measured["knn_recall@10"]


def raising(error: BaseException) -> Any:
    def fail(*args: Any, **options: Any) -> None:
        raise error

    return fail


def test_another_version_or_machine_goes_on_with_nothing(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = looks(config, tmp_path / "t.yaml", die_after=2)
    monkeypatch.setattr(tune_module, "environment", lambda: {"cpu": "another"})
    then, found = looks(config, tmp_path / "t.yaml")
    assert found is not None
    assert set(first) <= set(then)


def test_looks_stay_where_the_minutes_were_too_few(config: Path, tmp_path: Path) -> None:
    found = tune(config, "knn_recall@10 >= 0.95", out=tmp_path / "t.yaml", rungs=RUNGS, minutes=1e-9)
    assert "no time" in found.why
    looks(config, tmp_path / "t.yaml", die_after=1)
    trials = tmp_path / "t.tuning" / "trials.jsonl"
    kept = trials.read_text()
    tune(config, "knn_recall@10 >= 0.95", out=tmp_path / "t.yaml", rungs=RUNGS, minimise="latency", minutes=1e-9)
    assert trials.read_text() == kept != ""
    other = "knn_recall@10 >= 0.5"
    assert tune(config, other, out=tmp_path / "t.yaml", rungs=RUNGS).met
    assert trials.read_text() == kept, "those of another run that may go on"


def test_where_the_minutes_were_too_few_nothing_is_filled_twice(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, filled, grow, look = Clock(), list[tuple[int, int]](), Grown.grow, Race._grow

    def watched(self: Grown, n: int) -> None:
        filled.append((self.n, n))
        grow(self, n)

    def slow(self: Race, *given: Any) -> Any:
        clock.now += 50
        return look(self, *given)

    monkeypatch.setattr(race, "time", clock)
    monkeypatch.setattr(tune_module, "time", clock)
    monkeypatch.setattr(Race, "_grow", slow)
    monkeypatch.setattr(Grown, "grow", watched)
    narrowed(config, **{**CODES, "codecs": [{"name": "itq", "bits": 32}]})
    settings: dict[str, Any] = {"minimise": "latency", "out": tmp_path / "t.yaml", "rungs": RUNGS}
    first = tune(config, "knn_recall@10 >= 0.9", minutes=0.5, **settings)
    assert not first.met
    assert "no time" in first.why
    again = tune(config, "knn_recall@10 >= 0.9", minutes=10, **settings)
    assert again.met
    assert filled == [(0, 200), (200, 400), (400, 800)]
    assert not list((tmp_path / "t.tuning").rglob("index.faiss")), "an answer leaves nothing"


def test_one_that_has_to_look_at_more_is_compared_with_the_others_again(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quickest is not confirmed until it looks at so much that another is quicker."""
    least, confirmed = dict[int, int](), Race._confirmed

    def timed(self: Judge, way: Way, rounds: int = 3) -> Way:
        bits = self._structure.codec.options["bits"]
        candidates = way.setting.candidates or 1
        ms = {24: 1.0, 32: 1.2}[bits] * candidates / least.setdefault(bits, candidates)
        return replace(way, p50_ms=ms, p95_ms=ms, p99_ms=ms, batch_ms=ms)

    def doubted(self: Race, judge: Judge, way: Way) -> Any:
        found = confirmed(self, judge, way)
        doubt = judge._structure.codec.options["bits"] == 24 and way.setting.candidates == least[24]
        return {key: replace(value, low=0.0) if doubt else value for key, value in found.items()}

    monkeypatch.setattr(Judge, "timed", timed)
    monkeypatch.setattr(Race, "_confirmed", doubted)
    codecs = [{"name": "itq", "bits": [24, 32]}]
    found = tune(narrowed(config, **{**CODES, "codecs": codecs}), "knn_recall@10 >= 0.5", minimise="latency", rungs=())
    assert found.met
    assert found.chosen is not None
    assert found.chosen["codec"]["bits"] == 32, found.why
    assert found.measured["p50_ms"] == 1.2


def test_a_failure_of_the_machine_is_tried_again(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "t.yaml"
    with monkeypatch.context() as patch:
        patch.setattr(Race, "_grow", raising(BackendError("no space left on device")))
        with pytest.raises(InputError, match="no space left"):
            tune(config, "knn_recall@10 >= 0.9", out=out, rungs=RUNGS)
    assert tune(config, "knn_recall@10 >= 0.9", out=out, rungs=RUNGS).met


def test_an_answer_of_before_is_none_to_what_was_not_met(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.yaml"
    out.write_text("before: 1\n")
    narrowed(config, **{**CODES, "rescore": [{"name": "none"}]})
    assert not tune(config, "knn_recall@10 >= 0.95", out=out, rungs=()).met
    assert not out.exists()
    assert (tmp_path / "t.yaml.before").read_text() == "before: 1\n"


def test_nothing_that_is_read_or_is_no_answer_is_written_over(config: Path, tmp_path: Path) -> None:
    before = config.read_bytes()
    for out, message in (
        (config, "this is what is tuned on"),
        (tmp_path / "x.npy", "ends in .yaml"),
        (tmp_path / "t.tuning", "ends in .yaml"),
        (tmp_path / "t.html", "ends in .yaml"),
        (tmp_path / "photos.yaml", "the report would be written over"),
    ):
        (tmp_path / "photos.html").write_text("<title>My photos</title>")
        result = cbir("tune", config, "--target", "knn_recall@10 >= 0.5", "--out", out)
        assert result.exit_code == 2, result.output
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert config.read_bytes() == before
    assert np.load(tmp_path / "x.npy").shape == (1_000, 32)
    for _ in range(2):  # the report of before is written over
        assert cbir("tune", config, "--target", "knn_recall@10 >= 0.5", "--out", tmp_path / "t.yaml").exit_code == 0


def test_a_config_of_vectors_in_memory_names_no_file_that_is_gone() -> None:
    found = cf.tune(clusters(600)[0], "knn_recall@10 >= 0.5", **CODES)
    assert found.met
    assert "source" not in found.config
    assert found.config["backends"] == CODES["backends"]


def test_a_bound_and_one_against_raw_floats_hold_together(config: Path) -> None:
    found = tune(config, ["map@5 >= 0.5", "map@5 >= raw - 0.1"], rungs=RUNGS)
    assert found.met
    assert found.why.count("map@5 ") == 1


@pytest.mark.parametrize(
    ("change", "target", "message"),
    [
        ({}, "knn_recall@10 > 1", "cannot be read"),
        ({"labels": None}, "map@5 >= 0.5", "have none"),
        ({"rows": 11}, "knn_recall@10 >= 0.5", "at least 10 items"),
        ({"rows": 2}, "knn_recall@1 >= 0.5", "tuning needs an item and two queries"),
        ({"fill": np.nan}, "knn_recall@10 >= 0.5", "not one of"),
        ({"fill": 0.0}, "knn_recall@10 >= 0.5", "items and 0 queries|two queries|direction"),
    ],
)
def test_data_that_cannot_be_tuned_on_are_one_line(config: Path, change: Any, target: str, message: str) -> None:
    x, _ = clusters(change.get("rows", 1_000))
    if "fill" in change:
        x[:] = change["fill"]
    np.save(config.parent / "x.npy", x)
    (config.parent / "labels.npy").unlink()
    config.write_text(yaml.safe_dump({"source": {"name": "vectors", "file": "x.npy"}, **CODES}))
    result = cbir("tune", config, "--target", target, "--out", config.parent / "t.yaml")
    assert result.exit_code in (1, 2), result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert re.search(message, result.stderr), result.stderr


@pytest.mark.parametrize("kind", ["constant", "duplicates"])
def test_vectors_that_say_nothing(config: Path, kind: str) -> None:
    x, _ = clusters()
    x[:] = x[0] if kind == "constant" else x[np.arange(len(x)) % 7]
    np.save(config.parent / "x.npy", x)
    sections = {
        "backends": [{"name": "faiss-flat", "metric": "cosine"}, *CODES["backends"]],
        "rescore": [{"name": "none"}],
    }
    codecs = [{"name": "raw"}, {"name": "itq", "bits": 8}]
    found = tune(narrowed(config, **sections, codecs=codecs), "knn_recall@10 >= 0.9", items=10_000, rungs=RUNGS)
    assert found.met, "equals are as near as each other"
    assert found.predicted is not None
    assert json.dumps(found.as_json(), allow_nan=False)


def test_bad_usage_is_status_2(config: Path, tmp_path: Path) -> None:
    assert cbir("tune", "--target", "knn_recall@10 >= 0.9").exit_code == 2
    assert cbir("tune", config, "--vectors", tmp_path / "x.npy", "--target", "knn_recall@10 >= 0.9").exit_code == 2
    assert cbir("tune", config).exit_code == 2
    assert cbir("tune", config, "--target", "knn_recall@10 >= 0.9", "--minutes", 0).exit_code == 2
    twice = cbir("tune", config, "--target", "map@5 >= 0.9", "--target", "map@5 >= 0.8")
    assert twice.exit_code == 2
    assert "contradict" in twice.stderr
    page = cbir("tune", config, "--target", "knn_recall@10 >= 0.9", "--out", tmp_path / "t.html")
    assert page.exit_code == 2
    assert "config to write" in page.stderr
    (tmp_path / "file").write_text("")
    nowhere = cbir("tune", config, "--target", "knn_recall@10 >= 0.9", "--out", tmp_path / "file" / "t.yaml")
    assert nowhere.exit_code == 1
    assert "cannot be written" in nowhere.stderr
    narrowed(config, backends=[{"name": "faiss-flat", "metrik": "l2"}])
    wrong = cbir("tune", config, "--target", "knn_recall@10 >= 0.9")
    assert wrong.exit_code == 2
    assert "data.yaml:" in wrong.stderr
    with pytest.raises(ConfigError, match="labels go with vectors"):
        tune(config, "knn_recall@10 >= 0.9", labels=[1])


def test_a_collection_reads_its_catalogue_once(config: Path, tmp_path: Path) -> None:
    from cbir_faiss.sources.collection import CollectionSource

    document = yaml.safe_load(config.read_text())
    document |= {"codecs": [{"name": "raw"}], "backends": [{"name": "faiss-flat"}], "rescore": [{"name": "none"}]}
    config.write_text(yaml.safe_dump(document))
    assert cbir("build", config, "--out", tmp_path / "raw.cbir").exit_code == 0
    source = CollectionSource(path=str(tmp_path / "raw.cbir"))
    assert source.items() is source.items()


def test_the_room_is_also_the_function() -> None:
    """Importing a module of the room must not hide the function of its name."""
    import cbir_faiss.tuning.target

    assert callable(cf.tune)
    assert cbir_faiss.tuning.target is not None
    with pytest.raises(ConfigError, match="no target"):
        cf.tune("nothing.yaml", [])
