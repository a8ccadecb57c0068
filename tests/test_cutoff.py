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
from cbir_faiss.config import parse_config
from cbir_faiss.errors import InputError
from cbir_faiss.measures.cutoff import _halves, by_distances, by_labels
from cbir_faiss.storage.lock import writer_lock
from cbir_faiss.storage.manifest import read_manifest
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


@pytest.mark.parametrize("wide", [1.0, 2.0])
def test_two_components_are_told_apart(wide: float) -> None:
    rng = np.random.default_rng(0)
    near, far = rng.normal(1, wide * 0.2, 3000), rng.normal(3, wide * 0.5, 6000)
    found = by_distances(np.concatenate([near, far]))
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
    assert by_distances(np.ones(50)) == (1.0, 0.5)
    assert by_distances(np.array([0.0, 0, 0, 5])).error < 0.5
    assert by_distances(np.array([2.0])).error == 0.5
    with pytest.raises(InputError):
        by_distances(np.empty(0))


def vectors(n: int = 600) -> tuple[Floats, list[str]]:
    """Groups of 20 around centres far apart."""
    rng = np.random.default_rng(0)
    group = np.arange(n) // 20
    centres = 4 * rng.standard_normal((n // 20 + 1, 16))
    return (centres[group] + rng.standard_normal((n, 16))).astype(np.float32), [f"g{i}" for i in group]


Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    def run(labelled: bool, codec: Any = None, backend: Any = None) -> Path:
        x, labels = vectors()
        np.save(tmp_path / "x.npy", x)
        (tmp_path / "labels.txt").write_text("\n".join(labels))
        source = {"name": "vectors", "file": str(tmp_path / "x.npy")}
        document = {
            "source": source | ({"labels": str(tmp_path / "labels.txt")} if labelled else {}),
            "codecs": [codec or {"name": "raw"}],
            "backends": [backend or {"name": "faiss-flat"}],
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
