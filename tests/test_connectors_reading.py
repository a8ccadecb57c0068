"""Filters in the engines' own languages, collections that somebody else made, and searches that are not exact."""

from __future__ import annotations

import contextlib
import datetime
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _postgres import administrator, running_postgres
from _qdrant_server import QdrantServer
from cbir_connectors import pgvector
from cbir_connectors._keys import Keys
from cbir_connectors._pgvector_rows import parse_payload
from cbir_connectors.lancedb import Lancedb
from cbir_connectors.pgvector import Pgvector
from cbir_connectors.qdrant import Qdrant
from cbir_connectors.usearch import Usearch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cbir_faiss.base import Backend
from cbir_faiss.base.filters import And, In, Not, Or, Range, Where
from cbir_faiss.errors import ConfigError, InputError, UnknownId, Unsupported
from cbir_faiss.types import MISSING_ID, Codes, Floats


def floats(n: int, dim: int = 16, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


def codes(n: int, bits: int = 64, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(0, 256, (n, bits // 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    with running_postgres() as path:
        yield path


# -- filters mean the same everywhere

KEYS = ["a", "b.c", "key with 'quotes' \"", "", "é"]
SCALARS: list[Any] = [None, True, False, 0, 1, 1.0, 2.5, -3, 2**53 + 1, "a", "b", "", "%s", "1", "true", "\\ \"'"]
scalars = st.sampled_from(SCALARS)
payloads = st.dictionaries(
    st.sampled_from(KEYS), st.one_of(scalars, st.lists(scalars, max_size=3), st.just({"a": 1}), st.just([["a"], [1]]))
)
conditions: st.SearchStrategy[Where] = st.one_of(
    st.builds(In, st.sampled_from(KEYS), st.lists(scalars, max_size=3).map(tuple)),
    st.builds(
        Range,
        st.sampled_from(KEYS),
        st.sampled_from(["gt", "gte", "lt", "lte"]),
        st.sampled_from([0, 1, 2.5, -3, "a", "b", ""]),
    ),
)
wheres: st.SearchStrategy[Where] = st.recursive(
    conditions,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: And(tuple(parts))),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: Or(tuple(parts))),
        inner.map(Not),
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def engines(postgres: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Backend]]:
    folder = tmp_path_factory.mktemp("engines")
    opened = [
        Qdrant(path=str(folder / "edge")),
        Qdrant(url=":memory:"),
        Pgvector(path=str(postgres), table="filters"),
        Lancedb(path=str(folder / "lance")),
        Usearch(),
    ]
    yield opened
    for backend in opened:
        backend.close()


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stored=st.lists(payloads, min_size=1, max_size=8), asked=st.lists(wheres, min_size=3, max_size=6))
def test_filters_agree_with_the_filter_itself(
    engines: list[Backend], stored: list[dict[str, Any]], asked: list[Where]
) -> None:
    data, ids = codes(8), np.arange(8)
    for backend in engines:
        backend.upsert(ids, data, (stored + [{}] * 8)[:8])
        backend.flush()
        for where in asked:
            right = {i for i, payload in enumerate((stored + [{}] * 8)[:8]) if where.matches(payload)}
            hits = backend.search(data[:1], 8, where)
            assert set(hits.ids[hits.ids != MISSING_ID].tolist()) == right, f"{backend}: {where}"
            assert set(backend.range_search(data[:1], 64, where).ids.tolist()) == right, f"{backend}: {where}"


def test_a_filter_on_infinity(engines: list[Backend]) -> None:
    for backend in engines:
        backend.upsert(np.arange(2), codes(2), [{"x": 1}, {"x": "a"}])
        backend.flush()
        try:
            hits = backend.search(codes(1), 2, {"x": {"lt": float("inf")}})
        except InputError as error:
            assert "finite" in str(error)  # noqa: PT017
        else:
            assert hits.ids[0].tolist() == [0, -1]


# -- collections of others


def test_a_qdrant_collection_with_uuids_and_named_vectors() -> None:
    from qdrant_client import models

    data, keys = floats(5), [str(uuid.UUID(int=n)) for n in range(5)]
    with QdrantServer() as server:
        cosine = models.VectorParams(size=16, distance=models.Distance.COSINE)
        server.engine.create_collection("photos", vectors_config={"image": cosine})
        payload = [{"label": n} for n in range(5)]
        vectors = {"image": data.tolist()}
        server.engine.upsert("photos", models.Batch(ids=keys, vectors=vectors, payloads=payload))
        server.engine.upsert("photos", [models.PointStruct(id=7, vector={}, payload={})])  # no picture yet
        backend = Qdrant(url=server.url, collection="photos", vector="image")
        hits = backend.search(data[2:3], 2)
        assert hits.distances[0, 0] == pytest.approx(0, abs=1e-6)
        assert backend.payload(hits.ids[0, :1]) == [{"label": 2}]
        np.testing.assert_allclose(backend.fetch(hits.ids[0, :1]), data[2:3] / np.linalg.norm(data[2]), atol=1e-6)
        (batch,) = backend.scroll()
        assert sorted(item["_key"] for item in batch.payload) == keys
        assert int(hits.ids[0, 0]) in batch.ids.tolist()
        backend.delete(hits.ids[0, :1])
        assert backend.count() == 5
        with pytest.raises(UnknownId):
            backend.fetch(np.array([7]))
        backend.close()


def test_a_server_without_the_extension_is_given_it() -> None:
    with running_postgres() as bare:
        with administrator(bare) as connection:
            connection.execute("DROP EXTENSION vector")
        backend = Pgvector(path=str(bare))
        backend.create(4, "float")
        assert backend.count() == 0
        backend.close()


def test_a_table_of_somebody_else(postgres: Path) -> None:
    data = floats(6)
    with administrator(postgres) as connection:
        connection.execute("CREATE SCHEMA shop")
        connection.execute("CREATE TABLE shop.goods (sku text PRIMARY KEY, feature vector(16), price int, tags text[])")
        for n, vector in enumerate(data):
            connection.execute(
                "INSERT INTO shop.goods VALUES (%s, %s::vector, %s, %s)",
                [f"it's {n}", str(vector.tolist()), n * 10, ["a", "b"][: n % 3]],
            )
        connection.execute("INSERT INTO shop.goods VALUES ('no picture yet', NULL, 5, NULL)")
        connection.execute("CREATE INDEX ON shop.goods USING hnsw (feature vector_l2_ops)")
        connection.execute("CREATE TABLE plain (id int PRIMARY KEY, embedding vector(16), payload jsonb)")
        connection.execute("CREATE TABLE shapeless (id int PRIMARY KEY, embedding vector)")
        connection.execute("CREATE TABLE odd (id int PRIMARY KEY, embedding bit(12))")
    names = {"namespace": "shop", "table": "goods", "id_column": "sku", "vector_column": "feature"}
    backend = Pgvector(path=str(postgres), **names)
    assert (backend.dim, backend.metric, backend.exact, backend.count()) == (16, "l2", False, 6)
    hits = backend.search(data[3:4], 3, {"price": {"gte": 20}, "tags": "a"}, {"exact": True})
    assert (hits.ids[0] >= 0).sum() == 3
    assert backend.search(data[3:4], 1, options={"ef_search": 20}).distances[0, 0] == pytest.approx(0, abs=1e-6)
    nearest = backend.search(data[3:4], 1).ids[0]
    assert backend.payload(nearest) == [{"price": 30, "tags": []}]
    np.testing.assert_array_equal(backend.fetch(nearest), data[3:4])
    batches = list(backend.scroll(4))
    assert [len(batch.ids) for batch in batches] == [4, 2]
    assert (backend.search(data[:1], 9, options={"exact": True}).ids >= 0).sum() == 6
    assert batches[0].payload[1] == {"_key": "it's 1", "price": 10, "tags": ["a"]}
    with pytest.raises(Unsupported, match="keys of type text"):
        backend.upsert(np.arange(1), data[:1])
    backend.delete(nearest)
    assert backend.count() == 5
    backend.close()
    plain = Pgvector(path=str(postgres), table="plain")
    assert plain.metric == "cosine"
    plain.upsert(np.arange(6), data, [{"n": n} for n in range(6)])
    np.testing.assert_allclose(plain.fetch(np.array([2])), data[2:3] / np.linalg.norm(data[2]), atol=1e-6)
    plain.close()
    with pytest.raises(ConfigError, match="it has id, embedding"):
        Pgvector(path=str(postgres), table="plain", vector_column="vector")
    with pytest.raises(ConfigError, match="is a vector, not a vector"):
        Pgvector(path=str(postgres), table="shapeless")
    with pytest.raises(Unsupported, match="12 bits"):
        Pgvector(path=str(postgres), table="odd")


def test_a_lance_table_of_somebody_else(tmp_path: Path) -> None:
    import lancedb
    import pyarrow as pa

    data = floats(5, 4)
    db = lancedb.connect(tmp_path)
    day = datetime.date(2020, 1, 2)
    vectors = pa.array([*data.tolist(), None], pa.list_(pa.float32(), 4))
    rows = {"id": [f"o'{n}" for n in range(6)], "vector": vectors, "label": list("abcdef"), "day": [day] * 6}
    db.create_table("goods", pa.table(rows), on_bad_vectors="null")
    db.create_table("flat", pa.table({"id": [1], "vector": [1.0]}))
    backend = Lancedb(path=str(tmp_path), table="goods", metric="l2")
    assert backend.count() == 5
    assert (backend.search(data[1:2], 9).ids >= 0).sum() == 5
    hits = backend.search(data[1:2], 2, {"label": {"in": ["b", "e"]}})
    assert hits.distances[0, 0] == 0
    assert backend.payload(hits.ids[0]) == [{"label": "b", "day": "2020-01-02"}, {"label": "e", "day": "2020-01-02"}]
    (batch,) = backend.scroll()
    assert sorted(item["_key"] for item in batch.payload) == [f"o'{n}" for n in range(5)]
    for change in (lambda: backend.upsert(np.arange(1), data[:1]), lambda: backend.delete(np.arange(1))):
        with pytest.raises(Unsupported, match="another program"):
            change()
    backend.close()
    with pytest.raises(ConfigError, match="it has id, vector, label, day"):
        Lancedb(path=str(tmp_path), table="goods", id_column="key")
    with pytest.raises(ConfigError, match="fixed-size list"):
        Lancedb(path=str(tmp_path), table="flat")


def test_numbers_that_are_none_are_null_in_the_payload_of_a_lance_table(tmp_path: Path) -> None:
    import lancedb
    import pyarrow as pa

    prices = [1.5, float("nan"), float("inf"), None]
    parts = [[1.0, float("nan")]] * 4
    rows = {"id": range(4), "vector": pa.array(floats(4, 4).tolist(), pa.list_(pa.float32(), 4))}
    lancedb.connect(tmp_path).create_table("goods", pa.table({**rows, "price": prices, "parts": parts}))
    with contextlib.closing(Lancedb(path=str(tmp_path), table="goods", metric="l2")) as backend:
        right = [{"price": price, "parts": [1.0, None]} for price in (1.5, None, None, None)]
        assert backend.payload(np.arange(4)) == right
        (batch,) = backend.scroll()
        assert batch.payload == right
        assert (backend.search(floats(1, 4), 4, {"price": {"gt": 0}}).ids >= 0).sum() == 1


def test_keys() -> None:
    keys = Keys()
    number = keys.id("a")
    assert number == Keys().id("a") != keys.id("b")
    assert 0 <= number < 2**63
    assert (keys.key(number), keys.key(7), keys.id(7)) == ("a", 7, 7)
    for other in (-1, 2**63):  # an engine may have them: they are keys like texts
        assert 0 <= keys.id(other) < 2**63
        assert keys.key(keys.id(other)) == other
        assert keys.labelled(other, {"a": 1}) == {"_key": str(other), "a": 1}


def test_large_numbers_come_back_from_jsonb(postgres: Path) -> None:
    payload = [{"x": 1e300, "y": 2**63 - 1, "z": -1e-300, "w": 1e23}]
    backend = Pgvector(path=str(postgres), table="numbers")
    backend.upsert(np.arange(1), codes(1), payload)
    assert backend.payload(np.arange(1)) == payload
    assert parse_payload(None) == {}
    backend.close()


# -- searches that are not exact


@pytest.mark.parametrize("quantization", ["binary", "binary-1.5", "binary-2", "scalar"])
@pytest.mark.parametrize("kind", ["float", "binary"])
def test_qdrant_quantization(quantization: str, kind: str, tmp_path: Path) -> None:
    if kind == "binary" and quantization == "scalar":
        pytest.skip("bits are quantized already")
    data = codes(2000) if kind == "binary" else floats(2000, 128)
    queries = data[:20]
    backend = Qdrant(
        path=str(tmp_path / "edge"), quantization=quantization, indexing_threshold=10, full_scan_threshold=10, hnsw_m=16
    )
    backend.upsert(np.arange(2000), data)
    backend.flush()
    exact = backend.search(queries, 10, options={"exact": True})
    rescored = backend.search(queries, 10, options={"exact": False, "oversampling": 8.0, "hnsw_ef": 256})
    raw = backend.search(queries, 10, options={"exact": False, "rescore": False})
    right = {(q, int(i)): float(d) for q in range(20) for i, d in zip(exact.ids[q], exact.distances[q], strict=True)}
    for hits in (rescored, raw):
        assert bool((hits.distances[:, 1:] >= hits.distances[:, :-1]).all())
        for q in range(20):
            for i, d in zip(hits.ids[q], hits.distances[q], strict=True):
                assert d == pytest.approx(right.get((q, int(i)), d), abs=1e-4)
    # Gaussian vectors have no near neighbours that one bit a dimension could tell
    assert (rescored.distances <= exact.distances[:, -1:] + 1e-4).mean() >= (
        0.8 if kind == "binary" or quantization == "scalar" else 0.4
    )
    backend.close()


def test_pgvector_hnsw(postgres: Path) -> None:
    data = codes(2000)
    backend = Pgvector(path=str(postgres), table="graph", index="hnsw")
    assert not backend.exact
    backend.upsert(np.arange(2000), data, [{"even": n % 2 == 0} for n in range(2000)])
    backend.flush()
    backend.flush()
    for options in ({}, {"ef_search": 100}, {"exact": True}):
        assert backend.search(data[:5], 1, options=options).distances.max() == 0
        odd = backend.search(data[:5], 20, {"even": False}, options)
        assert (odd.ids % 2 == 1).all()
        assert (backend.search(data[:1], 300, options=options).ids >= 0).all()  # more than ef_search
    backend.close()
    long = Pgvector(path=str(postgres), table="long", index="hnsw")
    with pytest.raises(ConfigError, match="at most 64000"):
        long.create(65_536, "binary")
    long.close()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"index": "ivfflat", "lists": 8, "build_memory": 64}, "float"),
        ({"index": "ivfflat", "lists": 8}, "binary"),
        ({"index": "binary"}, "float"),
        ({"index": "binary", "datatype": "float16", "metric": "ip"}, "float"),
    ],
)
def test_pgvector_indexes(options: dict[str, Any], kind: str, postgres: Path) -> None:
    """Lists, and signs that floats rank: most of what is nearest, all of it where all is looked at, and k of any."""
    data = codes(600) if kind == "binary" else floats(600)
    place = {"path": str(postgres), "table": f"indexed-{kind}-{'-'.join(map(str, options.values()))}"}
    with contextlib.closing(Pgvector(**place, **options)) as backend:
        backend.flush()  # nothing is there yet
        backend.upsert(np.arange(600), data, [{"even": n % 2 == 0} for n in range(600)])
        backend.flush()
        backend.flush()
        assert not backend.exact
        exact = backend.search(data[:20], 10, options={"exact": True})
        found = backend.search(data[:20], 10)
        assert (found.distances[:, 1:] >= found.distances[:, :-1]).all()
        assert (found.distances <= exact.distances[:, -1:] + 1e-4).mean() > 0.5
        everything: dict[str, Any] = {"oversample": 60} if options["index"] == "binary" else {"probes": 8}
        np.testing.assert_allclose(
            backend.search(data[:20], 10, options=everything).distances, exact.distances, atol=1e-4
        )
        odd = backend.search(data[:5], 40, {"even": False})
        assert (odd.ids % 2 == 1).all()
        assert len(backend.range_search(data[:1], float(exact.distances[0, -1]))) == 1
    with contextlib.closing(Pgvector(**place)) as again:  # it sees what there is
        assert not again.exact
        for _ in range(2):  # a plan of before is not used for what has to be exact
            again.search(data[:20], 10)
            np.testing.assert_array_equal(again.search(data[:20], 10, options={"exact": True}).ids, exact.ids)


@pytest.mark.parametrize("index", ["hnsw", "binary"])
def test_as_many_as_match_are_found_though_the_scan_of_the_index_ends_early(index: str, postgres: Path) -> None:
    data = floats(600)
    data[-30:] += 50 if index == "hnsw" else 0
    data[:-30] = np.abs(data[:-30])  # by signs, too, the last are farther from the first than any other
    with administrator(postgres) as connection:  # as at 20,000, where so many are nearer than those that match
        connection.execute("ALTER ROLE postgres SET hnsw.max_scan_tuples = 50")
        try:
            place = {"path": str(postgres), "table": f"early-{index}", "metric": "l2"}
            with contextlib.closing(Pgvector(**place, index=index, hnsw_m=4, hnsw_ef_construct=8)) as backend:
                backend.upsert(np.arange(600), data, [{"n": n} for n in range(600)])
                backend.flush()
                last = {"n": {"gte": 570}}
                found = backend.search(data[:20], 10, last, {"oversample": 1})
                exact = backend.search(data[:20], 10, last, {"exact": True})
                few, many = backend.search(data[:1], 40, last), backend.search(data[:1], 590)
        finally:
            connection.execute("ALTER ROLE postgres RESET hnsw.max_scan_tuples")
    np.testing.assert_array_equal(found.ids, exact.ids)
    assert ((few.ids >= 0).sum(), (many.ids >= 0).sum()) == (30, 590)


def test_an_index_of_another_column_is_not_taken_for_this_one_s(postgres: Path) -> None:
    with administrator(postgres) as connection:
        connection.execute(
            'CREATE TABLE pairs (id int PRIMARY KEY, image vector(16), image_small vector(16), "an image" vector(16))'
        )
        for column in ("image_small", '"an image"'):
            connection.execute(
                f"CREATE INDEX ON pairs USING hnsw ((binary_quantize({column})::bit(16)) bit_hamming_ops)"
            )
        connection.execute("CREATE INDEX ON pairs USING hnsw (image_small vector_l2_ops)")
    kinds = {}
    for column in ("image", "image_small", "an image"):
        place = {"path": str(postgres), "table": "pairs", "vector_column": column}
        with contextlib.closing(Pgvector(**place, index="binary")) as backend:
            kinds[column] = backend._index and backend._index.kind, backend.metric
    assert kinds == {"image": (None, "cosine"), "image_small": ("binary", "l2"), "an image": ("binary", "cosine")}


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine", "hamming"])
def test_a_range_search_reads_no_more_than_lies_within_the_radius(
    metric: str, postgres: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = codes(300) if metric == "hamming" else floats(300)
    read: list[int] = []
    asked = pgvector._asked

    def counted(*arguments: Any) -> Any:
        answers = asked(*arguments)
        read.extend(map(len, answers))
        return answers

    monkeypatch.setattr(pgvector, "_asked", counted)
    with contextlib.closing(Pgvector(path=str(postgres), table=f"range-{metric}", metric=metric)) as backend:
        backend.upsert(np.arange(300), data, [{"even": n % 2 == 0} for n in range(300)])
        everything = backend.range_search(data[:2], np.inf)
        for radius in (*everything.distances[[0, 7, 40]].tolist(), -1e3):  # at the border, too
            for where in (None, {"even": True}):
                read.clear()
                found = backend.range_search(data[:2], radius, where)
                keep = everything.distances <= radius
                keep &= where is None or everything.ids % 2 == 0
                border = np.isclose(everything.distances, radius)
                assert set(everything.ids[keep & ~border].tolist()) <= set(found.ids.tolist())
                assert set(found.ids.tolist()) <= set(everything.ids[keep | border].tolist())
                assert sum(read) == len(found.ids)


def test_an_index_is_built_with_the_memory_that_is_given_for_it(postgres: Path) -> None:
    with administrator(postgres) as connection:
        (usual,) = connection.execute("SHOW maintenance_work_mem").fetchone()
        connection.execute("CREATE TABLE told (memory text)")
        connection.execute(
            "CREATE FUNCTION tell() RETURNS event_trigger LANGUAGE plpgsql AS "
            "$$BEGIN INSERT INTO told VALUES (current_setting('maintenance_work_mem')); END$$"
        )
        connection.execute(
            "CREATE EVENT TRIGGER tell ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION tell()"
        )
        try:
            place = {"path": str(postgres), "table": "memory", "connections": 1}
            with contextlib.closing(Pgvector(**place, index="hnsw", build_memory=77)) as backend:
                backend.upsert(np.arange(50), floats(50))
                backend.flush()
                ((after,),) = backend._rows("SHOW maintenance_work_mem")
        finally:
            connection.execute("DROP EVENT TRIGGER tell")
        assert connection.execute("SELECT memory FROM told").fetchall() == [("77MB",)]
    assert after == usual != "77MB"


def test_signs_are_indexed_where_floats_are_too_long_and_codes_never(postgres: Path) -> None:
    with contextlib.closing(Pgvector(path=str(postgres), table="wide", index="binary", metric="cosine")) as backend:
        data = np.random.default_rng(0).standard_normal((30, 2048)).astype(np.float32)
        backend.upsert(np.arange(30), data)
        backend.flush()
        assert backend.search(data[:5], 1).ids.ravel().tolist() == [0, 1, 2, 3, 4]
    for index, dim, kind, message in [
        ("binary", 64, "binary", "codes take 'hnsw'"),
        ("ivfflat", 2048, "float", "at most 2000, not 2048; index 'binary' takes more"),
    ]:
        with (
            contextlib.closing(Pgvector(path=str(postgres), table="refused", index=index)) as backend,
            pytest.raises(ConfigError, match=message),
        ):
            backend.create(dim, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["float", "binary"])
def test_lancedb_ivf(kind: str, tmp_path: Path) -> None:
    data = codes(1000) if kind == "binary" else floats(1000)
    backend = Lancedb(path=str(tmp_path / "lance"), index="ivf_flat", nlist=8)
    backend.upsert(np.arange(1000), data)
    backend.flush()
    assert not backend.exact
    exact = backend.search(data[:10], 5, options={"exact": True})
    everywhere = backend.search(data[:10], 5, options={"nprobe": 8})
    np.testing.assert_allclose(everywhere.distances, exact.distances, atol=1e-5)
    backend.close()


@pytest.mark.parametrize("options", [{"datatype": "float16"}, {"datatype": "float16", "on_disk": True, "hnsw_m": 0}])
def test_qdrant_storage_options(options: dict[str, Any], tmp_path: Path) -> None:
    data = floats(50)
    backend = Qdrant(path=str(tmp_path / "edge"), metric="l2", payload_indexes={"label": "keyword"}, **options)
    backend.upsert(np.arange(50), data, [{"label": str(n % 2)} for n in range(50)])
    backend.flush()
    hits = backend.search(data[:3], 5, {"label": "1"})
    assert (hits.ids % 2 == 1).all()
    np.testing.assert_allclose(backend.fetch(np.arange(50)), data, atol=2e-3)
    disk = backend.disk_bytes()
    assert disk is not None
    assert disk > 50 * 16
    backend.close()
