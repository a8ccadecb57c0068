"""`cbir recall`: collections, index files and engines, what counts, what is lost by what, and bad input."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
from click.testing import CliRunner, Result

import cbir_faiss as cf
from cbir_faiss.cli import main
from cbir_faiss.collection import Collection, recalled
from cbir_faiss.collection.sync import Target
from cbir_faiss.config import parse_config
from cbir_faiss.errors import CbirError, DimensionMismatch, InputError
from cbir_faiss.measures.neighbours import exact_thresholds, of_others
from cbir_faiss.tuning.recall import recall
from cbir_faiss.types import Floats

N, DIM = 1200, 32
IVF = {"name": "faiss-ivf", "metric": "l2", "nlist": 24, "search": {"nprobe": 1}}
LSH = {"name": "lsh", "bits": 64}
FLAT = {"name": "faiss-binary-flat"}
EXACTLY = {"name": "float", "center": False}


def vectors(n: int = N, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((30, DIM))
    return (centres[rng.integers(0, 30, n)] + 2 * rng.standard_normal((n, DIM))).astype(np.float32)


def cbir(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


Build = Callable[..., Path]
NOW = {"generation": 1, "current": True}
WHOLE: dict[str, Any] = {"recall": 0.5, "ci95": [0.4, 0.6], "k": 10, "queries": 50, "generation": 1}
WRONG: list[dict[str, Any]] = [{"recall": 2}, {"recall": None}, {"ci95": [1]}, {"k": 0}, {"queries": "many"}]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def run(codec: Any = None, backend: Any = None, rescore: Any = None, x: Any = None, name: str = "x.cbir") -> Path:
        np.save(tmp_path / "x.npy", vectors() if x is None else x)
        document = {
            "source": {"name": "vectors", "file": str(tmp_path / "x.npy")},
            "codecs": [codec or {"name": "raw"}],
            "backends": [backend or IVF],
            "rescore": [rescore or {"name": "none"}],
        }
        Collection.build(parse_config(document), tmp_path / name).close()
        return tmp_path / name

    return run


def by_hand(x: Floats, k: int, found: Callable[[Floats, int], Any]) -> float:
    """Recall of every item as a query, itself left out."""
    apart = ((x[:, None].astype(np.float64) - x[None]) ** 2).sum(-1)
    np.fill_diagonal(apart, np.inf)
    bound = np.sort(apart, axis=1)[:, k - 1]
    ids = found(x, k + 1)
    total = 0.0
    for row, mine in enumerate(ids):
        others = [i for i in mine if i not in (row, -1)][:k]
        total += sum(apart[row, i] <= bound[row] * (1 + 1e-6) for i in others) / k
    return total / len(x)


def test_all_items_as_queries_give_the_exhaustive_value(build: Build) -> None:
    folder = build()
    with Collection.open(folder) as collection:
        wanted = by_hand(vectors(), 10, lambda q, k: collection.search_hits(q, k).ids)
    found = recall(folder, queries=10**6, sweep=False)
    assert found.recall == pytest.approx(wanted, abs=1e-9)
    assert found.ci95 == pytest.approx((wanted, wanted), abs=1e-6)
    assert found.queries == N


def test_draws_cover_it(build: Build) -> None:
    folder = build()
    truth = recall(folder, queries=N, sweep=False).recall
    found = [recall(folder, queries=200, sweep=False, seed=seed) for seed in range(20)]
    assert sum(one.ci95[0] <= truth <= one.ci95[1] for one in found) >= 16
    assert len({one.recall for one in found}) > 1


def test_lists_lose_and_floats_do_not(build: Build) -> None:
    found = recall(build(), queries=200, sweep=False)
    assert found.loss.code == pytest.approx(0, abs=1e-9)
    assert found.loss.graph == pytest.approx(1 - found.recall)
    assert found.recall < 0.9


def test_a_code_loses_and_a_scan_does_not(build: Build) -> None:
    found = recall(build(LSH, FLAT, {**EXACTLY, "candidates": 20}), queries=200, sweep=False)
    assert found.loss.graph == 0
    assert found.loss.code == pytest.approx(1 - found.recall)
    assert 0 < found.recall < 1


def test_a_code_in_lists_loses_by_both(build: Build) -> None:
    backend = {"name": "faiss-binary-ivf", "nlist": 20, "search": {"nprobe": 1}}
    found = recall(build(LSH, backend, {**EXACTLY, "candidates": 50}), queries=300, sweep=False)
    scan = recall(build(LSH, FLAT, {**EXACTLY, "candidates": 50}, name="y.cbir"), queries=300, sweep=False)
    assert found.loss.code is not None
    assert found.loss.code == pytest.approx(1 - scan.recall, abs=1e-9)
    assert found.loss.graph == pytest.approx(scan.recall - found.recall, abs=1e-9)


def test_a_code_that_the_index_makes_is_told_from_its_lists(build: Build) -> None:
    backend = {"name": "faiss-pq", "bits": 64, "nlist": 16, "search": {"nprobe": 1}}
    found = recall(build({"name": "raw"}, backend), queries=300, sweep=False)
    assert found.loss.code is not None
    assert found.loss.code > 0.1
    assert found.loss.graph > 0.1
    assert found.loss.code + found.loss.graph == pytest.approx(1 - found.recall)


def test_exact_vectors_are_found_again_in_the_recorded_source(build: Build, tmp_path: Path) -> None:
    folder = build(LSH, FLAT)
    with_source = recall(folder, queries=200)
    assert with_source.loss.code == pytest.approx(1 - with_source.recall)
    np.save(tmp_path / "x.npy", vectors(seed=5))  # other vectors under the same name are none of the items'
    without = recall(folder, queries=200)
    assert (without.loss.code, without.recall) == (None, 1.0)
    told = cbir("recall", folder, "--queries", 50, "--json")
    assert json.loads(told.stdout)["loss"] == {"code": None, "graph": 0.0}
    assert "--truth" in told.stderr
    given = recall(folder, queries=200, truth=vectors())
    assert given.recall == with_source.recall


def test_exact_vectors_of_pictures_are_found_again_in_the_cache(pictures: Path, tmp_path: Path) -> None:
    document = {
        "source": {"name": "folder", "root": str(pictures)},
        "extractors": [{"name": "hog", "size": 32}],
        "codecs": [LSH],
        "backends": [FLAT],
    }
    Collection.build(parse_config(document), tmp_path / "p.cbir").close()
    found = recall(tmp_path / "p.cbir", k=3)
    assert found.loss.code == pytest.approx(1 - found.recall)
    assert found.recall < 1


def test_deleted_items_are_neither_asked_nor_found(build: Build) -> None:
    folder = build()
    with Collection.open(folder) as collection:
        collection.delete(range(0, N, 2))
    found = recall(folder, queries=10**6, sweep=False)
    assert found.queries == N // 2


@pytest.mark.parametrize("rescore", ["asymmetric", "none"])
def test_more_than_one_segment(build: Build, rescore: str) -> None:
    folder = build(LSH, FLAT, {"name": rescore})
    with Collection.open(folder) as collection:
        collection.add_vectors(vectors(50, seed=3))
    found = recall(folder, queries=300)
    assert found.loss.code is None  # what was added by hand is in no source
    assert found.recall == 1


def test_brought_queries(build: Build) -> None:
    folder, q = build(), vectors(100, seed=4)
    found = recall(folder, vectors=q, k=5, sweep=False)
    bound = exact_thresholds(vectors(), q, 5, "l2")[:, 4]
    with Collection.open(folder) as collection:
        ids = collection.search_hits(q, 5).ids
    apart = ((vectors()[ids].astype(np.float64) - q[:, None]) ** 2).sum(-1)
    assert found.recall == pytest.approx(float((apart <= bound[:, None]).mean()))
    assert found.queries == 100


def test_the_sweep_rises_and_a_target_is_met_by_the_least(build: Build) -> None:
    found = recall(build(), queries=400, target=0.9)
    by_nprobe = sorted((one.search["nprobe"], one.recall) for one in found.settings)
    assert [value for _, value in by_nprobe] == sorted(value for _, value in by_nprobe)
    assert found.chosen is not None
    assert found.chosen.ci95[0] >= 0.9
    assert found.chosen.p50_ms == min(one.p50_ms for one in found.settings if one.ci95[0] >= 0.9)
    assert found.settings[0].search == {"nprobe": 1}


def test_a_rescorer_of_another_order_is_told(build: Build) -> None:
    x = vectors() + 3
    centred = recall(build(LSH, FLAT, {"name": "float", "candidates": "all"}, x=x), queries=100)
    assert centred.recall < 1
    assert "center: false" in centred.notes[0]
    plain = recall(build(LSH, FLAT, {**EXACTLY, "candidates": "all"}, x=x, name="y.cbir"), queries=100)
    assert (plain.recall, plain.notes) == (1.0, ())


def test_candidates_are_swept_too(build: Build) -> None:
    found = recall(build(LSH, FLAT, {**EXACTLY, "candidates": 20}), queries=200, target=0.97)
    assert {tuple(one.search) for one in found.settings} == {("candidates",)}
    assert found.chosen is not None
    assert found.chosen.search["candidates"] > 20


def test_a_target_that_needs_two_options(build: Build) -> None:
    backend = {"name": "faiss-binary-ivf", "nlist": 20, "search": {"nprobe": 1}}
    found = recall(build(LSH, backend, {**EXACTLY, "candidates": 10}), queries=300, target=0.97)
    assert found.chosen is not None
    assert found.chosen.search["nprobe"] > 1
    assert found.chosen.search["candidates"] > 10


def test_nothing_is_changed(build: Build) -> None:
    folder = build(LSH, FLAT)
    before = digests(folder)
    recall(folder, queries=50)
    assert digests(folder) == before


# --------------------------------------------------------------------------------------------- what it said last


def said(folder: Path) -> Any:
    """What ``cbir info`` has of it, as JSON and as a line."""
    told = json.loads(cbir("info", folder, "--json").stdout)["recall"]
    line = next(line for line in cbir("info", folder).stdout.splitlines() if line.startswith("recall"))
    return told, line.removeprefix("recall").strip()


def test_the_last_answer_is_kept_and_changes_nothing_else(build: Build) -> None:
    folder = build()
    before = digests(folder)
    assert said(folder) == (None, "not measured yet: cbir recall does")
    found = json.loads(cbir("recall", folder, "--queries", 50, "--json").stdout)
    assert said(folder)[0] == {**{name: found[name] for name in ("recall", "ci95", "k", "queries")}, **NOW}
    assert said(folder)[1].startswith(f"{found['recall']:.4f} at 10 (")
    assert cbir("recall", folder, "--queries", 60, "-k", 3).exit_code == 0
    assert (said(folder)[0]["queries"], said(folder)[0]["k"]) == (60, 3), "the later one"
    after = digests(folder)
    assert after.pop(recalled.FILE)
    assert after == before
    assert cbir("verify", folder).exit_code == 0
    folder = folder.rename(folder.with_name("moved.cbir"))
    assert said(folder)[0]["current"]


def test_an_answer_of_an_earlier_generation_says_so(build: Build) -> None:
    folder = build()
    cbir("recall", folder, "--queries", 50)
    assert cbir("delete", folder, "--id", 3).exit_code == 0
    told, line = said(folder)
    assert (told["generation"], told["current"]) == (1, False)
    assert line.endswith("50 queries, of generation 1: the collection has changed since)")
    cbir("recall", folder, "--queries", 50)
    assert said(folder)[0]["current"]
    assert sorted(path.name for path in folder.glob("recall*")) == [recalled.FILE], "nothing is left beside it"


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"recall": 1}', "{" * 5000, *(json.dumps({**WHOLE, **bad}) for bad in WRONG)],
)
def test_what_is_no_answer_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / recalled.FILE).write_text(content)
    assert recalled.last(tmp_path, 1) is None
    recalled.keep(tmp_path, WHOLE, 1)
    assert recalled.last(tmp_path, 1) == {**WHOLE, "current": True}


def test_where_nothing_may_be_written_it_is_told_all_the_same(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build()
    wrote = Path.write_text

    def refused(path: Path, *content: Any, **how: Any) -> int:
        if path.parent == folder:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return wrote(path, *content, **how)

    monkeypatch.setattr(Path, "write_text", refused)
    found = cbir("recall", folder, "--queries", 50)
    assert (found.exit_code, found.stderr) == (0, "")
    assert said(folder)[0] is None
    monkeypatch.undo()
    (folder / recalled.FILE).mkdir()  # something is there that cannot be replaced
    assert cbir("recall", folder, "--queries", 50).exit_code == 0
    assert said(folder)[0] is None
    assert [path.name for path in folder.glob("recall*")] == [recalled.FILE]


def test_several_who_ask_at_once_keep_one_answer(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from cbir_faiss.collection import recalled\n"
    code += f"for n in range(300): recalled.keep(Path(sys.argv[1]), {{**{WHOLE!r}, 'queries': 1 + n}}, 1)"
    recalled.keep(tmp_path, WHOLE, 1)
    asking = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    while any(one.poll() is None for one in asking):
        assert recalled.last(tmp_path, 1) is not None, "half of one"
    assert [one.returncode for one in asking] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == [recalled.FILE]


def test_a_rescorer_ranks_by_its_own_metric(build: Build) -> None:
    x = vectors() * np.random.default_rng(1).uniform(0.2, 5, (N, 1)).astype(np.float32)
    found = recall(
        build({"name": "raw"}, {"name": "faiss-flat", "metric": "l2"}, {**EXACTLY, "candidates": "all"}, x=x)
    )
    assert (found.recall, found.loss.code) == (1.0, 0.0)


def test_an_engine_that_keeps_the_index_of_a_collection(build: Build, tmp_path: Path) -> None:
    folder = build(backend={"name": "qdrant", "path": str(tmp_path / "engine"), "metric": "cosine"}, x=vectors(400))
    found = recall(folder, queries=50)
    assert found.recall > 0.9
    assert found.loss.code is not None
    assert len(found.settings) > 1


# ------------------------------------------------------------------------------------------------------------- engines


def test_an_index_file_and_an_index_object(tmp_path: Path) -> None:
    index = faiss.index_factory(DIM, "IVF24,Flat")
    index.train(vectors())
    index.add(vectors())
    faiss.write_index(index, str(tmp_path / "x.index"))
    wanted = by_hand(vectors(), 10, lambda q, k: index.search(q, k)[1])
    for place in (Target("faiss", {"file": str(tmp_path / "x.index")}), cf.wrap(index)):
        found = recall(place, queries=N)
        assert found.recall == pytest.approx(wanted, abs=1e-9)
        assert found.loss.code == 0
        assert max(one.recall for one in found.settings) == pytest.approx(1)
    assert {name for one in found.settings for name in one.search} == {"nprobe"}


def test_an_index_that_keeps_codes_needs_the_vectors(tmp_path: Path) -> None:
    index = faiss.index_factory(DIM, "IVF16,PQ8x4")
    index.train(vectors())
    index.add(vectors())
    without = recall(cf.wrap(index), queries=300, sweep=False)
    assert without.loss.code is None
    assert without.loss.graph == pytest.approx(1 - without.recall)
    given = recall(cf.wrap(index), queries=300, truth=vectors(), sweep=False)
    assert given.loss.code is not None
    assert given.recall < without.recall


@pytest.mark.parametrize(
    ("engine", "metric"),
    [
        ("qdrant", "cosine"),
        ("usearch", "l2"),
        ("usearch", "ip"),
        pytest.param("lancedb", "cosine", marks=pytest.mark.slow),
        pytest.param("pgvector-hnsw", "cosine", marks=pytest.mark.slow),
        pytest.param("lancedb-ivf_flat", "l2", marks=pytest.mark.slow),
    ],
)
def test_engines(engine: str, metric: str, tmp_path: Path) -> None:
    name, _, index = engine.partition("-")
    options: dict[str, Any] = (
        {"metric": metric} if name == "usearch" else {"metric": metric, "path": str(tmp_path / "e")}
    )
    if index:
        options |= {"index": index}
    backend = cf.load_backend(name, **options)
    try:
        ids = np.arange(600) * 7 + 3
        ids[-1] = 2**63 - 2
        backend.upsert(ids, vectors(600))
        backend.flush()
        held = list(backend.scroll())
        found = recall(backend, queries=100)
        assert found.recall > (0.3 if name == "lancedb" and index else 0.9)
        assert found.loss.code is not None
        assert found.loss.code + found.loss.graph == pytest.approx(1 - found.recall)
        assert all(np.array_equal(a.vectors, b.vectors) for a, b in zip(held, backend.scroll(), strict=True))
        assert backend.count() == 600
    finally:
        backend.close()


@pytest.mark.parametrize(
    ("engine", "options", "everything"),
    [
        ("lancedb", {"index": "ivf_pq", "nlist": 8, "sub_vectors": 1}, {"nprobe": 8}),
        (
            "qdrant",
            {"quantization": "binary", "indexing_threshold": 10, "full_scan_threshold": 10, "hnsw_m": 32},
            {"hnsw_ef": 1200},
        ),
    ],
)
def test_what_an_engines_codes_lose_is_told_from_its_index(
    engine: str, options: dict[str, Any], everything: dict[str, Any], tmp_path: Path
) -> None:
    x = vectors()
    backend = cf.load_backend(engine, metric="l2", path=str(tmp_path / "e"), **options)
    try:
        backend.upsert(np.arange(N), x)
        backend.flush()
        wanted = by_hand(x, 10, lambda q, k: backend.search(q, k, options=everything).ids)
        found = recall(backend, queries=N, sweep=False)
        assert 0.05 < 1 - wanted < 1
        assert found.loss.code == pytest.approx(1 - wanted, abs=0.01)
        assert found.loss.graph == pytest.approx(wanted - found.recall, abs=0.01)
    finally:
        backend.close()


def test_what_a_graph_of_the_vectors_loses_is_not_the_codes(tmp_path: Path) -> None:
    """However wide it is searched: of a graph of few links some items are never come by."""
    few = {"hnsw_m": 1, "hnsw_ef_construct": 4, "indexing_threshold": 10, "full_scan_threshold": 10}
    backend = cf.load_backend("qdrant", metric="l2", path=str(tmp_path / "e"), **few)
    try:
        backend.upsert(np.arange(N), vectors())
        backend.flush()
        found = recall(backend, queries=300, sweep=False)
        assert found.recall < 0.95
        assert (found.loss.code, found.loss.graph) == (0, pytest.approx(1 - found.recall))
    finally:
        backend.close()


def test_codes_in_an_engine(tmp_path: Path) -> None:
    backend = cf.load_backend("qdrant", path=str(tmp_path / "e"))
    codes = np.random.default_rng(0).integers(0, 256, (300, 8), np.uint8)
    backend.upsert(np.arange(300), codes)
    backend.flush()
    found = recall(backend, queries=50)
    assert (found.recall, found.loss.code) == (1.0, None)
    with pytest.raises(InputError, match="packed codes"):
        recall(backend, vectors=vectors(5))
    backend.close()


def test_a_usearch_file(tmp_path: Path) -> None:
    from usearch.index import Index

    index = Index(ndim=DIM, metric="l2sq", dtype="f32")
    index.add(np.arange(400), vectors(400))
    index.save(str(tmp_path / "x.usearch"))
    result = cbir("recall", "usearch", f"file={tmp_path / 'x.usearch'}", "--queries", 50, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["recall"] > 0.9
    (tmp_path / "bad.usearch").write_bytes(b"nothing")
    result = cbir("recall", "usearch", f"file={tmp_path / 'bad.usearch'}")
    assert result.exit_code == 1
    assert "bad.usearch" in result.stderr


# ------------------------------------------------------------------------------------------------------------ bad input


def test_fewer_items_than_k(build: Build) -> None:
    found = recall(build({"name": "raw"}, {"name": "faiss-flat"}, x=vectors(4)), k=10)
    assert (found.recall, found.queries) == (1.0, 4)
    with pytest.raises(InputError, match="none has a neighbour"):
        recall(build({"name": "raw"}, {"name": "faiss-flat"}, x=vectors(1), name="one.cbir"))


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_constant_and_duplicated_vectors(build: Build, metric: str) -> None:
    flat = {"name": "faiss-flat", "metric": metric}
    same = np.repeat(vectors(1), 40, axis=0)
    assert recall(build({"name": "raw"}, flat, x=same)).recall == 1
    twice = np.repeat(vectors(100), 3, axis=0)
    assert recall(build({"name": "raw"}, flat, x=twice, name="y.cbir")).recall == 1


def test_an_empty_collection(build: Build) -> None:
    folder = build()
    with Collection.open(folder) as collection:
        collection.delete(range(N))
    with pytest.raises(InputError, match="holds no items"):
        recall(folder)


def test_what_cannot_be_asked(build: Build) -> None:
    folder = build()
    q = vectors(3)
    q[1, 2] = np.nan
    for arguments, error in (
        ({"vectors": q}, "NaN"),
        ({"vectors": vectors(3)[:, :5]}, "dimensions"),
        ({"truth": vectors(7)}, "7 exact vectors for 1,200 items"),
        ({"truth": vectors()[:, :4]}, "dimensions"),
        ({"k": 0}, "at least 1"),
        ({"queries": 0}, "at least 1"),
        ({"target": 1.5}, "at most 1"),
    ):
        with pytest.raises(CbirError, match=error):
            recall(folder, **arguments)  # type: ignore[arg-type]
    with pytest.raises(DimensionMismatch):
        recall(folder, vectors=vectors(2)[:, :3])


def test_an_engine_that_is_not_there_or_gives_nothing_back(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="empty or does not exist"):
        recall(Target("qdrant", {"path": str(tmp_path / "none")}))
    assert not list(tmp_path.rglob("*.*"))
    index = faiss.index_binary_factory(64, "BHash16")
    index.add(np.random.default_rng(0).integers(0, 256, (50, 8), np.uint8))
    with pytest.raises(InputError, match="--vectors"):
        recall(cf.wrap(index))
    graph = faiss.index_factory(DIM, "HNSW8")
    graph.add(vectors(100))
    with pytest.raises(DimensionMismatch, match="32 dimensions"):
        recall(cf.wrap(graph), vectors=vectors(3)[:, :7])


def test_an_engine_without_exact_search_and_without_vectors(tmp_path: Path) -> None:
    pytest.importorskip("rabitqlib")
    backend = cf.load_backend("rabitq", nlist=16, bits=1)
    backend.create(DIM, "float")
    backend.train(vectors())
    backend.upsert(np.arange(N), vectors())
    with pytest.raises(InputError, match="gives no vectors back: bring queries"):
        recall(backend)
    asked = recall(backend, vectors=vectors(100), k=5)
    assert asked.loss.code is None
    assert "against a search of every code" in asked.notes[0]
    known = recall(backend, vectors=vectors(100), k=5, truth=vectors())
    assert known.loss.code is not None
    assert 0 < known.recall < asked.recall
    backend.close()


def test_the_command_line(build: Build, tmp_path: Path) -> None:
    folder = build()
    result = cbir("recall", folder, "--queries", 100, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert set(told) == {"recall", "ci95", "k", "queries", "loss", "settings"}
    assert set(told["loss"]) == {"code", "graph"}
    assert set(told["settings"][0]) == {"nprobe", "recall", "p50_ms"}
    text = cbir("recall", folder, "--queries", 100, "--target", 0.8).stdout
    assert "recall@10" in text
    assert "0.8 is met by nprobe=" in text
    missed = cbir("recall", build(LSH, FLAT, name="y.cbir"), "--queries", 100, "--target", 0.999, "--json")
    assert missed.exit_code == 1
    assert json.loads(missed.stdout)["chosen"] is None
    assert missed.stderr.count("\n") == 1
    for arguments, status in (
        (("nothing",), 1),
        ((folder, "a=b"), 2),
        ((tmp_path / "none.cbir",), 1),
        (("none.cbir",), 1),
        ((folder, "-k", 0), 2),
    ):
        failed = cbir("recall", *arguments)
        assert failed.exit_code == status, failed.output
        assert "Traceback" not in failed.output


def test_by_inner_product_an_item_need_not_be_its_own_nearest() -> None:
    thresholds = np.array([[-9.0, -5.0, -4.0], [-9.0, -5.0, -4.0]])
    assert of_others(thresholds, np.array([-1.0, -9.0])).tolist() == [[-9, -5], [-5, -4]]
