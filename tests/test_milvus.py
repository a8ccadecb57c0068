"""The Milvus connector: the contract on its embedded engine, and on a server that is named; and what is its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("pymilvus", reason="pymilvus is not installed")

from cbir_connectors import _milvus_lite, milvus
from cbir_connectors._terms import terms
from cbir_connectors.milvus import Milvus

from cbir_faiss.base import Backend
from cbir_faiss.base.options import parse_options
from cbir_faiss.collection import Collection
from cbir_faiss.collection.sync import Target, difference, push
from cbir_faiss.config import parse_config
from cbir_faiss.errors import BackendError, ConfigError, MissingDependency, Unsupported
from cbir_faiss.testing import BackendContract
from cbir_faiss.testing.backends import Case
from cbir_faiss.types import Codes

embedded = pytest.mark.skipif(
    not (find_spec("milvus_lite") and find_spec("pkg_resources")), reason="Milvus Lite is not installed"
)


def codes(n: int, bits: int = 64, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(0, 256, (n, bits // 8), dtype=np.uint8)


def bits_apart(queries: Codes, data: Codes) -> Any:
    return np.bitwise_count(queries[:, None] ^ data).sum(axis=2)


class InOne(BackendContract):
    """A collection of its own for each test, in one database."""

    plugin = Milvus
    address: ClassVar[dict[str, Any]] = {}
    made: ClassVar[set[str]] = set()

    def make(self, place: Path, case: Case) -> Backend:
        metric = {} if case[1] == "hamming" else {"metric": case[1]}
        name = f"test_{zlib.crc32(str(place).encode())}"
        self.made.add(name)
        return Milvus(**self.address, **metric, collection=name)


@embedded
class TestMilvusLite(InOne):
    """The engine takes half a second to start, so it is kept running, but where another process is to have the file."""

    cases: ClassVar[list[Case]] = [("binary", "hamming")]

    @pytest.fixture(scope="class", autouse=True)
    def file(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        type(self).address = {"path": str(tmp_path_factory.mktemp("milvus") / "x.db")}

    @pytest.fixture(scope="class")
    def running(self, file: None) -> Iterator[list[Milvus]]:
        kept: list[Milvus] = []
        yield kept
        for backend in kept:
            backend.close()

    @pytest.fixture(autouse=True)
    def started(self, running: list[Milvus], request: pytest.FixtureRequest) -> None:
        if "kill" in request.node.name:
            while running:
                running.pop().close()
        elif not running:
            running.append(Milvus(**self.address, collection="nothing"))


@embedded
@pytest.mark.slow
class TestMilvusLiteFloats(TestMilvusLite):
    cases: ClassVar[list[Case]] = [("float", "cosine"), ("float", "ip")]


def test_server() -> None:
    if "CBIR_MILVUS_URI" not in os.environ:
        pytest.skip("CBIR_MILVUS_URI names no server to run the contract against")


if uri := os.environ.get("CBIR_MILVUS_URI"):

    class TestMilvusServer(InOne):
        address: ClassVar[dict[str, Any]] = {"uri": uri}

        @pytest.fixture(scope="class", autouse=True)
        def tidy(self) -> Iterator[None]:
            made = type(self).made = set()
            yield
            backend = Milvus(**self.address)
            for name in made.intersection(backend._live.list_collections()):  # others are somebody's
                backend._live.drop_collection(name)
            backend.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file whose engine runs as long as these tests do."""
    file = tmp_path_factory.mktemp("milvus") / "shared.db"
    kept = Milvus(path=str(file))
    yield file
    kept.close()


@embedded
def test_by_an_address(file: Path) -> None:
    """The engine of a file asked as a server is; it refuses a graph only when it is to be made."""
    uri, opened = _milvus_lite.started(file)
    with_graph = Milvus(uri=uri, collection="asked", index="hnsw", timeout=5)
    with pytest.raises(BackendError, match=r"cannot be made: .*HNSW") as error:
        with_graph.create(16, "float")
    assert len(str(error.value).splitlines()) == 1
    assert with_graph.dim is None
    with_graph.close()
    one, two = (Milvus(uri=uri, collection="asked", timeout=5) for _ in range(2))
    assert two.count() == 0  # nothing is left of the one that could not be made
    one.upsert(np.arange(5), codes(5), [{"n": n} for n in range(5)])
    one.flush()
    assert two.search(codes(1), 1, {"n": {"lt": 3}}).ids.tolist() == [[0]]
    two.close()
    assert one.count() == 5  # another's connection is not closed with it
    one.close()
    _milvus_lite.ended(opened)


# -- what is found


@embedded
@pytest.mark.parametrize("most", [500, pytest.param(milvus._MOST, marks=pytest.mark.slow)])
def test_more_than_one_answer_may_have(most: int, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus, "_MOST", most)
    backend, n = Milvus(path=str(file), collection=f"many_{most}"), most + 616
    data = codes(n, 16)
    backend.upsert(np.arange(n), data, [{"odd": bool(i % 2), "n": i} for i in range(n)])
    backend.flush()
    assert backend.count() == n
    distances = bits_apart(data[:1], data)[0]
    wheres = ((None, slice(None)), ({"odd": True}, slice(1, None, 2)), ({"n": {"gte": 100}}, slice(100, None)))
    for where, right in wheres:
        hits = backend.search(data[:1], n + 1000, where)
        found = hits.ids[0] >= 0
        np.testing.assert_array_equal(np.sort(hits.ids[0][found]), np.arange(n)[right])
        np.testing.assert_array_equal(hits.distances[0][found], distances[hits.ids[0][found]])
        assert (np.diff(hits.distances[0][found]) >= 0).all()
    assert len(backend.range_search(data[:1], 16)[0]) == n
    assert np.concatenate([batch.ids for batch in backend.scroll(n)]).tolist() == list(range(n))
    backend.delete(np.arange(n - 100))
    assert backend.count() == 100
    backend.close()


@embedded
def test_filters_that_milvus_answers_itself(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Milvus(path=str(file), collection="filters")
    payload = [{"label": "ab\"'\\猫"[n % 6], "n": n, "tags": [n % 2, "x", None]} for n in range(20)]
    backend.upsert(np.arange(20), codes(20), payload)
    asked: list[int] = []
    matching = backend._matching
    monkeypatch.setattr(backend, "_matching", lambda where, test: asked.append(1) or matching(where, test))
    for where, found in (
        ({"label": '"'}, 3),
        ({"label": "猫", "n": 5.0}, 1),
        ({"or": [{"label": "a"}, {"label": "\\"}, {"and": [{"tags": 1}, {"tags": None}]}]}, 17),
        ({"n": {"in": list(range(10, 1000))}}, 10),
        ({"n": {"in": []}}, 0),
        ({"or": [{"n": n} for n in range(300)]}, 20),
        ({"and": [{"tags": "x"}] * 200 + [{"or": [{"and": [{"n": 7}] * 99}, {"n": 8}] * 99}]}, 2),
        ({"n": True}, 0),
    ):
        assert (backend.search(codes(1), 20, where).ids >= 0).sum() == found, where
    assert not asked
    for where, found in (({"not": {"label": "a"}}, 16), ({"label": "a", "n": {"gt": 4}}, 3)):
        assert (backend.search(codes(1), 20, where).ids >= 0).sum() == found, where
    assert len(asked) == 2
    backend.close()


@embedded
def test_inverted_lists(file: Path) -> None:
    data = np.random.default_rng(0).standard_normal((3000, 16), dtype=np.float32)
    backend = Milvus(path=str(file), collection="lists", metric="l2", index="ivf_flat", nlist=32)
    backend.upsert(np.arange(3000), data)
    backend.flush()
    backend.close()
    again = Milvus(path=str(file), collection="lists")  # the options of the index are the engine's to know
    assert not again.is_exact(parse_options(Milvus.SearchOptions, {}))
    assert again.is_exact(parse_options(Milvus.SearchOptions, {"exact": True}))
    distances = ((data[:20, None] - data) ** 2).sum(axis=2)
    right = np.argsort(distances, axis=1)[:, :10]
    hits = again.search(data[:20], 10, options={"exact": True})
    np.testing.assert_array_equal(np.sort(hits.ids), np.sort(right))
    np.testing.assert_allclose(hits.distances, np.sort(distances, axis=1)[:, :10], rtol=1e-4, atol=1e-4)
    some = again.search(data[:20], 10, options={"nprobe": 100}).ids
    np.testing.assert_array_equal(np.sort(some), np.sort(right))
    again.close()


@embedded
def test_a_range_search_looks_into_every_list(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus, "_MOST", 500)
    data = np.random.default_rng(0).standard_normal((2000, 16), dtype=np.float32)
    backend = Milvus(path=str(file), collection="ranges", metric="l2", index="ivf_flat", nlist=32)
    backend.upsert(np.arange(2000), data, [{"even": n % 2 == 0} for n in range(2000)])
    backend.flush()
    asked: list[dict[str, Any]] = []
    search = backend._live.search

    def noted(*arguments: Any, **more: Any) -> Any:
        asked.append(more["search_params"]["params"])
        return search(*arguments, **more)

    monkeypatch.setattr(backend._live, "search", noted)
    distances = ((data[:5, None] - data) ** 2).sum(axis=2)
    for radius in (1.0, 20.0, 35.0):
        hits = backend.range_search(data[:5], radius)
        for query in range(5):
            found = [hit.id for hit in hits[query]]
            assert sorted(found) == np.flatnonzero(distances[query] <= radius).tolist()
    even = backend.range_search(data[:1], 25.0, {"even": True}).ids
    assert sorted(even.tolist()) == np.flatnonzero((distances[0] <= 25) & (np.arange(2000) % 2 == 0)).tolist()
    assert all(params == {"nprobe": 32} for params in asked)  # Milvus Lite looks into all of them anyway
    backend._index = {"index_type": "AUTOINDEX"}  # as somebody else may have made
    with pytest.raises(Unsupported, match="its index is autoindex, which cannot compare with everything"):
        backend.range_search(data[:1], 1.0)
    backend.close()


@pytest.mark.parametrize("kind", ["HNSW", "AUTOINDEX", "DISKANN", "SCANN", "IVF_PQ", "IVF_SQ8", "HNSW_SQ"])
def test_an_index_that_is_not_exact_cannot_compare_with_everything(kind: str) -> None:
    backend = Milvus.__new__(Milvus)
    backend.options, backend._index = parse_options(Milvus.Options, {"uri": "http://x"}), {"index_type": kind}
    some = backend._search_parameters(100, parse_options(Milvus.SearchOptions, {}))["params"]
    assert some == {"HNSW": {"ef": 100}, "IVF_PQ": {"nprobe": 8}, "IVF_SQ8": {"nprobe": 8}}.get(kind, {})
    with pytest.raises(Unsupported, match=f"its index is {kind.lower()}, which cannot compare with everything"):
        backend._search_parameters(100, parse_options(Milvus.SearchOptions, {"exact": True}))


@pytest.mark.parametrize("kind", ["IVF_FLAT", "BIN_IVF_FLAT", "FLAT", "BIN_FLAT"])
def test_what_is_exact_looks_into_every_list(kind: str) -> None:
    backend = Milvus.__new__(Milvus)
    backend._index = {"index_type": kind, "nlist": "32"}
    every = {"nprobe": 32} if "IVF" in kind else {}
    assert backend._search_parameters(5, parse_options(Milvus.SearchOptions, {"exact": True})) == {"params": every}


# -- what is stored


@embedded
def test_what_is_too_much_is_refused(file: Path) -> None:
    backend = Milvus(path=str(file), collection="much")
    most = {"text": "é" * 43_000}  # six bytes of JSON each
    backend.upsert(np.arange(2), codes(2), [most, {"a": list(range(3000))}])
    assert backend.payload(np.arange(2)) == [most, {"a": list(range(3000))}]
    assert backend.search(codes(1), 5, {"a": 2999}).ids[0].tolist() == [1, -1, -1, -1, -1]
    for value in ({"text": "é" * 44_000}, {"a": list(range(3001))}):
        with pytest.raises(Unsupported, match=r"the payload of id 7 has .* are stored"):
            backend.upsert(np.array([6, 7]), codes(2), [{}, value])
    assert backend.count() == 2
    backend.close()


def test_terms_say_what_filters_equal() -> None:
    same = [terms({"a": value}) for value in (1, 1.0, [1.0, 1])]
    assert same[0] == same[1] == same[2]
    others = {str(terms({"a": value})) for value in (1, True, "1", None, "null", 1.5, 2**63, [], {"b": 1})}
    assert len(others) == 8  # an empty list and an object have none


@embedded
def test_a_collection_whose_maker_died_has_its_index_made(file: Path) -> None:
    backend = Milvus(path=str(file), collection="half")
    backend.create(64, "binary")
    backend._live.release_collection("half")
    backend._live.drop_index("half", "vector")
    backend.close()
    again = Milvus(path=str(file), collection="half")
    again.upsert(np.arange(3), codes(3))
    assert again.search(codes(1), 1).ids.tolist() == [[0]]
    again.close()


@embedded
def test_what_cannot_be_made_replaces_nothing(file: Path) -> None:
    first = Milvus(path=str(file), collection="kept", metric="l2")
    first.upsert(np.arange(5), np.ones((5, 16), np.float32))
    first.close()
    for options, dim in (({}, 40_000), ({"index": "hnsw"}, 16), ({}, 1), ({"vector_field": "payload_2"}, 16)):
        again = Milvus(path=str(file), collection="kept", overwrite=True)
        again.options = again.options.model_copy(update=options)
        with pytest.raises((ConfigError, Unsupported)):
            again.create(dim, "float")
        assert (again.dim, again.count()) == (16, 5)
        again.close()


@embedded
@pytest.mark.slow
def test_a_collection_is_pushed_and_stays_its_owner_s(file: Path, pictures: Path, tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "source": {"name": "folder", "root": str(pictures)},
        "extractors": [{"name": "histogram"}],
        "codecs": [{"name": "lsh", "bits": 64}],
        "backends": [{"name": "faiss-binary-flat"}],
    }
    for name in ("a", "b"):
        Collection.build(parse_config(document), tmp_path / f"{name}.cbir").close()
    target = Target("milvus", {"path": str(file), "collection": "pushed"})
    assert push(tmp_path / "a.cbir", target).new == 36
    assert not difference(tmp_path / "a.cbir", target)
    assert push(tmp_path / "a.cbir", target).new == 0
    with pytest.raises(ConfigError, match="belongs to another collection"):
        push(tmp_path / "b.cbir", target)


@embedded
def test_a_collection_that_somebody_else_dropped_is_nobody_s(file: Path) -> None:
    first = Milvus(path=str(file), collection="dropped")
    first.create(64, "binary")
    first.claim("me", adopt=True)
    first.upsert(np.arange(3), codes(3))
    with pytest.raises(ConfigError, match="belongs to a collection"):
        first.claim(None)
    first._live.drop_collection("dropped")
    first.close()
    again = Milvus(path=str(file), collection="dropped")
    again.upsert(np.arange(2), codes(2))
    again.close()
    third = Milvus(path=str(file), collection="dropped")
    third.upsert(np.arange(4), codes(4))
    assert third.count() == 4
    third.close()


# -- collections of others

KEYS = ["plain", "it's", 'say "x"', "back\\slash", "a\\'b", "both'\"", "猫 é\u2028", "\x1f", "x" * 65_535]


@pytest.fixture
def foreign(file: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Makes a collection of somebody else: its name, the keys in it."""
    backend = Milvus(path=str(file), collection="unused")
    client, types = backend._live, backend._types
    made: list[str] = []

    def make(keys: list[str], metric: str | None = "COSINE", vector: str = "FLOAT_VECTOR") -> str:
        name = f"foreign_{zlib.crc32(f'{request.node.name}{len(made)}'.encode())}"
        schema = client.create_schema(auto_id=False, enable_dynamic_field=True)
        schema.add_field("pk", types.VARCHAR, max_length=65_535, is_primary=True)
        schema.add_field("emb", getattr(types, vector), dim=8)
        schema.add_field("label", types.VARCHAR, max_length=100)
        client.create_collection(name, schema=schema)
        if metric:
            client.create_index(
                name,
                client.prepare_index_params(
                    "emb", index_type="FLAT" if vector == "FLOAT_VECTOR" else "BIN_FLAT", metric_type=metric
                ),
                sync=False,
            )
            client.load_collection(name)
        rows = [
            {"pk": key, "emb": [3.0, 4.0, *[0.0] * 5, float(n)], "label": f"l{n}", "x": [n]}
            for n, key in enumerate(keys)
        ]
        if rows:
            client.insert(name, rows)
        made.append(name)
        return name

    yield make
    for name in made:
        client.drop_collection(name)
    backend.close()


@embedded
def test_a_collection_of_somebody_else_is_read(foreign: Any, file: Path) -> None:
    backend = Milvus(path=str(file), collection=foreign(KEYS), vector_field="emb")
    assert (backend.dim, backend.kind, backend.metric, backend.count()) == (8, "float", "cosine", len(KEYS))
    batches = list(backend.scroll(4))
    assert [len(batch.ids) for batch in batches] == [4, 4, 1]
    assert sorted(payload["_key"] for batch in batches for payload in batch.payload) == sorted(KEYS)
    rest = [payload["_key"] for batch in backend.scroll(4, after=batches[0].cursor) for payload in batch.payload]
    assert rest == [payload["_key"] for batch in batches[1:] for payload in batch.payload]
    ids = np.concatenate([batch.ids for batch in batches])
    np.testing.assert_allclose(np.linalg.norm(backend.fetch(ids), axis=1), 1, rtol=1e-6)
    query = np.array([[3, 4, 0, 0, 0, 0, 0, 0]], np.float32)
    hits = backend.search(query, 3)
    assert backend.payload(hits.ids[0]) == [{"label": f"l{n}", "x": [n]} for n in range(3)]
    assert hits.distances[0, 0] == pytest.approx(0, abs=1e-6)
    found = backend.search(query, 9, {"label": {"gt": "l6"}, "x": {"in": [7, 8]}}).ids[0]
    assert [payload["x"] for payload in backend.payload(found[found >= 0])] == [[7], [8]]
    for write in (lambda: backend.upsert(ids[:1], query), lambda: backend.delete(ids[:1])):
        with pytest.raises(Unsupported, match="made by another program"):
            write()
    backend.close()


@embedded
def test_collections_that_cannot_be_read(foreign: Any, file: Path) -> None:
    for name, told, options in (
        (foreign([], None), "has no index on 'emb': make one there", {"vector_field": "emb"}),
        (foreign([]), "has no such field; it has emb", {}),
        (foreign([], "JACCARD", "BINARY_VECTOR"), "an index under JACCARD cannot be used", {"vector_field": "emb"}),
        (
            foreign([]),
            "holds vectors of 8 dimensions .cosine.; leave 'metric' out",
            {"vector_field": "emb", "metric": "ip"},
        ),
    ):
        with pytest.raises((Unsupported, ConfigError), match=told):
            Milvus(path=str(file), collection=name, **options)
    broken = Milvus(path=str(file), collection=foreign(["a", "line\nbreak"]), vector_field="emb")
    with pytest.raises(Unsupported, match="cannot be asked for a key with a line break"):
        list(broken.scroll(2))
    broken.close()


# -- one file, several processes

OPENING = """
import sys
from cbir_connectors.milvus import Milvus
from cbir_faiss.errors import BackendError
try:
    Milvus(path=sys.argv[1])
except BackendError as error:
    sys.exit(f"refused: {error}")
"""

STORING = """
import sys
import numpy as np
from cbir_connectors.milvus import Milvus
backend = Milvus(path=sys.argv[1])
for n in range(10**6):
    backend.upsert(np.arange(50) + 50 * n, np.full((50, 8), n % 256, np.uint8), [{"n": n}] * 50)
    print(n, flush=True)
"""


def child(program: str, file: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", program, str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@embedded
@pytest.mark.slow
def test_another_process_is_refused_however_often_it_tries(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(file)
    for name in (file, tmp_path / "link.db"):
        with child(OPENING, name) as other:
            said = other.communicate()[1]
        assert other.returncode == 1
        assert "another process has it open: close it there, or run a server and give its 'uri'" in said
        assert len(said.strip().splitlines()) == 1


@embedded
@pytest.mark.slow
def test_what_a_killed_process_was_told_is_stored_is_there(tmp_path: Path) -> None:
    with child(STORING, tmp_path / "x.db") as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 5:
                break
        writer.kill()
        last = max([5, *(int(line) for line in writer.stdout if line.endswith("\n"))])
    # Its engine notices a little later, and is waited for.
    backend = Milvus(path=str(tmp_path / "x.db"))
    assert 50 * (last + 1) <= backend.count() <= 50 * (last + 2)
    ids = np.arange(50 * (last + 1))
    assert backend.payload(ids) == [{"n": int(i) // 50} for i in ids]
    np.testing.assert_array_equal(backend.fetch(ids)[:, 0], ids // 50)
    backend.close()


@embedded
@pytest.mark.slow
def test_a_renamed_folder(tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    backend = Milvus(path=str(before / "x.db"))
    backend.upsert(np.arange(5), codes(5))
    backend.flush()
    before.rename(after)
    with pytest.raises(BackendError, match="another process has it open"):
        Milvus(path=str(after / "x.db"))
    backend.close()
    again = Milvus(path=str(after / "x.db"))
    assert again.count() == 5
    again.close()


@embedded
@pytest.mark.slow
def test_an_engine_that_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(milvus, "_CONNECTING", 0.2)
    backend = Milvus(path=str(tmp_path / "x.db"))
    backend.upsert(np.arange(5), codes(5))
    server = _milvus_lite._manager()._servers[str(tmp_path / "x.db")]
    server._p.send_signal(signal.SIGKILL)
    server._p.wait()
    for call in (backend.count, lambda: Milvus(path=str(tmp_path / "x.db"))):
        with pytest.raises(
            BackendError, match="the engine of this file has ended: close what has it open here, and open"
        ):
            call()
    backend.close()
    monkeypatch.undo()
    again = Milvus(path=str(tmp_path / "x.db"))
    assert again.count() == 5
    again.close()
    assert not _milvus_lite._open.get(tmp_path / "x.db")


# -- bad input


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "give one of 'uri'"),
        ({"uri": "http://x", "path": "y.db"}, "give one of 'uri'"),
        ({"uri": "http://me:secret@x"}, "no secrets in addresses"),
        ({"uri": "localhost:19530"}, "begins with http"),
        ({"uri": "y.db"}, "is a 'path'"),
        ({"uri": "http://x", "collection": "a-b"}, "collection"),
        ({"uri": "http://x", "vector_field": 'v" or "'}, "vector_field"),
    ],
)
def test_options(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        Milvus(**options)
    assert "secret@" not in str(error.value)


@embedded
@pytest.mark.parametrize("name", ["a b.db", "x" * 34 + ".db", "ž.db"])
def test_names_of_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at most 36 letters"):
        Milvus(path=str(tmp_path / name))


def test_names_of_collections() -> None:
    assert Milvus.named({}, "my-photos.2020") == {"collection": "my_photos_2020"}
    assert Milvus.named({"collection": "x"}, "my-photos") == {"collection": "x"}
    assert Milvus.named({}, "2020") == {"collection": "_2020"}
    assert Milvus.scoped({"path": "x.db"}, "itq-64")["collection"] == "cbir_itq_64"
    assert len(Milvus.named({}, "x" * 500)["collection"]) <= Milvus.longest_name


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CBIR_MILVUS_TOKEN", "very-secret")
    with pytest.raises(BackendError, match=r"http://127\.0\.0\.1:9 collection 'cbir': cannot be opened") as error:
        Milvus(uri="http://127.0.0.1:9", timeout=1)
    assert "very-secret" not in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not capfd.readouterr().err


@embedded
def test_shapes_that_cannot_be_made(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Milvus(path=str(file), collection="shapes")
    with pytest.raises(Unsupported, match="2 to 32,768 dimensions or bits here, not 32,776"):
        backend.create(32_776, "binary")
    monkeypatch.setattr(milvus, "version", lambda _: "3.2.2")
    with pytest.raises(
        Unsupported, match=r"Milvus Lite 3\.2\.2 has no binary vectors: pip install 'milvus-lite==2\.5\.1'"
    ):
        backend.create(64, "binary")
    assert backend.dim is None
    backend.close()
    for kind, index in (("float", "hnsw"), ("binary", "hnsw"), ("binary", "ivf_flat")):
        other = Milvus(path=str(file), collection="shapes", index=index)
        monkeypatch.undo()
        with pytest.raises(ConfigError, match=f"Milvus Lite has no index '{index}' for {kind} vectors"):
            other.create(64, kind)  # type: ignore[arg-type]
        other.close()


@embedded
def test_without_pkg_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "milvus_lite"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    with pytest.raises(MissingDependency, match=r"milvus-lite needs pkg_resources: pip install 'setuptools<81'"):
        Milvus(path=str(tmp_path / "x.db"))


@embedded
def test_a_file_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, whatever its name says\n" * 99)
    with pytest.raises(BackendError, match=r"text\.db: its engine does not start: is it a file of Milvus Lite\?"):
        Milvus(path=str(tmp_path / "text.db"))
    assert "this is no" in (tmp_path / "text.db").read_text()
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(BackendError, match=r"folder\.db collection 'cbir': cannot be opened: .*Is a directory"):
        Milvus(path=str(tmp_path / "folder.db"))
