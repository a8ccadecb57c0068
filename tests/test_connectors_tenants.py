"""Many users in one Qdrant collection: each finds, changes and removes its own items, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from _qdrant_server import QdrantServer
from cbir_connectors.qdrant import Qdrant
from click.testing import CliRunner

import cbir_faiss as cf
from cbir_faiss.cli import main
from cbir_faiss.config import parse_config
from cbir_faiss.errors import CbirError, ConfigError, InputError, Unsupported
from cbir_faiss.testing import BackendContract
from cbir_faiss.testing.backends import Case
from cbir_faiss.types import Floats

ANNA, BOB = {"key": "user", "value": "anna"}, {"key": "user", "value": "bob"}
As = Callable[..., AbstractContextManager[Qdrant]]


def floats(n: int, dim: int = 8, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


@pytest.mark.slow
class TestTenant(BackendContract):
    """Whatever a backend promises holds for a tenant."""

    plugin = Qdrant
    options: ClassVar[dict[str, Any]] = {"tenant": ANNA}
    cases: ClassVar[list[Case]] = [("float", "cosine")]

    @pytest.mark.xfail(reason="the collection is not the tenant's: made anew, its vectors stay as long as they were")
    def test_overwrite(self, filled: Any, case: Case, tmp_path: Path) -> None:
        super().test_overwrite(filled, case, tmp_path)


@pytest.fixture
def server() -> Iterator[QdrantServer]:
    with QdrantServer() as server:
        yield server


@pytest.fixture(params=["edge", "server"])
def user(request: pytest.FixtureRequest, tmp_path: Path) -> As:
    """Opens the collection as a tenant, or as nobody; Edge is open for one at a time."""
    place = {"path": str(tmp_path / "edge")}
    if request.param == "server":
        place = {"url": request.getfixturevalue("server").url}
    return lambda tenant, **options: closing(Qdrant(**place, tenant=tenant, metric="l2", **options))


def everything(backend: Qdrant) -> list[Any]:
    """All that a user can see."""
    (batch,) = backend.scroll()
    ids = batch.ids
    np.testing.assert_array_equal(backend.fetch(ids), batch.vectors)
    assert backend.payload(ids) == batch.payload
    assert backend.count() == len(ids)
    return [ids.tolist(), batch.vectors.tolist(), batch.payload]


def test_tenants_see_and_change_their_own(user: As) -> None:
    x, y = floats(30), floats(10, seed=1)
    with user(ANNA) as anna:
        anna.upsert(np.arange(30), x, [{"n": i, "name": f"{i:02}"} for i in range(30)])
        anna.flush()
        hers = everything(anna)
    assert hers == [list(range(30)), x.tolist(), [{"n": i, "name": f"{i:02}"} for i in range(30)]]
    with user(BOB) as bob:
        assert (bob.count(), bob.dim, list(bob.scroll())) == (0, None, [])
        bob.upsert(np.arange(10), y, [{"n": i} for i in range(10)])  # the same ids
        bob.flush()
        for where in (None, {"n": {"gte": 0}}, {"not": {"name": "00"}}, {"not": {"name": {"gt": "00"}}}):
            for exact in (True, False):
                hits = bob.search(x, 30, where, {"exact": exact})
                assert set(hits.ids[:, :10].ravel()) == set(range(10))
                assert (hits.ids[:, 10:] == -1).all()
            assert bob.range_search(x[:2], 1e6, where).limits.tolist() == [0, 10, 20]
        assert (bob.search(x[:1], 1, {"name": {"gte": "00"}}).ids == -1).all()
        first = next(bob.scroll(4))
        assert [i for batch in bob.scroll(4, first.cursor) for i in batch.ids.tolist()] == [4, 5, 6, 7, 8, 9]
        bob.delete(np.arange(5, 30))
        assert everything(bob)[0] == [0, 1, 2, 3, 4]
    with user(ANNA) as anna:
        assert everything(anna) == hers
        assert anna.search(x, 1).ids.ravel().tolist() == list(range(30))
    with user(BOB, overwrite=True) as bob:
        bob.create(8, "float")
        assert bob.count() == 0
        bob.upsert(np.arange(3), y[:3])
    with user(BOB) as bob:
        assert everything(bob) == [[0, 1, 2], y[:3].tolist(), [{}] * 3]
        bob.remove()
        assert (bob.count(), bob.dim) == (0, None)
    with user(ANNA) as anna:
        assert everything(anna) == hers
    with user(None) as whole:
        assert whole.count() == 30


def test_a_tenant_has_one_owner_and_the_collection_none(user: As) -> None:
    with user(ANNA) as mine:
        mine.claim("mine")
        mine.upsert(np.arange(3), floats(3))
    with user(BOB) as theirs:
        theirs.claim("theirs")
        theirs.upsert(np.arange(3), floats(3))
    with user(ANNA) as other:
        for owner in (None, "theirs"):
            with pytest.raises(ConfigError, match=r"tenant 'anna' belongs to"):
                other.claim(owner)
            with pytest.raises(ConfigError, match=r"tenant 'anna' belongs to"):
                other.delete(np.arange(3))
        assert other.payload(np.arange(3)) == [{}] * 3
        other.claim("mine")
        other.delete(np.arange(3))
    with user(ANNA) as next_one:  # of nobody, now that there is nothing
        next_one.claim("theirs")
        next_one.upsert(np.arange(1), floats(1))


def test_points_of_others_are_a_tenants_by_their_payload(server: QdrantServer) -> None:
    """Integers, UUIDs of their own; read, changed in place and deleted, under ids of their digest."""
    from qdrant_client import models

    there = models.VectorParams(size=8, distance=models.Distance.EUCLID)
    server.engine.create_collection("cbir", vectors_config=there)
    keys = [1, 2, "5b4ab09b-ab45-4b6a-9c1b-2c1d3cf1c3a4", 4]
    x = floats(4)
    payload = [{"user": name, "n": n} for n, name in enumerate(["anna", "anna", "anna", "bob"])]
    server.engine.upsert("cbir", models.Batch(ids=keys, vectors=x.tolist(), payloads=payload))
    with closing(Qdrant(url=server.url, tenant=ANNA)) as anna:
        (batch,) = anna.scroll()
        assert [one["n"] for one in batch.payload] == [0, 1, 2]
        assert [one["_key"] for one in batch.payload] == ["1", "2", keys[2]]
        anna.upsert(np.array([1]), x[3:])  # is not the point 1
        anna.upsert(batch.ids[1:2], x[3:], [{"n": "new"}])
        anna.delete(batch.ids[:1])
        assert anna.count() == 3
    kept = {str(point.id): point.payload for point in server.engine.scroll("cbir")[0]}
    assert kept["2"] == {"n": "new", "user": "anna"}
    assert kept["4"] == payload[3]
    assert {"2", "4", keys[2]} < set(kept)
    assert len(kept) == 4


def test_the_tenants_key_is_indexed_and_each_has_a_graph(tmp_path: Path, server: QdrantServer) -> None:
    x = floats(1000, 16)
    options: dict[str, Any] = {"metric": "l2", "full_scan_threshold": 10, "indexing_threshold": 10}
    for place in ({"path": str(tmp_path / "edge")}, {"url": server.url}):
        for tenant in (ANNA, BOB):
            with closing(Qdrant(**place, tenant=tenant, **options)) as backend:
                rows = x[:500] if tenant is ANNA else x[500:]
                backend.upsert(np.arange(500), rows)
                backend.flush()
                if "path" in place:
                    info = backend._target._whole.shard.info()  # type: ignore[attr-defined]
                    assert list(info.payload_schema) == ["user"]
                    assert info.indexed_vectors_count > 0
                found = backend.search(rows[:50], 10).ids
                truth = backend.search(rows[:50], 10, options={"exact": True}).ids
                assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth, strict=True)]) > 0.95
    collection = server.storage.existing("cbir")
    assert collection.asked["hnsw_config"] | {"m": 0, "payload_m": 16} == collection.asked["hnsw_config"]
    assert collection.indexes == {"user": {"type": "keyword", "is_tenant": True}}


def test_tenants_that_make_their_collection_at_once(server: QdrantServer) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(4)

    def begin(name: str) -> None:
        try:
            with closing(Qdrant(url=server.url, tenant={"key": "user", "value": name})) as backend:
                whole: Any = backend._target._whole  # type: ignore[attr-defined]
                stored, blind = whole.stored, [None] * 3  # each finds nothing until it has tried to make it
                whole.stored = lambda: blind.pop() if blind else stored()
                start.wait(30)
                backend.upsert(np.arange(5), floats(5))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=begin, args=[name]) for name in ("a", "b", "c", "d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert server.engine.count("cbir").count == 20


# -- what cannot be


@pytest.mark.parametrize(
    ("tenant", "said"),
    [
        ({"key": "user"}, "tenant.value: is required"),
        ({"key": "user", "value": ""}, "tenant.value: "),
        ({"key": "user", "value": "two\nlines"}, "tenant.value: "),
        ({"key": "user", "value": 7}, "tenant.value: must be a valid string"),
        ({"key": "a.b", "value": "x"}, "tenant.key: String should match pattern"),
        ({"key": "user", "value": "x", "name": "y"}, "unknown key"),
        ("anna", "tenant: "),
    ],
)
def test_a_tenant_that_is_none(tenant: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        cf.load_backend("qdrant", url=":memory:", tenant=tenant)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def refused(kind: type[CbirError], said: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=said) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1


def test_what_a_tenant_cannot(server: QdrantServer) -> None:
    with closing(Qdrant(url=server.url, tenant=ANNA, metric="l2")) as anna:
        for taken in ("user", "cbir:owner"):
            payload = [{}, {taken: "anna"}]
            refused(InputError, f"id 1 has '{taken}'", lambda p=payload: anna.upsert(np.arange(2), floats(2), p))
        assert anna.count() == 0
        anna.upsert(np.arange(2), floats(2))
        refused(Unsupported, "leave --swap out", anna.standby)
    other = Qdrant(url=server.url, tenant=BOB, metric="l2")
    refused(ConfigError, "holds 8 values .* Euclid .* not 16 .* share", lambda: other.create(16, "float"))
    assert other.dim is None
    other.close()
    again = Qdrant(url=server.url, tenant=ANNA, overwrite=True)
    refused(ConfigError, "which its tenants share", lambda: again.create(16, "float"))
    assert again.count() == 2  # what is there stays
    again.close()
    alone = Qdrant(url=server.url, collection="alone", metric="l2")
    alone.claim("mine")
    alone.upsert(np.arange(2), floats(2))
    alone.close()
    bob = Qdrant(url=server.url, collection="alone", tenant=BOB, metric="l2")
    refused(ConfigError, "belongs to one collection", lambda: bob.upsert(np.arange(2), floats(2)))
    bob.close()


# -- collections and commands


def test_where_a_tenant_is_and_where_not() -> None:
    options = {"url": "http://localhost:6333", "tenant": ANNA}
    assert Qdrant.named(options, "hers") == options  # a collection of hers alone would not be shared
    assert "tenant" not in Qdrant.scoped(options, "a row of a comparison")


def test_collections_share_one_of_qdrant(server: QdrantServer, tmp_path: Path) -> None:
    words, folders = {}, {}
    for seed, name in enumerate(("anna", "bob")):
        np.save(tmp_path / f"{name}.npy", floats(40, seed=seed))
        document = {
            "source": {"name": "vectors", "file": str(tmp_path / f"{name}.npy")},
            "codecs": [{"name": "raw"}],
            "backends": [{"name": "faiss-flat", "metric": "l2"}],
        }
        folders[name] = tmp_path / f"{name}.cbir"
        cf.Collection.build(parse_config(document), folders[name], cache=tmp_path / "cache").close()
        words[name] = ["qdrant", f"url={server.url}", f"tenant={{key: user, value: {name}}}"]

    def cbir(*arguments: Any) -> Any:
        return CliRunner().invoke(main, [str(one) for one in arguments])

    for name, folder in folders.items():
        done = cbir("push", folder, "--to", *words[name])
        assert done.exit_code == 0, done.stderr
    assert server.engine.count("cbir").count == 80
    for name, folder in folders.items():
        assert cbir("verify", folder, "--against", *words[name]).exit_code == 0
    wrong = cbir("push", folders["anna"], "--to", *words["bob"])
    assert wrong.exit_code == 2
    assert "tenant 'bob' belongs to another collection" in wrong.stderr
    assert cbir("pull", *words["bob"], "--out", tmp_path / "pulled.cbir").exit_code == 0
    with cf.Collection.open(tmp_path / "pulled.cbir") as pulled:
        assert len(pulled) == 40
        assert pulled.search(floats(1, seed=1), 1)[0][0].id == 0
