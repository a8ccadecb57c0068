"""A filter costs no recall, whatever it keeps: every backend on FAISS finds as large a share of the nearest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import cbir_faiss as cf
from cbir_faiss.base import registry
from cbir_faiss.base.checks import normalise
from cbir_faiss.config import parse_config
from cbir_faiss.types import Codes, Ids

N, DIM, QUERIES, K = 3000, 32, 40, 10
LITTLE = 0.03
# What a backend has to be told, or is told so that it misses some of the nearest.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "faiss": [{"factory": f} for f in ("SQ8", "PCA16,HNSW8", "IVF64,SQ8", "IVF64_HNSW8,Flat", "PQ16x4fs")],
    "faiss-binary-hnsw": [{"m": 4}],
    "faiss-binary-ivf": [{"nlist": 64}],
    "faiss-eden": [{"nlist": 64}, {"nlist": 0}],
    "faiss-hnsw": [{"m": 4}, {"m": 4, "storage": "sq8"}, {"m": 8, "storage": "rabitq4"}],
    "faiss-ivf": [{"nlist": 64}],
    "faiss-lsh": [{"bits": 256}],
    "faiss-pq": [{"bits": 64, "nlist": 64}],
    "faiss-rabitq": [{"nlist": 64, "bits": 1}, {"nlist": 64, "bits": 4, "fast_scan": True}, {"nlist": 0, "bits": 2}],
    "rabitq": [{"nlist": 64, "bits": 7}],
    "rabitq-hnsw": [{"m": 4, "bits": 7}],
}
SEARCH = {"nprobe": 2, "ef": 12}


def _cases() -> list[Any]:
    ours = [name for name in registry.names("backends") if name.startswith(("faiss", "rabitq"))]
    return [
        pytest.param(name, options, id="-".join([name, *map(str, options.values())]))
        for name in ours
        for options in OPTIONS.get(name, [{}])
    ]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(before)


@cache
def data(kind: str) -> tuple[Codes, Codes]:
    """Items and queries around 50 centres."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((50, DIM))
    x = centres[rng.integers(0, 50, N + QUERIES)] + 0.6 * rng.standard_normal((N + QUERIES, DIM))
    x = x.astype(np.float32)
    if kind == "binary":
        x = np.packbits(x @ rng.standard_normal((DIM, 128)) > 0, axis=1)
    return x[:N], x[N:]


def nearest(backend: Any, queries: Codes, allowed: Ids) -> list[set[int]]:
    """The ids that an exact search finds, by the codes that a backend ranks by, where it tells them."""
    x = data(backend.kind)[0]
    own = backend.hamming_codes(queries)
    if own is None:
        apart = ((queries[:, None].astype(np.float64) - x[allowed][None]) ** 2).sum(axis=2)
    else:
        codes = backend.hamming_codes(x)[allowed]
        apart = np.unpackbits(own[:, None] ^ codes[None], axis=2).sum(axis=2)
    last = np.sort(apart, axis=1)[:, min(K, len(allowed)) - 1, None]
    return [set(allowed[row].tolist()) for row in apart <= last]


def recall(backend: Any, options: dict[str, Any], allowed: Ids | None) -> float:
    queries = data(backend.kind)[1]
    found = backend.search(queries, K, allowed, options).ids
    truth = nearest(backend, queries, np.arange(N) if allowed is None else allowed)
    right = [
        len(set(ids[ids >= 0].tolist()) & near) / min(K, len(near)) for ids, near in zip(found, truth, strict=True)
    ]
    return float(np.mean(right))


def filled(name: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if name.startswith("rabitq") and find_spec("rabitqlib") is None:
        pytest.skip("needs rabitqlib: Python 3.11 or newer")
    backend = cf.load_backend(name, **options)
    kind = "float" if "float" in backend.accepts else "binary"
    x = data(kind)[0]
    backend.create(x.shape[1] * (8 if kind == "binary" else 1), kind)
    backend.train(x[::2])
    backend.upsert(np.arange(N), x)
    searches = {key: value for key, value in SEARCH.items() if key in backend.SearchOptions.model_fields}
    if name == "faiss":
        searches = {k: v for k, v in searches.items() if {"nprobe": "IVF", "ef": "HNSW"}[k] in options["factory"][:9]}
        searches.pop("ef" if "IVF" in options["factory"] else "", None)
    return backend, {} if options.get("nlist") == 0 else searches


@pytest.mark.parametrize(("name", "options"), _cases())
def test_a_filter_loses_nothing(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Neither one that has nothing to do with the query, nor one that keeps a corner of the space, for queries all over
    it; and items that are deleted are left out like those of a filter."""
    backend, search = filled(name, options)
    unfiltered = recall(backend, search, None)
    shuffled = np.random.default_rng(1).permutation(N)
    for share in (0.001, 0.01, 0.1, 0.5):
        allowed = np.sort(shuffled[: int(share * N)])
        assert recall(backend, search, allowed) >= unfiltered - LITTLE, f"{share:.1%} of the items"

    x, queries = data(backend.kind)
    far = np.argsort(x[:, 0].astype(int) if backend.kind == "binary" else x[:, 0], kind="stable")[:400]
    hits = backend.search(queries, K, np.sort(far), search)
    assert set(hits.ids.ravel().tolist()) <= set(far.tolist())
    assert (hits.ids >= 0).all()
    backend.save(tmp_path / "saved")
    mapped = cf.load_backend(name, **options)
    mapped.restore(tmp_path / "saved", mmap=True)
    for changed in (backend, mapped):
        np.testing.assert_array_equal(changed.search(queries, K, np.sort(far), search).ids, hits.ids)
        changed.delete(np.setdiff1d(np.arange(N), far))
        np.testing.assert_array_equal(changed.search(queries, K, None, search).ids, hits.ids)


@pytest.mark.parametrize("factory", ["BHash16", "BHash4x16"])
def test_a_filter_of_a_few_codes_of_an_index_that_gives_none_back(factory: str) -> None:
    backend, search = filled("faiss", {"factory": factory})
    few = np.arange(7, N, 100)
    found = backend.search(data("binary")[0][few[:3]], 1, few, search).ids
    assert found[:, 0].tolist() == few[:3].tolist()


@pytest.mark.parametrize("options", [{"name": "rabitq"}, {"name": "faiss-rabitq", "fast_scan": True}])
@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_a_collection_compares_the_few_of_a_filter_with_what_it_keeps(
    options: dict[str, Any], metric: str, tmp_path: Path
) -> None:
    """Where the index would have to search for them: exactly, items that are deleted left out, and of each filter."""
    if options["name"] == "rabitq" and find_spec("rabitqlib") is None:
        pytest.skip("needs rabitqlib: Python 3.11 or newer")
    x, queries = data("float")
    np.save(tmp_path / "x.npy", x)
    documents = [json.dumps({"path": f"{i}.jpg", "draw": i % 100}) for i in range(N)]
    (tmp_path / "x.jsonl").write_text("\n".join(documents) + "\n")
    source = {"name": "vectors", "file": str(tmp_path / "x.npy"), "documents": str(tmp_path / "x.jsonl")}
    config = {"source": source, "codecs": [{"name": "raw"}], "backends": [{**options, "nlist": 16, "metric": metric}]}
    with cf.Collection.build(parse_config(config), tmp_path / "x.cbir") as collection:
        collection.delete([5, 105])
        # A segment of which a filter keeps all: its distances stand beside those of the large one.
        added = x[5:2005:100] + np.float32(0.1) * np.random.default_rng(2).standard_normal((20, DIM), dtype=np.float32)
        collection.add_vectors(added, [{"path": f"new/{i}.jpg", "draw": 5} for i in range(20)])
        x = np.concatenate([x, added])
        apart = {
            "l2": ((queries[:, None] - x[None]) ** 2).sum(axis=2),
            "ip": -queries @ x.T,
            "cosine": 1 - normalise(queries) @ normalise(x).T,
        }[metric]
        for draw in (5, 6, 5):
            among = np.setdiff1d(np.arange(draw, N, 100), [5, 105])
            among = np.concatenate([among, np.arange(N, len(x))]) if draw == 5 else among
            hits = collection.search_hits(queries, 3, {"draw": draw})
            np.testing.assert_array_equal(hits.ids, among[np.argsort(apart[:, among], axis=1)[:, :3]])
            np.testing.assert_allclose(hits.distances, np.sort(apart[:, among], axis=1)[:, :3], rtol=1e-4, atol=1e-4)


def test_ids_that_are_asked_for_again_are_those_that_live() -> None:
    """Who filters often gives the same ids again; what they were rows of may have changed."""
    backend, options = filled("faiss-flat", {})
    queries, ids = data("float")[1][:3], np.arange(0, N, 3)
    ids.flags.writeable = False

    def found() -> set[int]:
        return set(backend.search(queries, N, ids, options).ids.ravel().tolist()) - {-1}

    assert found() == found() == set(ids.tolist())
    backend.delete(np.array([0, 1, 3]))
    assert found() == set(ids.tolist()) - {0, 3}
    backend.upsert(np.array([3, N]), data("float")[0][:2])
    assert found() == set(ids.tolist()) - {0}
    other = np.arange(0, N, 3)
    backend.search(queries, 1, other, options)
    other[:] = np.arange(1, N + 1, 3)  # its owner writes to it
    assert set(backend.search(queries, N, other, options).ids.ravel().tolist()) - {-1} == set(range(4, N + 1, 3))


@pytest.mark.parametrize("name", [name for name in registry.names("backends") if name.startswith("faiss-binary")])
def test_a_filter_that_keeps_few_finds_them_whatever_changed(name: str, tmp_path: Path) -> None:
    """What is kept of the last filter is of the rows that it kept then; and every code is given back as it is now."""
    backend, options = filled(name, OPTIONS.get(name, [{}])[0])
    x, queries = data("binary")
    few, others = np.arange(0, N, 100), np.arange(1, N, 100)

    def check(allowed: Ids, among: Ids) -> None:
        hits = backend.search(queries, K, allowed, options)
        apart = np.bitwise_count(queries[:, None] ^ x[among][None]).sum(axis=2)
        np.testing.assert_array_equal(hits.distances, np.sort(apart, axis=1)[:, :K])
        assert np.isin(hits.ids, allowed).all()

    for allowed in (few, few, others, few):
        check(allowed, allowed)
    backend.delete(few[::2])
    check(few, few[1::2])
    again = few[1::2] + 1
    backend.upsert(few[1::2], x[again])
    check(few, again)
    now = x.copy()
    now[few[1::2]] = x[again]
    everybody = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(N), few[::2]))
    np.testing.assert_array_equal(backend.fetch(everybody), now[everybody])
    backend.save(tmp_path / "saved")
    backend.create(128, "binary")
    backend.train(x[::2])
    backend.upsert(np.arange(N), x[::-1])
    check(others, N - 1 - others)
    backend.restore(tmp_path / "saved")
    check(others, others)
