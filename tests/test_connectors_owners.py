"""A table in an engine belongs to one collection: nobody else writes to it, and two collections do not share one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _postgres import administrator, running_postgres
from _qdrant_server import QdrantServer
from cbir_connectors.lancedb import Lancedb
from cbir_connectors.pgvector import Pgvector
from cbir_connectors.qdrant import Qdrant
from click.testing import CliRunner, Result

import cbir_faiss as cf
from cbir_faiss.backends.database import Database
from cbir_faiss.base import Backend
from cbir_faiss.base.registry import load
from cbir_faiss.cli import main
from cbir_faiss.collection.sync import Target, difference, push
from cbir_faiss.comparison.run import run
from cbir_faiss.config import parse_config
from cbir_faiss.errors import ConfigError
from cbir_faiss.storage.manifest import commit, read_manifest
from cbir_faiss.types import Codes

Open = Callable[..., Backend]
ENGINES = ["edge", "server", "pgvector", "lancedb"]


def codes(n: int, bits: int = 64, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(0, 256, (n, bits // 8), dtype=np.uint8)


def cbir(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    with running_postgres() as path:
        yield path


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and address of an engine, without the name of a table."""
    if request.param == "server":
        with QdrantServer() as server:
            yield "qdrant", {"url": server.url}
    elif request.param == "pgvector":
        yield "pgvector", {"path": str(request.getfixturevalue("postgres"))}
    else:
        yield {"edge": "qdrant"}.get(request.param, request.param), {"path": str(tmp_path / request.param)}


@pytest.fixture
def place(engine: tuple[str, dict[str, Any]], tmp_path: Path) -> Open:
    """Opens one and the same table again and again."""
    name, address = engine
    plugin: Any = load("backends", name)
    table = plugin.named(address, f"t{abs(hash(str(tmp_path)))}")
    return lambda **options: plugin(**table, **options)


WRITES: list[Callable[[Backend], None]] = [
    lambda backend: backend.upsert(np.arange(5), codes(5, seed=1)),
    lambda backend: backend.delete(np.arange(5)),
    lambda backend: backend.create(64, "binary"),
    lambda backend: backend.remove(),
]

every_engine = pytest.mark.parametrize("engine", ENGINES, indirect=True)


@every_engine
def test_only_its_owner_writes_to_a_table(place: Open) -> None:
    mine = place()
    mine.claim("me")
    mine.upsert(np.arange(5), codes(5))
    mine.flush()
    mine.close()
    for claimed, message in (("you", "belongs to another collection"), (None, "belongs to a collection")):
        other = place(overwrite=True)
        if claimed:
            with pytest.raises(ConfigError, match=message):
                other.claim(claimed, adopt=True)
        for write in WRITES:
            with pytest.raises(ConfigError, match=message) as caught:
                write(other)
            assert "\n" not in str(caught.value)
        assert np.array_equal(other.fetch(np.arange(5)), codes(5))
        assert other.search(codes(1), 1).ids[0, 0] == 0
        other.close()
    again = place(overwrite=True)
    again.claim("me")
    again.delete(np.array([0]))
    assert again.count() == 4
    again.create(64, "binary")
    again.upsert(np.arange(2), codes(2))
    again.close()
    stranger = place()
    with pytest.raises(ConfigError, match="another collection"):
        stranger.claim("you")
    stranger.close()


@every_engine
def test_a_table_of_nobody_is_read_and_written_to_when_it_is_adopted(place: Open) -> None:
    nobodys = place()
    nobodys.upsert(np.arange(5), codes(5))
    nobodys.flush()
    nobodys.close()
    mine = place()
    with pytest.raises(ConfigError, match="--adopt"):
        mine.claim("me")
    assert mine.count() == 5
    with pytest.raises(ConfigError, match="--adopt"):
        mine.upsert(np.arange(5), codes(5, seed=1))
    mine.claim("me", adopt=True)
    mine.close()
    nobodys = place()  # nothing was written yet
    nobodys.delete(np.array([4]))
    nobodys.close()
    mine = place()
    mine.claim("me", adopt=True)
    mine.upsert(np.arange(2), codes(2, seed=1))
    mine.flush()
    mine.close()
    mine = place()
    mine.claim("me")
    assert (mine.dim, mine.metric, mine.count()) == (64, "hamming", 4)
    mine.close()
    nobodys = place()
    with pytest.raises(ConfigError, match="belongs to a collection"):
        nobodys.delete(np.array([0]))
    nobodys.close()


def test_a_comment_of_somebody_else_stays(postgres: Path) -> None:
    with administrator(postgres) as connection:
        connection.execute("CREATE TABLE theirs (id bigint PRIMARY KEY, embedding vector(4), payload jsonb)")
        connection.execute("COMMENT ON TABLE theirs IS 'ask Ann'")
    mine = Pgvector(path=str(postgres), table="theirs")
    mine.claim("me", adopt=True)
    mine.upsert(np.arange(1), np.ones((1, 4), np.float32))
    assert mine._noted() == {"comment": "ask Ann", "cbir": {"owner": "me"}}
    mine.close()
    again = Pgvector(path=str(postgres), table="theirs")
    with pytest.raises(ConfigError, match="another collection"):
        again.claim("you")
    again.close()


def test_an_engine_that_keeps_no_owner_lets_everybody_write(tmp_path: Path) -> None:
    class Plain(Lancedb):
        _adopt = Database._adopt

    for owner in ("me", "you", None):
        backend = Plain(path=str(tmp_path / "lance"))
        backend.claim(owner)
        backend.upsert(np.arange(3), codes(3))
        backend.close()


@pytest.mark.parametrize(
    ("plugin", "options", "named"),
    [
        (Pgvector, {}, {"table": "my_pictures"}),
        (Pgvector, {"table": "t"}, {"table": "t"}),
        (Lancedb, {"path": "x"}, {"path": "x", "table": "my_pictures"}),
        (Qdrant, {"url": "http://x"}, {"url": "http://x", "collection": "my_pictures"}),
        (Qdrant, {"path": "x"}, {"path": "x"}),
    ],
)
def test_names_of_tables(plugin: type[Backend], options: dict[str, Any], named: dict[str, Any]) -> None:
    assert plugin.named(options, "my pictures") == named
    long = plugin.named({}, "ž" * 300)
    assert all(len(value) <= 255 and value.isascii() for value in long.values())


# -- collections


def document(folder: Path, backend: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    """A build of 40 vectors."""
    x = np.random.default_rng(seed).standard_normal((40, 16), dtype=np.float32)
    np.save(folder / f"x{seed}.npy", x)
    return {
        "source": {"name": "vectors", "file": str(folder / f"x{seed}.npy")},
        "codecs": [{"name": "raw"}],
        "backends": [{"metric": "l2", **backend}],
    }


def built(out: Path, backend: dict[str, Any], seed: int = 0, **options: Any) -> Path:
    config = parse_config(document(out.parent, backend, seed))
    cf.Collection.build(config, out, cache=out.parent / "cache", **options).close()
    return out


def own_distance(folder: Path, seed: int) -> float:
    """How far the first vector of a collection is from itself."""
    with cf.Collection.open(folder) as collection:
        (hits,) = collection.search(np.load(folder.parent / f"x{seed}.npy")[:1], 1)
        return hits[0].distance


@pytest.mark.parametrize("engine", ["server", "pgvector", "lancedb"], indirect=True)
def test_collections_that_name_no_table_have_their_own(engine: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    name, address = engine
    backend = {"name": name, **address}
    one, two = built(tmp_path / "one.cbir", backend), built(tmp_path / "two.cbir", backend, seed=1)
    assert [own_distance(one, 0), own_distance(two, 1)] == pytest.approx([0, 0], abs=1e-5)
    # the same names for what is pushed
    plain = [built(tmp_path / f"{n}.cbir", {"name": "faiss-flat"}, seed=n == "four") for n in ("three", "four")]
    for folder in plain:
        push(folder, Target(name, address))
    for folder in plain:
        assert not difference(folder, Target(name, address))
    # a renamed folder keeps its table
    two.rename(tmp_path / "other.cbir")
    with cf.Collection.open(tmp_path / "other.cbir") as collection:
        collection.add_vectors(np.ones((1, 16), np.float32))
        assert collection._store.engine is not None
        assert collection._store.engine.count() == len(collection) == 41
    plain[1].rename(tmp_path / "five.cbir")
    assert not difference(tmp_path / "five.cbir", Target(name, address))


@every_engine
def test_a_table_of_another_collection_is_refused(engine: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    name, address = engine
    plugin: Any = load("backends", name)
    address = plugin.named(address, f"t{abs(hash(str(tmp_path)))}")
    one = built(tmp_path / "one.cbir", {"name": name, **address})
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="another collection"):
            built(tmp_path / "two.cbir", {"name": name, **address, "overwrite": overwrite}, seed=1, adopt=True)
        assert not (tmp_path / "two.cbir").exists()
    other = built(tmp_path / "two.cbir", {"name": "faiss-flat"}, seed=1)
    words = [f"{key}={value}" for key, value in address.items()]
    refused = cbir("push", other, "--to", name, "--adopt", *words)
    assert refused.exit_code == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "another collection" in refused.stderr
    assert own_distance(one, 0) == pytest.approx(0, abs=1e-5)
    with cf.Collection.open(one) as collection:  # its own may go on
        collection.delete([0])
        assert collection._store.engine is not None
        assert collection._store.engine.count() == 39


@every_engine
def test_a_collection_in_the_place_of_another(engine: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """Renamed, the first one keeps its table; where it is gone, nothing of it stays."""
    name, address = engine
    plugin: Any = load("backends", name)
    backend = {"name": name, **plugin.named(address, f"p{abs(hash(str(tmp_path)))}")}
    folder, aside = tmp_path / "one.cbir", tmp_path / "aside.cbir"
    built(folder, backend).rename(aside)
    with pytest.raises(ConfigError, match=r"holds 40 items of a collection that was made at .*overwrite"):
        built(folder, backend, seed=1)
    assert not folder.exists()
    with cf.Collection.open(aside) as collection:
        assert collection.verify() == []
        collection.delete([0])
    shutil.rmtree(aside)
    built(folder, {**backend, "overwrite": True}, seed=1)
    with cf.Collection.open(folder) as collection:
        assert collection.verify() == []
        collection.delete([0])
        assert collection._store.engine is not None
        assert collection._store.engine.count() == len(collection) == 39


@pytest.mark.parametrize("engine", ["edge", "lancedb"], indirect=True)
def test_commands_adopt_a_table_of_nobody(engine: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    name, address = engine
    plugin: Any = load("backends", name)
    address = plugin.named(address, "shared")
    theirs = cf.load_backend(name, **address, metric="l2")
    theirs.upsert(np.arange(40), np.ones((40, 16), np.float32))
    theirs.close()
    config = tmp_path / "one.yaml"
    backend = {"name": name, **address}
    config.write_text(str(document(tmp_path, backend)).replace("'", '"'))
    refused = cbir("build", config, "--out", tmp_path / "one.cbir")
    assert refused.exit_code == 2
    assert "--adopt" in refused.stderr
    assert cbir("build", config, "--out", tmp_path / "one.cbir", "--adopt").exit_code == 0
    assert own_distance(tmp_path / "one.cbir", 0) == pytest.approx(0, abs=1e-5)
    assert cbir("build", config, "--out", tmp_path / "one.cbir").exit_code == 0


def test_a_change_that_the_engine_would_refuse_is_not_made(tmp_path: Path) -> None:
    """The table was dropped and made by hand: what is there now is nobody's."""
    one = built(tmp_path / "one.cbir", {"name": "lancedb", "path": str(tmp_path / "lance")})
    shutil.rmtree(tmp_path / "lance")
    theirs = cf.load_backend("lancedb", path=str(tmp_path / "lance"), table="one", metric="l2")
    theirs.upsert(np.arange(40), np.load(tmp_path / "x0.npy"))
    theirs.close()
    with cf.Collection.open(one) as collection:
        generation = collection.manifest.generation
        with pytest.raises(ConfigError, match="--adopt"):
            collection.add_vectors(np.ones((1, 16), np.float32))
        with pytest.raises(ConfigError, match="--adopt"):
            collection.delete([3])
        assert read_manifest(one).generation == generation
    with cf.Collection.open(one) as collection:
        collection.delete([3], adopt=True)
    deleted = cbir("delete", one, "--id", 4, "--adopt")
    assert deleted.exit_code == 0, deleted.output
    assert "38 items left" in deleted.output


def test_a_collection_of_an_earlier_version_writes_to_its_table(tmp_path: Path) -> None:
    """Neither of the two knows an owner."""
    backend = {"name": "lancedb", "path": str(tmp_path / "lance")}
    one = built(tmp_path / "one.cbir", backend)
    with cf.Collection.open(one) as collection:
        commit(one, collection.manifest.model_copy(update={"owner": None, "name": None}))
    shutil.rmtree(tmp_path / "lance")
    theirs = cf.load_backend("lancedb", path=str(tmp_path / "lance"), table="one", metric="l2")
    theirs.upsert(np.arange(40), np.load(tmp_path / "x0.npy"))
    theirs.close()
    with cf.Collection.open(one) as collection:
        collection.delete([3])
        assert collection._store.engine is not None
        assert collection._store.engine.count() == 39


def test_a_comparison_leaves_nothing_in_the_engines(postgres: Path, tmp_path: Path) -> None:
    mine = cf.load_backend("pgvector", path=str(postgres), table="cbir")
    mine.upsert(np.arange(3), codes(3))
    tables = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
    before = mine._rows(tables)  # type: ignore[attr-defined]
    backends = [
        {"name": "pgvector", "path": str(postgres)},
        {"name": "lancedb", "path": str(tmp_path / "lance")},
        {"name": "qdrant", "path": str(tmp_path / "edge")},
    ]
    config = {**document(tmp_path, {}), "backends": backends, "metrics": {"k": [1]}}
    assert len(run(parse_config(config), tmp_path / "out")["rows"]) == 3
    assert mine._rows(tables) == before  # type: ignore[attr-defined]
    assert mine.count() == 3
    mine.remove()
    assert (mine.dim, mine.count()) == (None, 0)
    mine.remove()
    mine.close()
    assert [*(tmp_path / "lance").glob("*.lance"), *(tmp_path / "edge").iterdir()] == []
