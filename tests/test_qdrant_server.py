"""The stand-in for a Qdrant server: what it honours, and how it misbehaves when it is told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from _qdrant_server import Fault, QdrantServer
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

Call = Callable[[QdrantClient], Any]
X = np.random.default_rng(0).standard_normal((2000, 16)).round(3)


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    with QdrantServer() as server:
        yield server


def create(server: QdrantServer, name: str = "x", **options: Any) -> QdrantClient:
    server.engine.create_collection(name, models.VectorParams(size=16, distance=models.Distance.EUCLID), **options)
    return server.engine


def upsert(client: QdrantClient, n: int, *, wait: bool = True, **payload: Any) -> Any:
    batch = models.Batch(ids=list(range(n)), vectors=X[:n].tolist(), payloads=[{"n": i, **payload} for i in range(n)])
    return client.upsert("x", batch, wait=wait)


def nearest(client: QdrantClient, **asked: Any) -> list[tuple[int, float]]:
    return [(point.id, point.score) for point in client.query_points("x", X[7].tolist(), limit=5, **asked).points]


# -- faults

READ: Call = lambda client: client.count("x")  # noqa: E731
WRITE: Call = lambda client: upsert(client, 3)  # noqa: E731


@pytest.mark.parametrize(("kind", "call"), [("read", READ), ("write", WRITE)])
@pytest.mark.parametrize("status", [401, 413, 429, 500, 503])
def test_a_status(status: int, kind: Any, call: Call, server: QdrantServer) -> None:
    client = create(server)
    server.faults = [Fault(status, on=kind, times=2)]
    for _ in range(2):
        with pytest.raises(UnexpectedResponse) as caught:
            call(client)
        assert caught.value.status_code == status
    call(client)
    assert server.faults == []


def test_retry_after(server: QdrantServer) -> None:
    client = create(server)
    server.faults = [Fault(429, on="any", retry_after=3)]
    with pytest.raises(ResourceExhaustedResponse) as caught:
        client.count("x")
    assert caught.value.retry_after_s == 3


def test_a_fault_waits_for_its_kind(server: QdrantServer) -> None:
    client = create(server)
    server.faults = [Fault(500, on="read")]
    upsert(client, 3)
    with pytest.raises(UnexpectedResponse):
        client.count("x")
    assert client.count("x").count == 3


@pytest.mark.parametrize("done", [False, True])
def test_a_lost_answer(done: bool, server: QdrantServer) -> None:
    client = create(server)
    server.faults = [Fault("hang up", done=done)]
    with pytest.raises(ResponseHandlingException, match="disconnected"):
        upsert(client, 3)
    assert client.count("x").count == 3 * done


def test_silence(server: QdrantServer) -> None:
    create(server)
    client = QdrantClient(url=server.url, timeout=1, check_compatibility=False)
    server.faults = [Fault("silence", on="read")]
    with pytest.raises(ResponseHandlingException, match="timed out"):
        client.count("x")
    client.close()


def test_a_request_that_is_too_large() -> None:
    with QdrantServer(max_bytes=2000) as server:
        client = create(server)
        upsert(client, 3)
        with pytest.raises(UnexpectedResponse, match="413"):
            upsert(client, 300)
        assert client.count("x").count == 3


@pytest.mark.parametrize(
    ("call", "status"),
    [
        (lambda client: client.count("nowhere"), 404),
        (lambda client: client.create_collection("x", models.VectorParams(size=4, distance="Dot")), 409),
        (lambda client: client.upsert("x", models.Batch(ids=[1], vectors=[[1.0, 2.0]])), 400),
    ],
)
def test_what_is_wrong_is_told(call: Call, status: int, server: QdrantServer) -> None:
    with pytest.raises(UnexpectedResponse) as caught:
        call(create(server))
    assert caught.value.status_code == status


# -- what is honoured


def test_a_write_that_is_not_waited_for_is_not_seen_yet(server: QdrantServer) -> None:
    client = create(server)
    assert upsert(client, 3, wait=False).status == "acknowledged"
    assert client.count("x").count == 0
    assert client.delete("x", [0], wait=True).status == "completed"
    assert client.count("x").count == 2


@pytest.mark.parametrize(("threshold", "indexed"), [(10, 2000), (100_000, 0)])
def test_the_index(threshold: int, indexed: int, server: QdrantServer) -> None:
    client = create(
        server,
        hnsw_config=models.HnswConfigDiff(m=8, full_scan_threshold=10),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=threshold),
    )
    upsert(client, 2000)
    assert client.get_collection("x").status == ("yellow" if indexed else "green")  # the optimizers have work
    info = client.get_collection("x")
    assert (info.status, info.config.hnsw_config.m, info.indexed_vectors_count) == ("green", 8, indexed)
    exact = nearest(client, search_params=models.SearchParams(exact=True))
    assert exact == nearest(client, search_params=models.SearchParams(hnsw_ef=500))


def test_quantization(server: QdrantServer) -> None:
    config = models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True))
    client = create(
        server,
        quantization_config=config,
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=10),
    )
    upsert(client, 2000)
    for _ in range(2):
        info = client.get_collection("x")
    assert info.config.quantization_config == config
    exact = nearest(client, search_params=models.SearchParams(exact=True))
    rough, fine = (
        nearest(client, search_params=models.SearchParams(quantization=models.QuantizationSearchParams(**chosen)))
        for chosen in ({"rescore": False}, {"rescore": True, "oversampling": 100.0})
    )
    assert rough != exact
    assert fine == exact


def test_payload_indexes(server: QdrantServer) -> None:
    client = create(server)
    client.create_payload_index("x", "n", models.PayloadSchemaType.INTEGER)
    client.create_payload_index("x", "label", models.KeywordIndexParams(type="keyword"))
    upsert(client, 5, label="a")
    schema = client.get_collection("x").payload_schema
    assert {name: (index.data_type.value, index.points) for name, index in schema.items()} == {
        "n": ("integer", 5),
        "label": ("keyword", 5),
    }


def test_true_is_not_1(server: QdrantServer) -> None:
    client = create(server)
    points = [
        models.PointStruct(id=n, vector=X[n].tolist(), payload={"a.b": {"c": value}})
        for n, value in enumerate([True, 1, [1, True], False])
    ]
    client.upsert("x", points)
    for wanted, right in ((True, {0, 2}), (False, {3}), (1, {1, 2})):
        match = models.FieldCondition(key='"a.b".c', match=models.MatchValue(value=wanted))
        found, _ = client.scroll("x", models.Filter(must=[match]))
        assert {record.id for record in found} == right


def test_one_of_several_vectors(server: QdrantServer) -> None:
    params = models.VectorParams(size=2, distance=models.Distance.DOT)
    server.engine.create_collection("x", {"image": params, "text": params})
    server.engine.upsert("x", [models.PointStruct(id=1, vector={"image": [1, 2], "text": [3, 4]}, payload={"a": 1})])
    server.engine.update_vectors("x", [models.PointVectors(id=1, vector={"image": [5, 6]})])
    server.engine.set_payload("x", {"b": 2}, [1])
    (record,) = server.engine.retrieve("x", [1], with_vectors=True)
    assert (record.vector, record.payload) == ({"image": [5, 6], "text": [3, 4]}, {"a": 1, "b": 2})
    server.engine.overwrite_payload("x", {"c": 3}, [1])
    server.engine.delete_vectors("x", ["text"], [1])
    (record,) = server.engine.retrieve("x", [1], with_vectors=True)
    assert (record.vector, record.payload) == ({"image": [5, 6]}, {"c": 3})


def test_metadata(server: QdrantServer) -> None:
    client = create(server, metadata={"owner": "a"})
    client.update_collection("x", metadata={"since": 1})
    assert client.get_collection("x").config.metadata == {"owner": "a", "since": 1}


def test_aliases(server: QdrantServer) -> None:
    client = create(server, "old")
    create(server, "x")
    upsert(client, 3)

    def point(name: str) -> None:
        made = models.CreateAlias(collection_name=name, alias_name="live")
        client.update_collection_aliases([models.CreateAliasOperation(create_alias=made)])

    point("old")
    assert client.count("live").count == 0
    point("x")
    assert client.count("live").count == 3
    assert [alias.collection_name for alias in client.get_aliases().aliases] == ["x"]
    assert {one.name for one in client.get_collections().collections} == {"old", "x"}
    with pytest.raises(UnexpectedResponse, match="404"):
        point("nowhere")
    client.delete_collection("x")
    assert not client.collection_exists("live")


def test_it_comes_back_with_what_it_had(server: QdrantServer) -> None:
    client = create(server)
    upsert(client, 3)
    server.stop()
    with pytest.raises(ResponseHandlingException):
        client.count("x")
    server.start()
    assert client.count("x").count == 3
