"""The relevance cut-off: from labels, from distances alone, kept in the collection, and used by a search."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from cbir_faiss.cli import main
from cbir_faiss.collection import Collection
from cbir_faiss.collection.relevance import kept
from cbir_faiss.config import parse_config
from cbir_faiss.errors import InputError, Unsupported
from cbir_faiss.measures.cutoff import _halves, by_distances, by_labels
from cbir_faiss.storage.lock import writer_lock
from cbir_faiss.storage.manifest import Cutoff, read_manifest
from cbir_faiss.types import Floats

FIXTURES = Path(__file__).parent / "fixtures"


def cbir(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_labels_give_the_least_errors() -> None:
    found = by_labels(np.array([1.0, 2, 3, 4, 5, 6]), np.array([1, 1, 0, 1, 0, 0], bool))
    assert found.distance == pytest.approx(2.5)
    assert found.error == pytest.approx(1 / 6)


def test_what_ties_is_taken_together() -> None:
    found = by_labels(np.array([1.0, 2, 2, 2, 3]), np.array([1, 1, 0, 0, 0], bool))
    assert found.distance == pytest.approx(1.5)
    assert found.error == pytest.approx(1 / 5)


def test_where_nothing_or_all_is_meant() -> None:
    x = np.array([1.0, 2, 3])
    assert by_labels(x, np.zeros(3, bool)).distance < 1
    assert by_labels(x, np.ones(3, bool)) == (3.0, 0.0)
    for bad in ((np.empty(0), np.empty(0, bool)), (x, np.ones(2, bool))):
        with pytest.raises(InputError):
            by_labels(*bad)


@pytest.mark.parametrize("wide", [1.0, 1.4])
def test_two_components_are_told_apart(wide: float) -> None:
    rng = np.random.default_rng(0)
    near, far = rng.normal(1, wide * 0.2, 3000), rng.normal(3, wide * 0.5, 6000)
    found = by_distances(np.concatenate([near, far]))
    assert found is not None
    assert 1.4 < found.distance < 2.0
    wrong = ((near > found.distance).sum() + (far <= found.distance).sum()) / 9000
    assert found.error == pytest.approx(wrong, abs=0.01)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=12).filter(lambda x: len(set(x)) > 1))
def test_halves_have_the_least_variance_within(values: list[int]) -> None:
    x = np.sort(np.array(values, np.float64))

    def within(top: float) -> float:
        return sum(float(((part - part.mean()) ** 2).sum()) for part in (x[x <= top], x[x > top]))

    assert within(_halves(x)) == pytest.approx(min(within(top) for top in set(values) - {x[-1]}))


def test_distances_without_spread_say_nothing() -> None:
    assert by_distances(np.ones(50)) is None
    found = by_distances(np.array([0.0, 0, 0, 5]))
    assert found is not None
    assert found.error < 0.5
    assert by_distances(np.array([2.0])) is None
    with pytest.raises(InputError):
        by_distances(np.empty(0))


@pytest.mark.parametrize("dim", [2, 4, 16, 128])
def test_of_a_cloud_without_groups_nothing_can_be_told(dim: int) -> None:
    """Neither of floats nor of bits, although two components fit these distances better than one."""
    x = np.random.default_rng(0).standard_normal((4000, dim))
    for items in (x, (x @ np.random.default_rng(1).standard_normal((dim, 64)) > 0).astype(np.float64)):
        assert by_distances(*nearest_and_others(items)) is None


def nearest_and_others(x: Any, queries: int = 300, k: int = 200) -> tuple[Any, Any, float]:
    """Squared distances of hits, of pairs at random, and for how many pairs each of these stands."""
    rng = np.random.default_rng(0)
    apart = np.round((x[:queries] ** 2).sum(1)[:, None] + (x**2).sum(1) - 2 * x[:queries] @ x.T, 6)
    np.fill_diagonal(apart, np.inf)
    hits = np.sort(apart, axis=1)[:, :k]
    some = np.take_along_axis(apart, rng.integers(len(x), size=(queries, 100)), 1)
    some = some[(some > hits[:, -1:]) & np.isfinite(some)]
    return hits, some, queries * (len(x) - 1 - k) / len(some)


@pytest.mark.parametrize("size", [20, 1000, 2500])
def test_classes_smaller_and_larger_than_what_is_looked_at_are_found(size: int) -> None:
    rng = np.random.default_rng(0)
    group = np.arange(5000) // size
    x = (3 * rng.standard_normal((250, 16)))[group] + rng.standard_normal((5000, 16))
    order = rng.permutation(5000)
    found = by_distances(*nearest_and_others(x[order]))
    assert found is not None
    apart = ((x[order][:50, None] - x[order]) ** 2).sum(-1)
    same = group[order][:50, None] == group[order]
    assert (apart[same] <= found.distance).mean() > 0.9
    assert (apart[~same] <= found.distance).sum() < 0.2 * same.sum()


def vectors(n: int = 600) -> tuple[Floats, list[str]]:
    """Groups of 20 around centres far apart."""
    rng = np.random.default_rng(0)
    group = np.arange(n) // 20
    centres = 4 * rng.standard_normal((n // 20 + 1, 16))
    return (centres[group] + rng.standard_normal((n, 16))).astype(np.float32), [f"g{i}" for i in group]


Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def run(labelled: bool, codec: Any = None, backend: Any = None, rescore: Any = None, of: Any = None) -> Path:
        x, labels = of or vectors()
        np.save(tmp_path / "x.npy", x)
        told = [{"label": label} if label else {} for label in labels]
        lines = [json.dumps({"path": str(i), **one}) + "\n" for i, one in enumerate(told)]
        (tmp_path / "x.jsonl").write_text("".join(lines))
        source = {"name": "vectors", "file": str(tmp_path / "x.npy")}
        document = {
            "source": source | ({"documents": str(tmp_path / "x.jsonl")} if labelled else {}),
            "codecs": [codec or {"name": "raw"}],
            "backends": [backend or {"name": "faiss-flat"}],
            "rescore": [rescore or {"name": "none"}],
        }
        Collection.build(parse_config(document), tmp_path / "x.cbir").close()
        return tmp_path / "x.cbir"

    return run


@pytest.mark.parametrize("labelled", [True, False])
def test_a_search_leaves_out_what_is_not_meant(build: Build, labelled: bool) -> None:
    folder = build(labelled)
    with Collection.open(folder) as collection:
        assert collection.search_ids([3], k=50)[0][0].relevant is None
        found = collection.search_ids(range(0, 600, 7), k=50, relevant=True)
        cutoff = collection.cutoff
    assert cutoff.by == ("labels" if labelled else "distances")
    assert cutoff.error < 0.1
    for item, some in zip(range(0, 600, 7), found, strict=True):
        assert all(match.relevant and match.distance <= cutoff.distance for match in some)
        meant = [match for match in some if match.id // 20 == item // 20]
        assert len(meant) >= 15
        assert len(some) - len(meant) <= 5


def test_it_is_kept_and_a_search_says_it_of_each_hit(build: Build) -> None:
    folder = build(True)
    first = json.loads(cbir("search", folder, "--id", 3, "-k", 40, "--relevant", "--json").stdout)[0]
    assert {key for match in first for key in match} == {"id", "path", "label", "distance", "relevant"}
    assert all(match["relevant"] for match in first)
    manifest = read_manifest(folder)
    assert manifest.cutoff is not None
    assert manifest.generation == 2
    every = json.loads(cbir("search", folder, "--id", 3, "-k", 40, "--json").stdout)[0]
    assert [match["relevant"] for match in every] == [match["distance"] <= manifest.cutoff.distance for match in every]
    assert not all(match["relevant"] for match in every)
    assert cbir("verify", folder).exit_code == 0
    cbir("search", folder, "--id", 3, "--relevant")
    assert read_manifest(folder).generation == 2


def test_changes_keep_it_until_there_are_many_times_as_many(build: Build) -> None:
    folder = build(True)
    x, _ = vectors()
    with Collection.open(folder) as collection:
        before = collection.cutoff
        collection.add_vectors(x[:50])
        assert collection.cutoff == before
        collection.delete([0, 1])
        assert collection.cutoff == before
        for _ in range(4):
            collection.add_vectors(x)
        assert collection.cutoff.items == len(collection)


def test_one_who_may_not_write_uses_it_all_the_same(build: Build) -> None:
    folder = build(True)
    with Collection.open(folder) as collection, writer_lock(folder):
        assert collection.search_ids([3], k=40, relevant=True)[0]
        assert collection.manifest.cutoff is not None
    assert read_manifest(folder).cutoff is None


def test_another_who_writes_meanwhile_loses_nothing(build: Build) -> None:
    folder = build(True)
    x, _ = vectors()
    with Collection.open(folder) as reader, Collection.open(folder) as writer:
        writer.add_vectors(x[:30])
        assert reader.cutoff.items == 600
        assert (len(reader), reader.manifest.generation) == (600, 1)
        writer.add_vectors(x[:20])
        assert len(writer) == 650
    manifest = read_manifest(folder)
    assert (manifest.items, manifest.cutoff is not None) == (650, True)
    assert cbir("verify", folder).exit_code == 0


def test_a_collection_in_the_place_of_another_does_not_get_its_cutoff(build: Build, tmp_path: Path) -> None:
    folder = build(True)
    with Collection.open(folder) as collection:
        shutil.move(folder, tmp_path / "old.cbir")
        build(False)
        assert collection.cutoff.by == "labels"
    assert read_manifest(folder).cutoff is None


@pytest.mark.parametrize("fixture", sorted(path.name for path in FIXTURES.iterdir() if (path / "CURRENT").exists()))
def test_collections_of_earlier_versions_learn_it_too(fixture: str, tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / fixture, tmp_path / "x.cbir")
    with Collection.open(tmp_path / "x.cbir") as collection:
        assert collection.manifest.cutoff is None
        if fixture == "vectors-0.1":  # without labels or groups
            with pytest.raises(InputError, match="no gap"):
                _ = collection.cutoff
        else:
            assert collection.cutoff.error <= 0.5
    assert not cbir("verify", tmp_path / "x.cbir").exception


def test_codes_have_one_too(build: Build) -> None:
    with Collection.open(build(True, {"name": "lsh", "bits": 64}, {"name": "faiss-binary-flat"})) as collection:
        assert 0 < collection.cutoff.distance < 32


def test_one_item_has_no_neighbours(build: Build) -> None:
    with Collection.open(build(True)) as collection:
        collection.delete(range(1, 600))
        with pytest.raises(InputError, match="none has a neighbour"):
            collection.search_ids([0], relevant=True)


@pytest.mark.parametrize(
    ("codec", "rescore"),
    [(None, None), ({"name": "lsh", "bits": 128}, None), ({"name": "lsh", "bits": 128}, {"name": "float"})],
)
def test_classes_larger_than_the_hits_are_kept_whole(build: Build, codec: Any, rescore: Any) -> None:
    rng = np.random.default_rng(0)
    centres = 3 * rng.standard_normal((4, 16))
    x = (centres[np.arange(2000) % 4] + rng.standard_normal((2000, 16))).astype(np.float32)
    backend = {"name": "faiss-flat" if codec is None else "faiss-binary-flat"}
    folder = build(False, codec, backend, rescore, of=(x, ["" for _ in x]))
    with Collection.open(folder) as collection:
        found = collection.search_ids([0, 1, 2, 3], k=450, relevant=True)
    for item, some in enumerate(found):
        assert len(some) > 0.95 * 450
        assert all(match.id % 4 == item for match in some)


def test_without_a_gap_there_is_no_cutoff(build: Build) -> None:
    x = np.random.default_rng(0).standard_normal((1500, 16)).astype(np.float32)
    folder = build(False, of=(x, []))
    told = cbir("search", folder, "--id", 3, "--relevant")
    assert told.exit_code == 1
    assert "cannot be told" in told.stderr
    assert read_manifest(folder).cutoff is None


def test_what_has_no_label_says_nothing_about_what_is_meant(build: Build) -> None:
    x, labels = vectors()
    with Collection.open(build(True)) as collection:
        every = collection.cutoff
    forgotten = np.random.default_rng(0).random(len(x)) > 0.55
    some = [label if known else "" for label, known in zip(labels, ~forgotten, strict=True)]
    shutil.rmtree(collection.folder)
    with Collection.open(build(True, of=(x, some))) as collection:
        cutoff = collection.cutoff
    assert cutoff.by == "labels"
    assert cutoff.distance == pytest.approx(every.distance, rel=0.3)
    assert cutoff.error < 0.03


def test_signs_in_place_of_a_query_give_no_cutoff(build: Build) -> None:
    folder = build(True, {"name": "itq", "bits": 16}, {"name": "faiss-binary-flat"}, {"name": "asymmetric"})
    x, _ = vectors()
    with Collection.open(folder) as collection:
        with pytest.raises(Unsupported, match="only the signs"):
            collection.search(x[:3], relevant=True)
        assert collection.search(x[:1])[0][0].relevant is None
        wrong = Cutoff(distance=-21, error=0.1, by="labels", items=600)
        collection.store.manifest = kept(collection.store, wrong)
        assert collection.search(x[:1])[0][0].relevant is None
        with pytest.raises(Unsupported, match="only the signs"):
            collection.search_ids([3], relevant=True)
