"""A collection pushed to an engine, compared with it, and pulled back, on the real engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import cbir_faiss as cf
from cbir_faiss.base.options import need
from cbir_faiss.cli import main
from cbir_faiss.comparison.run import run
from cbir_faiss.config import load_config
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


ENGINES = {
    "qdrant": ["qdrant", "path={}/edge"],
    "lancedb": ["lancedb", "path={}/lance"],
    "pgvector": ["pgvector", "path={}/pg"],
}


@pytest.mark.parametrize(
    "engine", [pytest.param("qdrant"), "lancedb", pytest.param("pgvector", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("codec", "backend"),
    [("{name: lsh, bits: 64}", "{name: faiss-binary-flat}"), ("{name: raw}", "{name: faiss-flat, metric: cosine}")],
    ids=["codes", "floats"],
)
def test_push_then_verify_against(engine: str, codec: str, backend: str, vectors: Path, tmp_path: Path) -> None:
    collection = built(vectors, tmp_path / "c.cbir", codec, backend)
    name, option = ENGINES[engine][0], ENGINES[engine][1].format(tmp_path)
    pushed = cbir("push", collection, "--to", name, option)
    assert pushed.exit_code == 0, pushed.output
    assert "300 items" in pushed.stdout
    assert ("one sign" in pushed.stderr) == (codec == "{name: raw}")
    same = cbir("verify", collection, "--against", name, option)
    assert same.exit_code == 0, same.output
    assert "100.0%" in same.stdout
    assert cbir("push", collection, "--to", name, option).exit_code == 0  # again: nothing doubles
    table = {} if name == "qdrant" else {"table": "c"}  # a folder holds one collection of Qdrant
    deployed = cf.load_backend(name, path=str(tmp_path / option.split("/")[-1]), **table)
    deployed.claim(read_manifest(collection).owner)
    assert deployed.count() == 300
    assert deployed.payload(np.array([7]))[0]["price"] == 7
    deployed.delete(np.array([3, 4]))
    deployed.flush()
    deployed.close()
    differs = cbir("verify", collection, "--against", name, option)
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
        assert local.documents([5])[0] == {"label": "c5", "path": "img/5.jpg", "price": 5, "id": 5}
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
