"""A collection pushed to an engine, compared with it, and pulled back, on the real engines."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _postgres import running_postgres
from _qdrant_server import QdrantServer
from click.testing import CliRunner, Result

import cbir_faiss as cf
from cbir_faiss.base import Backend
from cbir_faiss.base.options import need
from cbir_faiss.cli import main
from cbir_faiss.cli._arguments import key_values
from cbir_faiss.collection.sync import Target
from cbir_faiss.comparison.run import run
from cbir_faiss.config import load_config
from cbir_faiss.errors import CbirError
from cbir_faiss.storage.manifest import read_manifest


def cbir(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 vectors of 24 dimensions that are never negative, with labels."""
    folder = tmp_path_factory.mktemp("vectors")
    rng = np.random.default_rng(0)
    centres = np.abs(rng.standard_normal((6, 24)))
    y = np.arange(300) % 6
    x = np.abs(centres[y] + 0.3 * rng.standard_normal((300, 24))).astype(np.float32)
    np.save(folder / "x.npy", x)
    lines = [json.dumps({"label": f"c{label}", "path": f"img/{i}.jpg", "price": i}) for i, label in enumerate(y)]
    (folder / "docs.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def built(folder: Path, out: Path, codec: str, backend: str) -> Path:
    config = out.with_suffix(".yaml")
    config.write_text(
        f"source: {{name: vectors, file: {folder}/x.npy, documents: {folder}/docs.jsonl}}\n"
        f"codecs: [{codec}]\nbackends: [{backend}]\n"
    )
    result = cbir("build", config, "--out", out)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    with running_postgres() as path:
        yield path


@pytest.fixture(params=["qdrant", "lancedb", "pgvector"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """An engine that keeps what it is given, with the options of an empty place there."""
    if request.param == "pgvector":
        return ["pgvector", f"path={request.getfixturevalue('postgres')}", f"table={tmp_path.name}"]
    table = [] if request.param == "qdrant" else ["table=goods"]  # a folder holds one collection of Qdrant
    return [request.param, f"path={tmp_path}/engine", *table]


def opened(place: list[str]) -> Backend:
    return cf.load_backend(place[0], **key_values(tuple(place[1:])))


@pytest.mark.parametrize(
    ("codec", "backend"),
    [("{name: lsh, bits: 64}", "{name: faiss-binary-flat}"), ("{name: raw}", "{name: faiss-flat, metric: cosine}")],
    ids=["codes", "floats"],
)
def test_push_then_verify_against(place: list[str], codec: str, backend: str, vectors: Path, tmp_path: Path) -> None:
    collection = built(vectors, tmp_path / "c.cbir", codec, backend)
    pushed = cbir("push", collection, "--to", *place)
    assert pushed.exit_code == 0, pushed.output
    assert "300 items" in pushed.stdout
    assert ("one sign" in pushed.stderr) == (codec == "{name: raw}")
    same = cbir("verify", collection, "--against", *place)
    assert same.exit_code == 0, same.output
    assert "100.0%" in same.stdout
    assert "0 new, 0 changed" in cbir("push", collection, "--to", *place).stdout  # again: nothing is sent
    deployed = opened(place)
    deployed.claim(read_manifest(collection).owner)
    assert deployed.count() == 300
    assert deployed.payload(np.array([7]))[0]["price"] == 7
    deployed.delete(np.array([3, 4]))
    deployed.flush()
    deployed.close()
    differs = cbir("verify", collection, "--against", *place)
    assert differs.exit_code == 1
    assert "2  (ids 3, 4)" in differs.stdout


def test_what_an_engine_holds_is_pulled_and_every_codec_compared_over_it(vectors: Path, tmp_path: Path) -> None:
    collection = built(vectors, tmp_path / "c.cbir", "{name: raw}", "{name: faiss-flat}")
    assert cbir("push", collection, "--to", "qdrant", f"path={tmp_path}/edge").exit_code == 0
    pulled = cbir("pull", "qdrant", f"path={tmp_path}/edge", "--out", tmp_path / "pulled.cbir")
    assert pulled.exit_code == 0, pulled.output
    assert "300 items" in pulled.stdout
    with cf.Collection.open(tmp_path / "pulled.cbir") as local:
        assert len(local) == 300
        assert local.documents([5])[0] == {"label": "c5", "path": "img/5.jpg", "price": 5}
    config = tmp_path / "compare.yaml"
    config.write_text(
        "source: {name: collection, path: pulled.cbir}\n"
        "codecs: [{name: raw}, {name: itq, bits: 16}, {name: rotate}]\n"
        "backends: [{name: faiss-flat}, {name: faiss-binary-flat}]\n"
    )
    rows = run(load_config(config), tmp_path / "out")["rows"]
    assert [row["codec"] for row in rows] == ["raw", "itq", "rotate"]
    assert rows[0]["metrics"]["map@5"] > 0.9
    assert rows[2]["metrics"]["map@5"] == pytest.approx(rows[0]["metrics"]["map@5"], abs=1e-6)


def test_a_faiss_file_is_pulled(vectors: Path, tmp_path: Path) -> None:
    faiss: Any = need("faiss", "cpu")
    index = faiss.IndexFlatL2(24)
    index.add(np.load(vectors / "x.npy"))
    faiss.write_index(index, str(tmp_path / "x.index"))
    assert cbir("pull", "faiss", f"file={tmp_path}/x.index", "--out", tmp_path / "p.cbir").exit_code == 0
    with cf.Collection.open(tmp_path / "p.cbir") as local:
        (found,) = local.search(np.load(vectors / "x.npy")[9:10], k=1)
        assert (found[0].id, found[0].distance) == (9, pytest.approx(0, abs=1e-5))


def test_pull_refuses_what_it_cannot_take(vectors: Path, tmp_path: Path) -> None:
    collection = built(vectors, tmp_path / "c.cbir", "{name: lsh, bits: 64}", "{name: faiss-binary-flat}")
    assert cbir("push", collection, "--to", "lancedb", f"path={tmp_path}/lance").exit_code == 0
    codes = cbir("pull", "lancedb", f"path={tmp_path}/lance", "table=c", "--out", tmp_path / "p.cbir")
    assert codes.exit_code == 1
    assert "binary codes" in codes.stderr
    assert cbir("pull", "lancedb", f"path={tmp_path}/none", "--out", tmp_path / "p.cbir").exit_code == 1
    assert cbir("pull", "lancedb", f"path={tmp_path}/lance", "--out", collection).exit_code == 1
    assert cbir("pull", "lancedb", "nonsense", "--out", tmp_path / "p.cbir").exit_code == 2
    assert not (tmp_path / "p.cbir").exists()
    assert not list(tmp_path.glob("*.pulling"))


def test_push_to_a_collection_of_another_width_is_refused(vectors: Path, tmp_path: Path) -> None:
    short = cf.load_backend("lancedb", path=f"{tmp_path}/lance", table="t")
    short.create(64, "binary")
    short.close()
    long = built(vectors, tmp_path / "b.cbir", "{name: lsh, bits: 128}", "{name: faiss-binary-flat}")
    refused = cbir("push", long, "--to", "lancedb", "--adopt", f"path={tmp_path}/lance", "table=t")
    assert refused.exit_code == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "64" in refused.stderr
    assert "128" in refused.stderr


def changed(collection: Path) -> None:
    """Ten items that are gone, and ten that are new."""
    with cf.Collection.open(collection) as local:
        local.delete(range(10))
        local.add_vectors(np.random.default_rng(1).random((10, 24), np.float32), [{"path": f"n{i}"} for i in range(10)])


def test_a_push_follows_what_the_collection_has_become(vectors: Path, tmp_path: Path) -> None:
    collection = built(vectors, tmp_path / "c.cbir", "{name: lsh, bits: 64}", "{name: faiss-binary-flat}")
    here, there = (["--to", "lancedb", f"path={tmp_path}/{name}"] for name in ("here", "there"))
    assert "300 new, 0 changed, 0 removed" in cbir("push", collection, *here).stdout
    changed(collection)
    looked = cbir("push", collection, *here, "--dry-run")
    assert "nothing was done, there would be 10 new, 0 changed, 10 removed" in looked.stdout
    assert cbir("verify", collection, "--against", *here[1:]).exit_code == 1
    assert "10 new, 0 changed, 0 removed" in cbir("push", collection, *here, "--keep-extra").stdout
    assert "0 new, 0 changed, 10 removed" in cbir("push", collection, *here).stdout
    assert cbir("verify", collection, "--against", *here[1:]).exit_code == 0
    assert "300 new" in cbir("push", collection, *there).stdout  # another place starts from nothing
    shutil.rmtree(collection)  # built again, with other codes under the same ids
    built(vectors, collection, "{name: lsh, bits: 64, seed: 1}", "{name: faiss-binary-flat}")
    assert "10 new, 290 changed, 10 removed" in cbir("push", collection, *here).stdout
    assert cbir("verify", collection, "--against", *here[1:]).exit_code == 0
    assert [left.name for left in tmp_path.iterdir() if "push" in left.name] == []


def test_a_push_does_not_empty_what_is_there(vectors: Path, tmp_path: Path) -> None:
    collection = built(vectors, tmp_path / "c.cbir", "{name: lsh, bits: 64}", "{name: faiss-binary-flat}")
    to = ["--to", "qdrant", f"path={tmp_path}/edge"]
    assert cbir("push", collection, *to).exit_code == 0
    with cf.Collection.open(collection) as local:
        local.delete(range(200))
    refused = cbir("push", collection, *to)
    assert refused.exit_code == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "200 of its 300 items" in refused.stderr
    assert cbir("push", collection, *to, "--yes").exit_code == 0
    assert cbir("verify", collection, "--against", *to[1:]).exit_code == 0


@pytest.mark.parametrize("engine", [["usearch"], ["faiss-binary-flat"], ["qdrant", "url=':memory:'"]], ids=" ".join)
def test_what_keeps_nothing_is_no_target(engine: list[str], vectors: Path, tmp_path: Path) -> None:
    collection = built(vectors, tmp_path / "c.cbir", "{name: lsh, bits: 64}", "{name: faiss-binary-flat}")
    refused = cbir("push", collection, "--to", *engine)
    assert refused.exit_code == 1
    assert len(refused.stderr.splitlines()) == 1
    assert "keeps nothing" in refused.stderr


# -- one in the place of the other


@pytest.fixture(params=["pgvector", "qdrant"])
def switching(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """A place in an engine that can switch names."""
    if request.param == "pgvector":
        yield ["pgvector", f"path={request.getfixturevalue('postgres')}", "table=photos"]
    else:
        with QdrantServer() as server:
            yield ["qdrant", f"url={server.url}", "collection=photos"]


def test_a_swap_leaves_readers_what_they_have_until_all_is_there(
    switching: list[str], vectors: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = built(vectors, tmp_path / "c.cbir", "{name: lsh, bits: 64}", "{name: faiss-binary-flat}")
    swap = ["push", collection, "--to", *switching, "--swap"]
    assert "300 new" in cbir(*swap).stdout
    verify = ["verify", collection, "--against", *switching]
    assert cbir(*verify).exit_code == 0
    with Target(switching[0], key_values(tuple(switching[1:]))).opened() as reader:
        changed(collection)
        with monkeypatch.context() as patch:
            patch.setattr(type(reader), "swap", lambda self: sys.exit(9))  # dies when all is stored beside it
            assert cbir(*swap).exit_code == 9
        assert reader.count() == 300
        assert reader.payload(np.array([5]))[0]["path"] == "img/5.jpg"
    assert cbir(*verify).exit_code == 1
    assert "0 new, 0 changed, 0 removed" in cbir(*swap).stdout  # what was stored beside it is found again
    assert cbir(*verify).exit_code == 0
    assert "10 new, 0 changed, 10 removed" in cbir(*swap).stdout  # the one before, which is the next to be switched to
    assert cbir(*verify).exit_code == 0
    other = built(vectors, tmp_path / "d.cbir", "{name: lsh, bits: 128}", "{name: faiss-binary-flat}")
    assert "belongs to another collection" in cbir("push", other, *swap[2:]).stderr
    assert cbir("push", collection, *swap[2:]).exit_code == 0
    shutil.rmtree(collection)
    again = built(vectors, collection, "{name: lsh, bits: 128}", "{name: faiss-binary-flat}")
    assert "300 new" in cbir("push", again, *swap[2:]).stdout  # of another width
    assert cbir("verify", again, *verify[2:]).exit_code == 0


def test_a_swap_does_not_empty_what_is_there(switching: list[str], vectors: Path, tmp_path: Path) -> None:
    collection = built(vectors, tmp_path / "c.cbir", "{name: lsh, bits: 64}", "{name: faiss-binary-flat}")
    swap = ["push", collection, "--to", *switching[:-1], switching[-1] + "-2", "--swap"]
    assert cbir(*swap).exit_code == 0
    with cf.Collection.open(collection) as local:
        local.delete(range(200))
    assert "200 of its 300 items" in cbir(*swap).stderr
    assert cbir(*swap, "--yes").exit_code == 0
    assert cbir("verify", collection, "--against", *swap[3:-1]).exit_code == 0


def test_what_cannot_be_switched(vectors: Path, tmp_path: Path) -> None:
    collection = built(vectors, tmp_path / "c.cbir", "{name: lsh, bits: 64}", "{name: faiss-binary-flat}")
    for engine in (["lancedb", f"path={tmp_path}/lance"], ["qdrant", f"path={tmp_path}/edge"]):
        refused = cbir("push", collection, "--to", *engine, "--swap")
        assert refused.exit_code == 1
        assert "cannot switch names in one step" in refused.stderr
    assert cbir("push", collection, "--to", *engine, "--swap", "--keep-extra").exit_code == 2
    with QdrantServer() as server:
        engine = ["qdrant", f"url={server.url}", "collection=photos"]
        assert cbir("push", collection, "--to", *engine).exit_code == 0
        refused = cbir("push", collection, "--to", *engine, "--swap")
        assert refused.exit_code == 1
        assert "only an alias can be switched" in refused.stderr


# -- a collection whose index an engine keeps


def test_verify_asks_the_engine_that_keeps_the_index(place: list[str], vectors: Path, tmp_path: Path) -> None:
    engine, options = place[0], ", ".join(["", *(word.replace("=", ": ", 1) for word in place[1:])])
    collection = built(vectors, tmp_path / "c.cbir", "{name: lsh, bits: 64}", f"{{name: {engine}{options}}}")
    assert cbir("verify", collection).exit_code == 0
    deployed = opened(place)
    deployed.claim(read_manifest(collection).owner)
    deployed.delete(np.array([3, 4]))
    deployed.upsert(np.array([5]), deployed.fetch(np.array([5])), [{"label": True}])
    deployed.upsert(np.array([6]), ~deployed.fetch(np.array([6])), deployed.payload(np.array([6])))
    deployed.upsert(np.array([900]), deployed.fetch(np.array([7])))
    deployed.flush()
    deployed.close()
    differs = cbir("verify", collection)
    assert differs.exit_code == 1
    for line in ("missing there          2  (ids 3, 4)", "only there             1  (ids 900)"):
        assert line in differs.stdout
    for line in ("other vector           1  (ids 6)", "other payload          1  (ids 5)"):
        assert line in differs.stdout
    with cf.Collection.open(collection) as local:
        assert (engine, "2 items: missing there") in local.verify()
    if engine != "qdrant":  # which is one process's at a time
        with cf.Collection.open(collection) as local, cf.Collection.open(collection) as other:
            other.delete([8])
            with pytest.raises(CbirError, match="open it again"):
                local.verify()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"label": {}}\n', "label"),
        ("{\n", "not JSON"),
        ("[1]\n", "JSON object"),
        ("", "empty file"),
        ("{}\n{}\n", "2 documents"),
    ],
)
def test_documents_that_do_not_fit_their_vectors(lines: str, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 4), np.float32))
    (tmp_path / "d.jsonl").write_text(lines)
    from cbir_faiss.base.registry import make
    from cbir_faiss.errors import InputError

    with pytest.raises(InputError, match=message):
        make("sources", "vectors", file=str(tmp_path / "x.npy"), documents=str(tmp_path / "d.jsonl")).items()[0]


def test_the_last_document_needs_no_end_of_line(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 4), np.float32))
    (tmp_path / "d.jsonl").write_text('{"path": "a"}\n{"path": "b"}')
    from cbir_faiss.base.registry import make

    source = make("sources", "vectors", file=str(tmp_path / "x.npy"), documents=str(tmp_path / "d.jsonl"))
    assert [item.path for item in source.items()] == ["a", "b"]
