"""The same search by the code alone and exactly, over every way that floats are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config
from cbir_faiss.errors import InputError, UnknownId, Unsupported

X = np.random.default_rng(0).standard_normal((300, 24), np.float32)


def build(place: Path, codec: dict[str, Any], backend: dict[str, Any], rescore: dict[str, Any]) -> Collection:
    np.save(place / "x.npy", X[:200])
    document = {
        "source": {"name": "vectors", "file": str(place / "x.npy")},
        "extractors": [{"name": "vectors"}],
        "codecs": [codec],
        "backends": [backend],
        "rescore": [rescore],
    }
    collection = Collection.build(parse_config(document), place / "x.cbir")
    collection.add_vectors(X[200:])  # a second segment
    collection.delete([0, 250])
    return collection


def nearest(query: int, metric: str, centred: bool) -> list[int]:
    """The five nearest of what is there, by NumPy."""
    x = X.astype(np.float64) - (X[:200].mean(axis=0) if centred else 0)
    if metric == "cosine":
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    distances = -(x @ x[query]) if metric == "ip" else ((x - x[query]) ** 2).sum(axis=1)
    distances[[0, 250, query]] = np.inf
    return [int(i) for i in np.argsort(distances)[:5]]


LSH, FLAT = {"name": "lsh", "bits": 16}, {"name": "faiss-binary-flat"}


@pytest.mark.parametrize(
    ("codec", "backend", "rescore", "metric", "centred"),
    [
        (LSH, FLAT, {"name": "float", "candidates": 5}, "cosine", True),
        (LSH, FLAT, {"name": "float", "candidates": 5, "metric": "l2"}, "l2", False),
        (LSH, FLAT, {"name": "float", "candidates": 5, "metric": "ip"}, "ip", False),
        ({"name": "raw"}, {"name": "faiss-hnsw", "metric": "cosine"}, {"name": "none"}, "cosine", False),
        ({"name": "raw"}, {"name": "faiss-flat", "metric": "l2"}, {"name": "none"}, "l2", False),
        ({"name": "raw"}, {"name": "faiss-lsh", "bits": 16}, {"name": "none"}, "cosine", False),
    ],
    ids=["cosine", "l2", "ip", "graph", "flat", "hashed inside"],
)
def test_exact_finds_what_numpy_does(
    tmp_path: Path, codec: Any, backend: Any, rescore: Any, metric: str, centred: bool
) -> None:
    with build(tmp_path, codec, backend, rescore) as collection:
        queries = [3, 120, 260]
        expected = [nearest(query, metric, centred) for query in queries]
        by_id = collection.search_ids(queries, 5, rescore="exact")
        assert [[match.id for match in some] for some in by_id] == expected
        by_vector = collection.search(X[queries], 6, rescore="exact")
        assert [
            [match.id for match in some if match.id != q] for some, q in zip(by_vector, queries, strict=True)
        ] == expected
        assert np.allclose(collection.embeddings(queries), X[queries], atol=1e-5)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    """Codes with floats of half their precision."""
    rescore = {"name": "float", "store": "float16", "candidates": 10}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CBIR_CACHE", str(tmp_path_factory.mktemp("cache")))
        with build(tmp_path_factory.mktemp("half"), LSH, FLAT, rescore) as collection:
            yield collection


def test_floats_of_half_their_precision_do_nearly_as_well(half: Collection) -> None:
    found = [match.id for match in half.search_ids([7], 5, rescore="exact")[0]]
    assert len(set(found) & set(nearest(7, "cosine", centred=True))) >= 4
    assert np.allclose(half.embeddings([7]), X[[7]], atol=1e-2)


def test_the_code_alone_gives_bits(half: Collection) -> None:
    found = half.search_ids([7], 20, rescore="none")[0]
    assert all(0 <= match.distance <= 16 and match.distance == int(match.distance) for match in found)
    assert [match.distance for match in found] == sorted(match.distance for match in found)


def test_exact_goes_by_filters_and_ids(half: Collection) -> None:
    some = half.search_ids([7], 50, {"path": {"in": ["000000001", "000000002"]}}, rescore="exact")[0]
    assert {match.id for match in some} == {1, 2}
    assert half.search_ids([7], 5, {"path": "nothing"}, rescore="exact") == [[]]
    with pytest.raises(UnknownId):
        half.search_ids([250], 5, rescore="exact")
    with pytest.raises(UnknownId):
        half.embeddings([0])
    with pytest.raises(InputError):
        half.search_ids([1], 0, rescore="exact")
    everything = half.search_ids([7], 1000, rescore="exact")[0]
    assert len(everything) == 297


def test_codes_alone_have_no_exact_search(tmp_path: Path) -> None:
    with build(tmp_path, LSH, FLAT, {"name": "none"}) as collection:
        assert collection.search_ids([1], 3, rescore="none") == collection.search_ids([1], 3)
        for ask in (lambda: collection.search_ids([1], 3, rescore="exact"), lambda: collection.embeddings([1])):
            with pytest.raises(Unsupported, match="keeps codes and no floats"):
                ask()


@pytest.mark.parametrize("rescore", [None, "none", "exact"])
def test_an_empty_collection_finds_nothing(tmp_path: Path, rescore: Any) -> None:
    with build(tmp_path, LSH, FLAT, {"name": "float"}) as collection:
        collection.delete(where="not label = 1")
        assert len(collection) == 0
        assert collection.search(X[:2], 3, rescore=rescore) == [[], []]


def test_rotated_floats_are_searched_exactly_but_are_no_embeddings(tmp_path: Path) -> None:
    rotate = {"name": "rotate"}
    with build(tmp_path, rotate, {"name": "faiss-hnsw", "metric": "l2"}, {"name": "none"}) as collection:
        assert [match.id for match in collection.search_ids([3], 5, rescore="exact")[0]] == nearest(3, "l2", False)
        with pytest.raises(Unsupported, match="made of the embeddings"):
            collection.embeddings([3])
