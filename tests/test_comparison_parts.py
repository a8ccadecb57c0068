"""The parts of a comparison by themselves: times, environment, names, sizes, curves and the gallery."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from _rows import made_up, raw
from PIL import Image

import cbir_faiss as cf
from cbir_faiss._lib import threads
from cbir_faiss.base.registry import make
from cbir_faiss.comparison import environment as environments
from cbir_faiss.comparison import resident, timing
from cbir_faiss.comparison.combine import describe, digest, slug
from cbir_faiss.comparison.environment import environment
from cbir_faiss.comparison.evaluator import CURVE_KS
from cbir_faiss.comparison.gallery import make_gallery
from cbir_faiss.comparison.index import _per_item
from cbir_faiss.comparison.split import Side, Split, _title, split_of_vectors, splits
from cbir_faiss.comparison.timing import Others, Timed, busier
from cbir_faiss.config import Choice, load_config, parse_choices
from cbir_faiss.errors import BadImage

# -- times


class Clock:
    """Time that passes only while something is searched."""

    def __init__(self, seconds: float, batch_seconds: float) -> None:
        self.now, self.seconds, self.batch_seconds = 0.0, seconds, batch_seconds
        self.asked: list[int] = []
        self.batches: list[list[int]] = []

    def perf_counter(self) -> float:
        return self.now

    def one(self, columns: Any, k: int) -> Any:
        assert (len(columns["embedding"]), len(columns["code"]), k) == (1, 1, 10)
        self.asked.append(int(columns["embedding"][0, 0]))
        self.now += self.seconds

    def batch(self, columns: Any, k: int) -> Any:
        assert (len(columns["code"]), k) == (len(columns["embedding"]), 10)
        self.batches.append(columns["embedding"][:, 0].astype(int).tolist())
        self.now += self.batch_seconds


def timed(clock: Clock, n: int) -> Timed:
    """By the module as it stands in its file: other tests time fewer queries."""
    spec = importlib.util.spec_from_file_location(timing.__name__, timing.__file__)
    assert spec is not None
    assert spec.loader is not None
    own: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    own.time = clock
    queries = {"embedding": np.arange(float(n))[:, None], "code": np.zeros((n, 2))}
    row: Timed = own.Timed(clock.one, clock.batch, queries)
    return row


def test_a_round_is_single_queries_after_a_warm_up_then_a_batch() -> None:
    clock = Clock(seconds=1 / 64, batch_seconds=2)
    row = timed(clock, 500)
    row.round()
    row.round()
    # 0.4 s are over with the 26th; the second round takes other queries.
    assert clock.asked == [*range(5), *range(26), *range(200, 205), *range(200, 226)]
    assert [times.tolist() for times in row.singles] == [[1 / 64] * 26] * 2
    assert clock.batches == [list(range(96))] * 2, "as many as take 1.5 s one by one"
    assert row.rates == [48, 48]


@pytest.mark.parametrize(
    ("n", "seconds", "singles", "batch"),
    [(500, 1 / 1024, 200, 500), (5000, 1 / 1024, 200, 1000), (500, 1, 20, 20), (12, 1, 12, 12), (30, 1 / 1024, 30, 30)],
)
def test_rounds_of_fast_and_slow_searches_and_few_queries(n: int, seconds: float, singles: int, batch: int) -> None:
    clock = Clock(seconds, batch_seconds=1)
    row = timed(clock, n)
    row.round()
    assert len(row.singles[0]) == singles
    assert clock.asked == [i % n for i in [*range(5), *range(singles)]]
    assert len(clock.batches[0]) == batch
    row.round()
    assert clock.asked[5 + singles] == 200 % n


def test_latency_is_of_the_round_with_the_least_median_and_so_is_qps() -> None:
    row = Timed(None, None, {}, rates=[5.0, 9.0, 7.0])  # type: ignore[arg-type]
    row.singles = [np.array([0.004, 0.005, 0.006]), np.arange(1, 102) / 1000 / 20, np.array([0.001, 0.009, 0.009])]
    assert row.qps == 9
    latency = row.latency_ms
    assert latency["rounds"] == pytest.approx([5, 2.55, 9])
    assert [latency[p] for p in ("p50", "p95", "p99")] == pytest.approx([2.55, 4.8, 5.0])


def test_work_of_others_is_what_all_did_less_what_this_did(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "cpu  100 10 20 5000 7 3 4 5 60 6\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    own = SimpleNamespace(user=0.1, system=0.2, children_user=0.3, children_system=0.04)
    monkeypatch.setattr(timing, "os", SimpleNamespace(sysconf=lambda name: 100, times=lambda: own))
    monkeypatch.setattr(timing, "Path", lambda path: SimpleNamespace(read_text=lambda encoding=None: text))
    assert Others._busy() == pytest.approx((100 + 10 + 20 + 3 + 4 + 5) / 100 - 0.64)
    text = "cpu  100 10 20"
    assert Others._busy() is None


def test_cores_that_others_keep_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, busy = Clock(0, 0), iter([1.0, 2.5, 10.0, 10.5, 0.0, None, 7.0, 3.0])
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(Others, "_busy", staticmethod(lambda: next(busy)))
    others = Others()
    assert others.cores() is None
    for _ in range(3):  # of the last the system does not say
        with others.watching():
            clock.now += 2
    assert others.cores() == pytest.approx(2 / 4)
    with others.watching():  # this process was said to have worked more than all: a rounding
        clock.now += 2
    assert others.cores() == 0


def test_a_fifth_of_a_core_is_too_much() -> None:
    assert busier([None, None]) == busier([]) == {"busy_cores": None, "busy": None}
    assert busier([0.1, None, 0.256]) == {"busy_cores": 0.26, "busy": True}
    assert busier([0.2]) == {"busy_cores": 0.2, "busy": False}


# -- where it was measured


def test_the_environment_is_that_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/cpuinfo": "processor : 0\nmodel name\t: Fast: one\nmodel name\t: two\n",
        "/proc/meminfo": "MemTotal:  2048 kB\nMemFree: 7 kB\n",
    }
    monkeypatch.setattr(environments, "Path", lambda path: SimpleNamespace(read_text=lambda: files[path]))
    found = environment(3)
    assert (found["cpu"], found["memory_bytes"], found["threads"]) == ("Fast: one", 2048 * 1024, 3)
    assert found["cores"] == environment()["threads"] == threads.available()
    assert found["python"] == platform.python_version()
    assert found["versions"]["numpy"] == np.__version__
    assert None not in found["versions"].values()


def test_an_environment_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(environments, "Path", lambda path: SimpleNamespace(read_text=missing))
    found = environment()
    assert (found["cpu"], found["memory_bytes"]) == (platform.processor(), None)


# -- names


def test_combinations_are_named_by_what_was_chosen() -> None:
    lsh, other = parse_choices("codecs", [{"name": "lsh", "bits": [64, 128]}], "codecs")
    (flat,) = parse_choices("backends", [{"name": "faiss-binary-flat"}], "backends")
    (rescore,) = parse_choices("rescorers", [{"name": "float", "candidates": 50}], "rescore")
    assert describe(lsh, flat, rescore) == "lsh bits=64 in faiss-binary-flat with float candidates=50"
    assert describe(flat) == "faiss-binary-flat"
    split = Split(Side(np.zeros((1, 2), np.float32), [()]), Side(np.zeros((1, 2), np.float32), [()]), title="a/b c")
    name = slug(split, lsh, flat)
    assert name.startswith("a-b-c-lsh64-faiss-binary-flat-")
    assert len(name.rsplit("-", 1)[1]) == 8
    assert name == slug(split, lsh, flat) != slug(split, other, flat)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


# -- what a comparison runs over


CONFIG = """\
source: {{name: folder, root: pictures}}
{queries}
extractors: [{extractor}]
codecs: [{{name: raw}}]
backends: [{{name: faiss-flat}}]
"""


def split_from(pictures: Path, queries: str = "", extractor: str = "{name: hog, size: 32}") -> list[Split]:
    path = pictures.parent / "c.yaml"
    path.write_text(CONFIG.format(queries=queries, extractor=extractor))
    return list(splits(load_config(path), None))


def test_every_so_many_in_the_order_of_paths_is_a_query(pictures: Path) -> None:
    names = sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*.png"))
    for queries, every in (("", 5), ("queries: {every: 7}", 7)):
        (split,) = split_from(pictures, queries)
        assert list(split.queries.paths) == names[::every]
        assert list(split.items.paths) == [name for i, name in enumerate(names) if i % every]
        assert list(split.queries.labels) == [(name.split("/")[0],) for name in names[::every]]
        assert split.items.document(0)["path"] == names[1]
    assert (split.source, split.extractor, split.title) == ("folder", "hog", "hog")


def test_rows_of_a_mirrored_network_are_told_apart() -> None:
    options = {"path": "runs/hash", "mirrored": True}
    assert _title(Choice("extractors", "trained", options), "code", several=False) == "hash mirrored"
    assert _title(Choice("extractors", "trained", {**options, "mirrored": False}), "code", several=True) == "hash code"


def test_each_embedding_of_an_extractor_is_a_split(pictures: Path) -> None:
    joined = "{name: joined, embeddings: all, of: [{name: hog, size: 32}, {name: histogram}]}"
    found = split_from(pictures, "queries: {source: {name: folder, root: pictures}}", joined)
    titles = [split.title for split in found]
    assert titles == ["hog + histogram embedding", "hog + histogram histogram.embedding"]
    for split in found:
        assert len(split.items) == len(split.queries) == 36
        assert split.extract_seconds > 0


def test_labels_of_arrays_are_texts_one_or_several() -> None:
    x = np.eye(4, dtype=np.float32)
    split = split_of_vectors(x, x, [1, ["a", 2], ("b",), np.array([3, 4])], None)
    assert list(split.items.labels) == [("1",), ("a", "2"), ("b",), ("3", "4")]
    assert list(split.queries.labels) == [()] * 4
    assert split.items.document(1)["label"] == ["a", "2"]


# -- sizes and curves


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    y = np.arange(420) % 5
    x = (rng.standard_normal((5, 16))[y] * 1.2 + rng.standard_normal((420, 16))).astype(np.float32)
    return {"vectors": x[20:], "queries": x[:20], "labels": y[20:], "query_labels": y[:20]}


def test_what_is_said_of_a_million_items_is_what_more_items_show(data: dict[str, Any]) -> None:
    def rows(n: int) -> list[dict[str, Any]]:
        return cf.compare(
            **{**data, "vectors": data["vectors"][:n], "labels": data["labels"][:n]},
            codecs=["raw", {"name": "itq", "bits": 16}],
            backends=["faiss-flat", {"name": "faiss-lsh", "bits": 256}, "faiss-binary-flat"],
            rescore=["none", {"name": "float", "candidates": 20}],
        )

    for few, many in zip(rows(200), rows(400), strict=True):
        for kind in ("memory", "disk"):
            slope = (many["bytes"][kind] - few["bytes"][kind]) / 200
            fixed = few["bytes"][kind] - 200 * slope
            expected = slope + fixed / 1e6
            # The head of a file is taken to grow, and a page of SQLite is not so fine.
            coarse = 0.3 if kind == "memory" else 25
            assert few["bytes"][f"{kind}_per_item_at_million"] == pytest.approx(expected, abs=coarse)
            assert few["bytes"][f"{kind}_per_item"] == pytest.approx(few["bytes"][kind] / 200)


def test_what_does_not_grow_is_shared_by_a_million() -> None:
    found = _per_item("memory", 1400, 400, 50)
    assert found == {"memory_per_item": 28, "memory_per_item_at_million": pytest.approx(8.001)}
    assert set(_per_item("disk", None, 1, 50).values()) == set(_per_item("disk", 1, None, 50).values()) == {None}


def test_curves_go_from_end_to_end_and_meet_the_measures(data: dict[str, Any]) -> None:
    rows = cf.compare(
        **data,
        codecs=["raw", {"name": "lsh", "bits": 128}],
        backends=["faiss-flat", "faiss-binary-flat"],
        k=[1, 5, 10, 100],
    )
    for row in rows:
        assert [k for k, _ in row["curves"]["map_k"]] == [k for k in CURVE_KS if k <= 100]
        at = dict(map(tuple, row["curves"]["map_k"]))
        for k in (1, 5, 10, 100):
            assert at[k] == pytest.approx(row["metrics"][f"map@{k}"], abs=1e-6)
        recalls, precisions = zip(*row["curves"]["pr"], strict=True)
        np.testing.assert_allclose(recalls, np.arange(21) / 20)
        assert precisions[-1] < precisions[0] <= 1
    assert "radius" not in rows[0]["curves"]
    radius, precision = zip(*rows[1]["curves"]["radius"], strict=True)
    assert (radius[0], radius[-1], len(radius)) == (0, 1, 65)
    assert precision[-1] == pytest.approx(0.2, abs=0.01), "of all items a fifth is right"


def test_a_row_is_measured_the_same_beside_others(data: dict[str, Any]) -> None:
    codecs = [{"name": "lsh", "bits": bits} for bits in (8, 16, 24)]
    together = cf.compare(**data, codecs=codecs, backends=["faiss-binary-flat"])
    for codec, row in zip(codecs, together, strict=True):
        (alone,) = cf.compare(**data, codecs=[codec], backends=["faiss-binary-flat"])
        assert (row["metrics"], row["curves"]) == (alone["metrics"], alone["curves"])


def test_as_many_hits_are_judged_as_neighbours_are_asked_for(data: dict[str, Any]) -> None:
    for labels in ({}, {"labels": data["labels"], "query_labels": data["query_labels"]}):
        (row,) = cf.compare(
            vectors=data["vectors"], queries=data["queries"], **labels, k=[1], truth={"metric": "l2", "k": 10}
        )
        assert row["metrics"]["knn_recall@10"] == 1


def test_by_default_it_is_measured_at_1_5_10_and_50(data: dict[str, Any]) -> None:
    (row,) = cf.compare(**data)
    assert {name for name in row["metrics"] if name.startswith("hit@") and "_" not in name} == {
        f"hit@{k}" for k in (1, 5, 10, 50)
    }


def test_hits_are_rescored_by_the_embeddings_whatever_the_codec_made_of_them(data: dict[str, Any]) -> None:
    (row,) = cf.compare(
        **data,
        codecs=["rotate"],
        backends=["faiss-flat"],
        rescore=[{"name": "float", "metric": "l2", "candidates": "all"}],
        truth={"metric": "l2", "k": 10},
    )
    assert row["metrics"]["knn_recall@10"] == 1


def test_resident_is_what_the_system_says_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "VmRSS:\t 900 kB\nRssAnon:\t 100 kB\nRssFile:\t 50 kB\nRssShmem:\t 28 kB\n"
    monkeypatch.setattr(resident, "Path", lambda path: SimpleNamespace(read_text=lambda: text))
    assert resident.resident_bytes() == 128 * 1024


def test_an_index_is_weighed_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    x = np.random.default_rng(0).random((40_000, 128), np.float32)
    backend = make("backends", "faiss-flat")
    backend.create(128, "float")
    backend.upsert(np.arange(len(x)), x)
    backend.save(tmp_path / "index")
    backend.close()
    with resident.ResidentMeter() as meter:
        for _ in range(2):
            taken = meter.measure("faiss-flat", {}, tmp_path / "index", x[:1])
            assert taken is not None
            assert 0.9 * x.nbytes < taken < 2 * x.nbytes


# -- pictures


class Pictures:
    yields = "image"

    def read(self, index: int) -> Image.Image:
        if index == 3:
            raise BadImage("gone")
        return Image.new("RGB", (200, 100), (index, 0, 0))


def gallery_split(n: int, queries: int) -> Split:
    source: Any = Pictures()

    def side(count: int, ignored: Any = ()) -> Side:
        labels = [("even", "all") if i % 2 == 0 else ("odd",) for i in range(count)]
        paths, places = [f"{i}.png" for i in range(count)], [(source, i) for i in range(count)]
        return Side(np.zeros((count, 2), np.float32), labels, {}, paths, places, ignored)

    return Split(side(n, [("odd",) if i == 1 else () for i in range(n)]), side(queries), title="t")


def test_the_gallery_shows_some_queries_with_their_first_hits_marked(tmp_path: Path) -> None:
    split = gallery_split(20, 30)
    ids = np.tile(np.arange(9), (30, 1))
    ids[:, 2] = -1
    np.savez(tmp_path / "raw.npz", ids=ids)
    np.savez(tmp_path / "itq.npz", ids=ids[:, ::-1])
    gallery = make_gallery(split, [raw(raw="raw.npz"), made_up(raw="itq.npz"), made_up(raw=None)], tmp_path)
    assert gallery is not None
    shown = [int(query["path"].removesuffix(".png")) for query in gallery["queries"]]
    assert len(shown) == 8
    assert (shown[0] > 0, shown[-1] < 29) == (True, True)
    assert set(np.diff(shown)) <= {3, 4}
    pictures = gallery["pictures"]
    assert [one["path"] for one in pictures] == [f"{i}.png" for i in range(9) if i != 2], "each is there once"
    for query, asked in zip(shown, gallery["queries"], strict=True):
        found = {raw: [(pictures[place], hit) for place, hit in hits] for raw, hits in asked["found"].items()}
        assert list(found) == ["raw.npz", "itq.npz"]
        # The second item is ignored by odd queries.
        left = [f"{i}.png" for i in ([0, 1, 3, 4, 5] if query % 2 == 0 else [0, 3, 4, 5, 6])]
        assert [one["path"] for one, _ in found["raw.npz"]] == left
        for one, hit in (*found["raw.npz"], *found["itq.npz"]):
            assert hit == (int(one["path"][0]) % 2 == query % 2)
            assert (one["image"] == "") == (one["path"] == "3.png")
        assert found["itq.npz"][0][0]["path"] == "8.png"
    assert gallery["queries"][0]["label"] in ("even, all", "odd")


def test_there_is_no_gallery_without_pictures_or_neighbours(tmp_path: Path) -> None:
    split = gallery_split(20, 30)
    np.savez(tmp_path / "x.npz", ids=np.zeros((30, 3), int))
    rows = [made_up(raw="x.npz")]
    assert make_gallery(split, rows, tmp_path) is not None
    assert make_gallery(split, [made_up(raw=None)], tmp_path) is None
    vectors = split_of_vectors(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    assert make_gallery(vectors, rows, tmp_path) is None
