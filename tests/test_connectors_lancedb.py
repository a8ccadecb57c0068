"""LanceDB with its quantized indexes, in an object store, and behind an address that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from _lancedb_server import LancedbServer
from _s3 import S3
from cbir_connectors.lancedb import Lancedb

from cbir_faiss.errors import BackendError, CbirError, ConfigError
from cbir_faiss.testing import BackendContract
from cbir_faiss.testing.backends import Case
from cbir_faiss.types import Floats

QUANTIZED = {"ivf_pq": {"sub_vectors": 8}, "ivf_rq": {"bits": 2}, "ivf_hnsw_sq": {"hnsw_m": 8}}


def floats(n: int, dim: int = 16, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


@pytest.fixture(scope="module")
def store() -> Iterator[S3]:
    with S3() as store:
        yield store


@pytest.fixture(scope="module")
def servers() -> Iterator[LancedbServer]:
    with LancedbServer() as server:
        yield server


@pytest.mark.slow
class TestLancedbInAStore(BackendContract):
    """The whole contract, with a graph over int8 wherever something was flushed."""

    plugin = Lancedb
    options: ClassVar[dict[str, Any]] = {"index": "ivf_hnsw_sq", "uri": "unused"}
    cases: ClassVar[list[Case]] = [("float", "cosine")]
    exhaustive: ClassVar[dict[str, Any]] = {"exact": True}

    @pytest.fixture(autouse=True)
    def environment(self, store: S3, monkeypatch: pytest.MonkeyPatch) -> None:
        store.use(monkeypatch)

    def make(self, place: Path, case: Case) -> Any:
        address = f"s3://bucket/{'-'.join(place.parts[-2:])}"
        return Lancedb(**{**self.options, "uri": address, "metric": case[1]})


@pytest.mark.slow
class TestLancedbOnServers(BackendContract):
    """The whole contract, by the client of LanceDB's servers."""

    plugin = Lancedb
    options: ClassVar[dict[str, Any]] = {"uri": "db://photos", "host": "unused"}
    cases: ClassVar[list[Case]] = [("binary", "hamming")]

    @pytest.fixture(autouse=True)
    def environment(self, servers: LancedbServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CBIR_LANCEDB_API_KEY", servers.api_key)
        self.host = servers.url

    def make(self, place: Path, case: Case) -> Any:
        metric = {} if case[1] == "hamming" else {"metric": case[1]}
        return Lancedb(**{**self.options, "host": self.host, "table": "-".join(place.parts[-2:]), **metric})


# -- quantized indexes


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("ivf_pq", "cosine"),
        ("ivf_rq", "l2"),
        ("ivf_hnsw_sq", "ip"),
        ("ivf_pq", "ip"),
    ],
)
def test_what_a_quantized_index_finds_is_ranked_by_the_vectors(kind: str, metric: str, tmp_path: Path) -> None:
    x = floats(900)
    with closing(Lancedb(path=str(tmp_path), metric=metric, index=kind, nlist=2, **QUANTIZED[kind])) as backend:
        backend.upsert(np.arange(900), x, [{"n": i % 2} for i in range(900)])
        backend.flush()
        assert not backend.is_exact()
        exact, everywhere = {"exact": True}, {"nprobe": 2, "ef": 900, "refine_factor": 180}  # every item
        assert backend.is_exact(backend.SearchOptions(**exact))
        truth = backend.search(x[:20], 5, options=exact)
        found = backend.search(x[:20], 5, options=everywhere)
        assert np.isclose(found.distances, truth.distances, atol=1e-4).mean() > 0.9  # a graph may not lead everywhere
        few = backend.search(x[:20], 5, {"n": 0}, options=everywhere).ids
        assert (few[few >= 0] % 2 == 0).all()
        by_id = {int(i): d for i, d in zip(*_flat(backend.search(x[:1], 900, options=exact)), strict=True)}
        for i, distance in zip(*_flat(backend.search(x[:1], 5, options={"refine_factor": 1})), strict=True):
            assert by_id[int(i)] == pytest.approx(distance, abs=1e-4)
        new = 3 * floats(3, seed=1)
        backend.upsert(np.arange(900, 903), new)  # not indexed yet
        assert backend.search(new, 903, options={"ef": 5, "refine_factor": 1}).ids.shape == (3, 903)
        best = backend.search(new, 3, options=everywhere).ids
        assert all(900 + row in ids for row, ids in enumerate(best))
    with closing(Lancedb(path=str(tmp_path))) as reader:  # which was told of no index
        assert not reader.is_exact()
        truth = reader.search(x[:20], 5, options=exact)
        found = reader.search(x[:20], 5, options=everywhere)
        assert np.isclose(found.distances, truth.distances, atol=1e-4).mean() > 0.9


def _flat(hits: Any) -> tuple[Any, Any]:
    return hits.ids.ravel(), hits.distances.ravel()


def test_an_index_of_another_kind_takes_the_place_of_the_one_that_is_there(tmp_path: Path) -> None:
    with closing(Lancedb(path=str(tmp_path), metric="l2", index="ivf_flat")) as backend:
        backend.flush()  # there is nothing yet
        backend.upsert(np.arange(10), floats(10))
        backend.flush()
    with closing(Lancedb(path=str(tmp_path), index="ivf_rq")) as backend:
        assert backend._index == "ivf_flat"
        backend.flush()
        (index,) = backend._live.list_indices()
        assert index.index_type == "IvfRq"
        backend.flush()  # again changes nothing
    with closing(Lancedb(path=str(tmp_path), overwrite=True)) as backend:
        backend.create(16, "float")
        assert (backend._index, backend.exact) == (None, True)


def test_an_index_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    import lancedb
    import pyarrow as pa
    from lancedb.index import IvfPq

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(floats(300).ravel()), 16)
    table = lancedb.connect(tmp_path).create_table("cbir", pa.table({"id": range(300), "vector": vectors}))
    table.create_index("vector", config=IvfPq(distance_type="cosine"))
    with closing(Lancedb(path=str(tmp_path), index="ivf_flat")) as backend:
        assert not backend.exact
        backend.flush()
        assert backend._index == "ivf_pq"
        truth = backend.search(floats(5), 5, options={"exact": True})
        found = backend.search(floats(5), 5, options={"refine_factor": 60})  # every item
        np.testing.assert_allclose(found.distances, truth.distances, atol=1e-4)


@pytest.mark.parametrize(("distance", "metric"), [("l2", "l2"), ("dot", "ip"), ("cosine", "cosine")])
def test_the_index_of_somebody_else_says_by_what_metric_it_is_searched(
    distance: Any, metric: str, tmp_path: Path
) -> None:
    import lancedb
    import pyarrow as pa
    from lancedb.index import IvfFlat

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(3 * floats(300).ravel()), 16)
    table = lancedb.connect(tmp_path).create_table("cbir", pa.table({"id": range(300), "vector": vectors}))
    table.create_index("vector", config=IvfFlat(distance_type=distance, num_partitions=2))
    with closing(Lancedb(path=str(tmp_path))) as backend:
        assert backend.metric == metric
        truth = backend.search(floats(5, seed=1), 5, options={"exact": True})
        found = backend.search(floats(5, seed=1), 5, options={"nprobe": 2})
        np.testing.assert_array_equal(found.ids, truth.ids)
    other = "l2" if metric == "ip" else "ip"
    with pytest.raises(ConfigError, match=f"{metric}.; leave 'metric' out") as caught:
        Lancedb(path=str(tmp_path), metric=other)
    assert len(str(caught.value).splitlines()) == 1


# -- addresses


def test_a_table_in_an_object_store(store: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    store.use(monkeypatch)
    x = floats(300)
    with closing(Lancedb(uri="s3://bucket/db", metric="l2", index="ivf_pq", sub_vectors=8)) as backend:
        backend.upsert(np.arange(300), x, [{"n": i} for i in range(300)])
        backend.flush()
        assert (backend.disk_bytes(), backend.in_process) == (None, True)
    with closing(Lancedb(uri="s3://bucket/db")) as again:
        assert again.search(x[7:8], 1, {"n": {"gte": 7}}).ids.tolist() == [[7]]
        assert sum(len(batch.ids) for batch in again.scroll(100)) == 300
        store.refuses = True
        with pytest.raises(BackendError, match="counting failed: its store does not answer, or refuses") as caught:
            again.count()
        assert len(str(caught.value).splitlines()) == 1
        assert "hunter2" not in str(caught.value)
        store.refuses = False
        again.remove()
    assert not any(name.startswith("bucket/db/cbir") for name in store.objects)


def test_a_table_on_servers_of_lancedb(servers: LancedbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CBIR_LANCEDB_API_KEY", servers.api_key)
    x, place = floats(300), {"uri": "db://photos", "host": servers.url, "table": "quantized"}
    with closing(Lancedb(**place, metric="l2", index="ivf_pq", sub_vectors=8)) as backend:
        backend.claim("me")
        backend.upsert(np.arange(300), x, [{"n": i} for i in range(300)])
        backend.flush()
        assert (backend.disk_bytes(), backend.in_process) == (None, False)
    with closing(Lancedb(**place)) as again:
        assert (again.metric, again._owner, again._index) == ("l2", "me", "ivf_pq")
        assert again.search(x[7:8], 1, {"n": 7}).ids.tolist() == [[7]]
        assert 'refine_factor":10' in servers.requests[-1]
        assert again.search(x[7:9], 1, options={"exact": True}).ids.ravel().tolist() == [7, 8]


@pytest.mark.parametrize("status", [401, 404, pytest.param(500, marks=pytest.mark.slow)])
def test_servers_of_lancedb_that_refuse(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CBIR_LANCEDB_API_KEY", "hunter2")
    said = {401: "refused the API key; .* CBIR_LANCEDB_API_KEY", 404: "404|not found"}.get(status, "errors, if any")
    with LancedbServer() as server:
        open_one = Lancedb(uri="db://photos", host=server.url, metric="l2")
        open_one.upsert(np.arange(3), floats(3))
        server.status = status
        calls = [
            lambda: Lancedb(uri="db://photos", host=server.url),
            lambda: open_one.upsert(np.arange(3), -floats(3)),
        ]
        for call in calls[:1] if status == 500 else calls:  # which the client tries again for seconds
            with pytest.raises(BackendError, match=said) as caught:
                call()
            assert len(str(caught.value).splitlines()) == 1
            assert "hunter2" not in str(caught.value)
        open_one.close()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "give one of 'path' .* or 'uri'"),
        ({"path": "x", "uri": "s3://bucket"}, "give one of 'path' .* or 'uri'"),
        ({"uri": "bucket/db"}, "a folder is a 'path'"),
        ({"uri": "memory://"}, "a folder is a 'path'"),
        ({"uri": "s3://me:hunter2@bucket/db"}, "no secrets in addresses"),
        ({"uri": "s3://bucket/db?api_key=hunter2"}, "no secrets in addresses"),
        ({"uri": "db://photos"}, "CBIR_LANCEDB_API_KEY"),
        ({"uri": "ftp://somewhere/db"}, "ftp"),
        ({"uri": "az://container/db"}, "AZURE"),
        ({"uri": "file:///proc/nowhere/db"}, "cannot be opened"),
    ],
)
def test_addresses_that_cannot_be_used(options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CBIR_LANCEDB_API_KEY", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CbirError, match=said) as caught:
        Lancedb(**options)
    assert len(str(caught.value).splitlines()) == 1
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "dim", "said"),
    [
        ({"index": "ivf_rq"}, 12, "multiple of 8 dimensions, not 12"),
        ({"index": "ivf_pq", "sub_vectors": 5}, 16, "16 dimensions are not divided by 5"),
        ({"index": "ivf_hnsw_sq"}, None, "codes take 'ivf_flat'"),
    ],
)
def test_vectors_that_an_index_cannot_take(options: dict[str, Any], dim: int | None, said: str, tmp_path: Path) -> None:
    with closing(Lancedb(path=str(tmp_path), **options)) as backend:
        with pytest.raises(ConfigError, match=said):
            backend.create(dim or 64, "float" if dim else "binary")
        assert backend.count() == 0


@pytest.mark.parametrize("options", [{"index": "ivf_xy"}, {"bits": 10}, {"sub_vectors": 0}])
def test_options_that_are_none(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Lancedb(path=str(tmp_path), **options)
    assert len(str(caught.value).splitlines()) == 1
