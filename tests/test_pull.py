"""What an engine holds, as a local collection: its ids and payload, what is left out, and going on after a kill."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _postgres import administrator, running_postgres
from _qdrant_server import QdrantServer
from cbir_connectors.lancedb import Lancedb
from click.testing import CliRunner, Result

from cbir_faiss.base.registry import make
from cbir_faiss.cli import main
from cbir_faiss.collection import Collection
from cbir_faiss.collection.pull import pull
from cbir_faiss.collection.spool import Spool
from cbir_faiss.collection.sync import Target, difference
from cbir_faiss.errors import CbirError, InputError
from cbir_faiss.types import Batch, Floats

PAYLOADS: list[dict[str, Any]] = [
    {},
    {"label": None},
    {"label": 3},
    {"label": {"a": 1}},
    {"label": ["x", None], "path": "a.jpg", "id": 17},
    {"path": 5, "price": 1.0, "new": True},
]
"""What people store, and what is not a document that this package would write."""


def cbir(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def floats(n: int, dim: int = 8, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    with running_postgres() as path:
        yield path


@pytest.fixture(params=["qdrant", "lancedb", "pgvector"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    """120 items in an engine, under ids with gaps, one of them as large as they get."""
    options = {"path": str(tmp_path / "engine")}
    if request.param == "lancedb":
        options["table"] = "goods"
    if request.param == "pgvector":
        options = {"path": str(request.getfixturevalue("postgres")), "table": tmp_path.name}
    place = Target(request.param, options)
    ids = np.arange(120) * 3 + 1
    ids[-1] = 2**63 - 2
    with place.opened() as backend:
        backend.upsert(ids, floats(120), (PAYLOADS * 20))
        backend.flush()
    return place


def test_ids_and_payload_are_kept(target: Target, tmp_path: Path) -> None:
    report = pull(target, tmp_path / "p.cbir")
    assert (report.items, report.resumed, report.left_out) == (120, 0, {})
    assert not difference(tmp_path / "p.cbir", target)
    with Collection.open(tmp_path / "p.cbir") as local:
        assert local.documents([1, 4, 2**63 - 2]) == [PAYLOADS[0], PAYLOADS[1], PAYLOADS[5]]
        (found,) = local.search(floats(120)[119:], k=1)
        assert (found[0].id, found[0].path, found[0].payload) == (2**63 - 2, "5", {"price": 1.0, "new": True})
        assert local.verify() == []
        assert local.info()["items"] == 120
        local.delete([4])
    assert difference(tmp_path / "p.cbir", target).extra.tolist() == [4]
    assert [left.name for left in tmp_path.iterdir() if "pulling" in left.name] == []


class Killed(BaseException):
    pass


def pulled_in_part(target: Target, out: Path, batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pull of 20 items at a time that dies after some of them, in the middle of writing the next."""
    append = Spool.append

    def dying(self: Spool, batch: Batch) -> None:
        nonlocal batches
        if not batches:
            self._write("documents", b'{"half": ')
            self._write("vectors.npy", b"123")
            raise Killed
        batches -= 1
        append(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "append", dying)
        with pytest.raises(Killed):
            pull(target, out, batch_size=20)


@pytest.mark.parametrize("batches", [0, 1, 5])
def test_a_killed_pull_goes_on(target: Target, batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "p.cbir"
    pulled_in_part(target, out, batches, monkeypatch)
    assert not out.exists()
    report = pull(target, out, batch_size=20)
    assert (report.items, report.resumed) == (120, 20 * batches)
    assert not difference(out, target)


def test_a_pull_killed_while_it_builds_goes_on(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "p.cbir"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            pull(target, out)
    report = pull(target, out)
    assert (report.items, report.resumed) == (120, 120)
    assert not difference(out, target)


def test_what_was_read_of_another_content_is_not_believed(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.cbir"
    pulled_in_part(target, out, 3, monkeypatch)
    with target.opened() as backend:
        backend.upsert(np.arange(120) * 3 + 1, floats(120, seed=1))
        backend.flush()
    assert pull(target, out, batch_size=20).resumed == 0
    assert not difference(out, target)


def test_a_damaged_or_foreign_spool_is_not_believed(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for damage in ('{"key": "other"}', "{", "[]", ""):
        out = tmp_path / f"{len(damage)}.cbir"
        pulled_in_part(target, out, 3, monkeypatch)
        (tmp_path / f"{out.name}.pulling" / "state.json").write_text(damage)
        assert pull(target, out).resumed == 0
    out = tmp_path / "cut.cbir"
    pulled_in_part(target, out, 3, monkeypatch)
    (tmp_path / "cut.cbir.pulling" / "ids").write_bytes(b"")
    assert (pull(target, out).resumed, difference(out, target).items) == (0, 120)


def test_two_pulls_do_not_share_a_spool(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "p.cbir"
    read = Spool.append
    refused = []

    def meanwhile(self: Spool, batch: Batch) -> None:
        if not refused and target.name != "qdrant":
            with pytest.raises(CbirError, match="another process"):
                pull(target, out)
        refused.append(True)
        read(self, batch)

    monkeypatch.setattr(Spool, "append", meanwhile)
    assert pull(target, out).items == 120


def test_a_server_that_goes_away_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with QdrantServer() as server:
        target = Target("qdrant", {"url": server.url, "retries": 0})
        with target.opened() as backend:
            backend.upsert(np.arange(100), floats(100))
        pulled_in_part(target, tmp_path / "p.cbir", 2, monkeypatch)
        server.stop()
        assert cbir("pull", "qdrant", f"url={server.url}", "--out", tmp_path / "p.cbir").exit_code == 1
        server.start()
        report = pull(target, tmp_path / "p.cbir", batch_size=20)
        assert (report.items, report.resumed) == (100, 40)


# -- what cannot be kept


def test_what_cannot_be_kept_is_left_out_and_said(tmp_path: Path) -> None:
    from qdrant_client import models

    data = floats(8)
    with QdrantServer() as server:
        cosine = models.VectorParams(size=8, distance=models.Distance.COSINE)
        server.engine.create_collection("photos", vectors_config={"image": cosine, "text": cosine})
        points = [models.PointStruct(id=n, vector={"image": data[n].tolist()}, payload={"n": n}) for n in range(6)]
        points[1].vector = {"text": data[0].tolist()}
        points[2].vector = {}
        points[3].vector = {"image": [0.0] * 8}
        points[4].payload = {"label": None}
        points.append(models.PointStruct(id=2**63 + 5, vector={"image": data[6].tolist()}, payload={}))
        server.engine.upsert("photos", points)
        place = ["qdrant", f"url={server.url}", "collection=photos", "vector=image"]
        done = cbir("pull", *place, "--out", tmp_path / "p.cbir")
        assert done.exit_code == 0, done.output
        assert done.stdout.splitlines() == [
            f"{tmp_path}/p.cbir: 4 items, 0 of them read before",
            "2 left out: it has no vector 'image' (1, 2)",
            "1 left out: its vector is zero and has no direction (3)",
        ]
        against = cbir("verify", tmp_path / "p.cbir", "--against", *place)
        assert "only there             1  (ids 3)" in against.stdout
        with Collection.open(tmp_path / "p.cbir") as local:
            (found,) = local.search(data[6:7], k=1)
            assert found[0].payload == {"_key": str(2**63 + 5)}
        server.engine.delete("photos", [0, 4, 5, 2**63 + 5])
        none = cbir("pull", *place, "--out", tmp_path / "q.cbir")
        assert none.exit_code == 1
        assert "has no item that can be kept" in none.stderr


def test_a_table_of_somebody_else(postgres: Path, tmp_path: Path) -> None:
    with administrator(postgres) as connection:
        connection.execute("CREATE TABLE goods (id int PRIMARY KEY, embedding vector(8), price int)")
        rows = zip([-4, 1, 2, 3, 4], [*floats(3).tolist(), [0.0] * 8, None], strict=True)
        for key, vector in rows:
            connection.execute("INSERT INTO goods VALUES (%s, %s::vector, %s)", [key, vector and str(vector), key * 10])
    target = Target("pgvector", {"path": str(postgres), "table": "goods"})
    report = pull(target, tmp_path / "p.cbir", batch_size=1)
    assert report.items == 3
    left_out = {reason: some.examples for reason, some in report.left_out.items()}
    assert left_out == {
        "its vector is zero and has no direction": ["3"],
        "it has no vector": ["4"],
    }
    assert difference(tmp_path / "p.cbir", target).extra.tolist() == [3]


def test_a_lance_table_with_a_zero_vector_and_an_id_twice(tmp_path: Path) -> None:
    import lancedb
    import pyarrow as pa

    data = np.vstack([floats(3), np.zeros((1, 8), np.float32)])
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(data.ravel()), 8)
    lancedb.connect(tmp_path / "db").create_table("cbir", pa.table({"id": [2, 0, 0, 3], "vector": vectors}))
    report = pull(Target("lancedb", {"path": str(tmp_path / "db")}), tmp_path / "p.cbir")
    assert report.items == 2
    left_out = {reason: some.examples for reason, some in report.left_out.items()}
    assert left_out == {"its vector is zero and has no direction": ["3"], "another item has its id": ["0"]}


def test_what_has_no_vector_in_a_lance_table_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lancedb
    import pyarrow as pa

    empty = {5, *range(20, 40), 59}  # one batch has nothing else
    vectors = [None if n in empty else vector for n, vector in enumerate(floats(60).tolist())]
    rows = {"id": range(60), "vector": pa.array(vectors, pa.list_(pa.float32(), 8))}
    lancedb.connect(tmp_path / "db").create_table("goods", pa.table(rows), on_bad_vectors="null")
    target, out = Target("lancedb", {"path": str(tmp_path / "db"), "table": "goods"}), tmp_path / "p.cbir"
    pulled_in_part(target, out, 2, monkeypatch)
    report = pull(target, out, batch_size=20)
    assert (report.items, report.resumed) == (38, 19)
    assert {reason: some.count for reason, some in report.left_out.items()} == {"it has no vector": 22}
    assert report.left_out["it has no vector"].examples[:2] == ["5", "20"]
    assert not difference(out, target)
    with target.opened() as backend:
        rest = list(backend.scroll(20, after=39))
        assert [batch.ids.tolist() for batch in rest] == [list(range(40, 59))]


def test_texts_and_uuids_are_keys(postgres: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qdrant_client import models

    keys = [str(uuid.UUID(int=n * 2**100)) for n in range(60)]
    with administrator(postgres) as connection:
        connection.execute("CREATE TABLE named (id uuid PRIMARY KEY, embedding vector(8))")
        for key, vector in zip(keys, floats(60).tolist(), strict=True):
            connection.execute("INSERT INTO named VALUES (%s, %s::vector)", [key, str(vector)])
    with QdrantServer() as server:
        l2 = models.VectorParams(size=8, distance=models.Distance.EUCLID)
        server.engine.create_collection("named", vectors_config=l2)
        server.engine.upsert("named", models.Batch(ids=keys, vectors=floats(60).tolist()))
        for target in (
            Target("pgvector", {"path": str(postgres), "table": "named"}),
            Target("qdrant", {"url": server.url, "collection": "named"}),
        ):
            out = tmp_path / f"{target.name}.cbir"
            pulled_in_part(target, out, 2, monkeypatch)
            report = pull(target, out, batch_size=20)
            assert (report.items, report.resumed) == (60, 40)
            with Collection.open(out) as local:
                (found,) = local.search(floats(60)[7:8], k=1)
                assert found[0].payload == {"_key": keys[7]}
            assert not difference(out, target)


def test_an_engine_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target("lancedb", {"path": str(tmp_path / "db")})
    with target.opened() as backend:
        backend.upsert(np.arange(10), floats(10))
    scroll = Lancedb._scroll

    def growing(self: Lancedb, batch_size: int) -> Iterator[Batch]:
        yield from scroll(self, batch_size)
        self.upsert(np.arange(20, 25), floats(5))

    with monkeypatch.context() as patch:
        patch.setattr(Lancedb, "_scroll", growing)
        with pytest.raises(CbirError, match=r"10 of 15 items.*pull it again"):
            pull(target, tmp_path / "p.cbir")
    assert pull(target, tmp_path / "p.cbir").items == 15


def test_what_was_pulled_is_a_source(target: Target, tmp_path: Path) -> None:
    pull(target, tmp_path / "p.cbir")
    items = make("sources", "collection", path=str(tmp_path / "p.cbir")).items()
    assert [(item.path, item.labels) for item in items[:6]] == [
        ("1", ()),
        ("4", ()),
        ("7", ("3",)),
        ("10", ()),
        ("a.jpg", ("x",)),
        ("16", ()),
    ]


def test_a_push_does_not_touch_a_table_with_keys_of_text(target: Target, tmp_path: Path, postgres: Path) -> None:
    pull(target, tmp_path / "p.cbir")
    with administrator(postgres) as connection:
        connection.execute("DROP TABLE IF EXISTS texts")
        connection.execute("CREATE TABLE texts (id text PRIMARY KEY, embedding vector(8), payload jsonb)")
        for n in range(9):
            connection.execute("INSERT INTO texts VALUES (%s, %s::vector, '{}')", [f"t{n}", str([1.0] * 8)])
    refused = cbir("push", tmp_path / "p.cbir", "--to", "pgvector", f"path={postgres}", "table=texts", "--adopt")
    assert refused.exit_code == 1
    assert "keys of text" in refused.stderr


def test_nothing_to_pull(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to pull"):
        pull(Target("lancedb", {"path": str(tmp_path / "db")}), tmp_path / "p.cbir")
    assert not list(tmp_path.glob("*.pulling"))
