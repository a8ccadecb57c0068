"""What is compared is what is built and searched: a collection finds the ids and distances of its row."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from _plugins import installed
from _postgres import running_postgres
from PIL import Image

import cbir_faiss as cf
from cbir_faiss.base import registry
from cbir_faiss.collection import Collection
from cbir_faiss.comparison import timing
from cbir_faiss.comparison.run import run
from cbir_faiss.config import parse_config
from cbir_faiss.errors import ConfigError
from cbir_faiss.pipeline.fill import FILL_ROWS

K = 10
PLUGIN = '''
import numpy as np
from cbir_faiss import base


class Several(base.Extractor):
    """An embedding, and every side column that a rescorer asks for."""

    name = "several"
    outputs = {"embedding": (64, "float32"), "probs": (3, "float32"), "phash": (8, "uint8")}

    def _prepare(self, image):
        return np.asarray(image.convert("L").resize((8, 8)), np.float32)

    def _extract(self, batch):
        x = batch.reshape(len(batch), -1) / 255
        odds = np.exp(8 * np.stack([x[:, i::3].mean(axis=1) for i in range(3)], axis=1))
        return {
            "embedding": x,
            "probs": odds / odds.sum(axis=1, keepdims=True),
            "phash": np.packbits(x > x.mean(axis=1, keepdims=True), axis=1),
        }
'''
# What a plugin cannot do without, and one thread for graphs, whose links depend on who comes first.
CODECS: dict[str, dict[str, Any]] = {name: {"bits": 16} for name in ("itq", "lsh", "pca-sign", "sh", "ksh")}
CODECS |= {"learned": {"bits": 16, "steps": 20, "hidden": 0}, "pca": {"dim": 16}}
BACKENDS: dict[str, dict[str, Any]] = {
    "faiss": {"factory": "SQ8"},
    "faiss-lsh": {"bits": 32},
    "faiss-pq": {"bits": 16, "nlist": 2},
    "faiss-multihash": {"tables": 2},
    "rabitq": {"bits": 9},
    "rabitq-hnsw": {"bits": 9},
    "usearch": {"threads": 1},
}
ENGINES = ("qdrant", "pgvector", "lancedb", "sqlite-vec", "milvus")
DRAWN = {"rabitq": 5e-3}  # it draws another rotation for every index, so distances differ as much as codes are coarse


@pytest.fixture
def several(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"QUERIES": 2, "WARM_UP": 0, "BATCH": 2}.items():  # times are no matter of these tests
        monkeypatch.setattr(timing, name, value)
    monkeypatch.setattr("cbir_faiss.comparison.rows.ROUNDS", 1)
    monkeypatch.setattr("cbir_faiss.comparison.resident.ResidentMeter.measure", lambda *_: None)
    entry = "[cbir_faiss.extractors]\nseveral = several_plugin:Several\n"
    with installed(tmp_path_factory.mktemp("several"), "several", PLUGIN, entry, monkeypatch):
        yield


@pytest.fixture(scope="module")
def postgres() -> Iterator[Path]:
    with running_postgres() as path:
        yield path


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    """Pictures that are asked with, in a folder of their own."""
    root, rng = tmp_path / "asked", np.random.default_rng(3)
    root.mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), np.uint8)).save(root / f"{i}.png")
    return root


def rescorers(backend: str) -> list[dict[str, Any]]:
    """Of what ties with the last candidate an engine may name any; so they are asked for all."""
    candidates = {"candidates": 36 if backend in ENGINES else 15}
    return [{"name": name, **({} if name == "none" else candidates)} for name in registry.names("rescorers")]


def sections(codecs: list[str], backend: str) -> dict[str, Any]:
    return {
        "codecs": [{"name": name, **CODECS.get(name, {})} for name in codecs],
        "backends": [{"name": backend, **BACKENDS.get(backend, {})}],
        "rescore": rescorers(backend),
    }


def same_kind(codec: str, backend: str) -> bool:
    plugin: Any = registry.load("backends", backend)
    codec_plugin: Any = registry.load("codecs", codec)
    return codec_plugin.kind in plugin.kinds(BACKENDS.get(backend, {}))


def placed(backend: dict[str, Any], folder: Path, name: str, postgres: Path) -> dict[str, Any]:
    """An engine's own place for one build."""
    if backend["name"] == "pgvector":
        table = f"{name}_{zlib.crc32(str(folder).encode())}".replace("-", "_")  # one server for all tests
        return {**backend, "path": str(postgres), "table": table}
    if backend["name"] in ENGINES:
        return {**backend, "path": str(folder / name)}
    return backend


def check(codecs: list[str], backend: str, pictures: Path, asked: Path, tmp_path: Path, postgres: Path) -> int:
    if backend == "rabitq":
        pytest.importorskip("rabitqlib", reason="needs rabitqlib: Python 3.11 or newer")
    if backend == "milvus":
        pytest.importorskip("milvus_lite", reason="needs milvus-lite")
    if backend == "sqlite-vec" and not hasattr(sqlite3.Connection, "enable_load_extension"):
        pytest.skip("this Python's sqlite3 loads no extensions")
    codecs = [codec for codec in codecs if same_kind(codec, backend)]
    chosen = sections(codecs, backend)
    common = {
        "source": {"name": "folder", "root": str(pictures)},
        "extractors": [{"name": "several"}],
        "threads": 1,
        "metrics": {"k": [5, K]},  # a rescorer looks at as many candidates as results are wanted, or more
    }
    compared = {
        **common,
        **chosen,
        "backends": [placed(chosen["backends"][0], tmp_path, "compared", postgres)],
        "queries": {"source": {"name": "folder", "root": str(asked)}},
    }
    results = run(parse_config(compared), tmp_path / "out")
    queries = sorted(asked.glob("*.png"))
    for number, row in enumerate(results["rows"]):
        codec = next(c for c in chosen["codecs"] if c["name"] == row["codec"])
        rescore = next(r for r in chosen["rescore"] if r["name"] == row["rescore"])
        place = placed(chosen["backends"][0], tmp_path, f"built-{backend}-{number}", postgres)
        document = {**common, "codecs": [codec], "backends": [place], "rescore": [rescore]}
        with Collection.build(parse_config(document), tmp_path / f"{number}.cbir") as collection:
            hits = collection.search_hits(queries, K)
            found = collection.search(queries, K)
        with np.load(tmp_path / "out" / row["raw"]) as stored:
            ids, distances = stored["ids"][:, :K], stored["distances"][:, :K]
        same_hits(hits.ids, hits.distances, ids, distances, f"{codec} {rescore}", DRAWN.get(backend, 1e-5))
        assert [[match.id for match in some] for some in found] == [[i for i in ids if i >= 0] for ids in hits.ids]
    return len(results["rows"])


def same_hits(ids: Any, distances: Any, wanted: Any, far: Any, what: str, apart: float) -> None:
    """Equal ids at equal distances; of what ties at the same distance an engine may name any."""
    np.testing.assert_allclose(distances, far, rtol=apart, atol=apart, err_msg=what)
    for mine, theirs, d in zip(ids, wanted, far, strict=True) if apart < 1e-4 else ():
        last = d[np.isfinite(d)].max(initial=-np.inf)
        for distance in np.unique(d[d < last - 1e-4]):
            near = np.abs(d - distance) <= 1e-4
            assert set(mine[near]) == set(theirs[near]), what


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("backend", registry.names("backends"))
def test_a_collection_finds_what_its_row_found(
    backend: str, pictures: Path, asked: Path, tmp_path: Path, postgres: Path
) -> None:
    assert check(["raw", "itq"], backend, pictures, asked, tmp_path, postgres)


@pytest.mark.slow
@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("backend", registry.names("backends"))
def test_every_combination_finds_what_its_row_found(
    backend: str, pictures: Path, asked: Path, tmp_path: Path, postgres: Path
) -> None:
    codecs = [name for name in registry.names("codecs") if name not in ("raw", "itq")]
    assert check(codecs, backend, pictures, asked, tmp_path, postgres)


def test_above_the_sample_a_row_is_still_what_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than anything learns from, and than are filled at once."""
    monkeypatch.setattr("cbir_faiss._lib.sampling.sample_rows.__defaults__", (5_000, 0))
    monkeypatch.setattr("cbir_faiss.comparison.rows.ROUNDS", 1)
    rng = np.random.default_rng(0)
    x, q = rng.normal(size=(FILL_ROWS + 3_000, 16)).astype(np.float32), rng.normal(size=(5, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "q.npy", q)
    document = {
        "source": {"name": "vectors", "file": str(tmp_path / "x.npy")},
        "codecs": [{"name": "itq", "bits": 16}],
        "backends": [{"name": "faiss-binary-ivf", "nlist": 16, "search": {"nprobe": 4}}],
        "rescore": [{"name": "float", "candidates": 50}],
        "threads": 1,
        "metrics": {"k": [5, K]},
    }
    compared = {**document, "queries": {"source": {"name": "vectors", "file": str(tmp_path / "q.npy")}}}
    (row,) = run(parse_config(compared), tmp_path / "out")["rows"]
    with Collection.build(parse_config(document), tmp_path / "x.cbir") as collection:
        hits = collection.search_hits(q, K)
    with np.load(tmp_path / "out" / row["raw"]) as stored:
        np.testing.assert_array_equal(hits.ids, stored["ids"][:, :K])
        np.testing.assert_array_equal(hits.distances, stored["distances"][:, :K])


# -- what does not go together


def test_what_does_not_go_together_is_a_skipped_row(pictures: Path, tmp_path: Path) -> None:
    document = {
        "source": {"name": "folder", "root": str(pictures)},
        "extractors": [{"name": "hog", "size": 32}],
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss-flat"}],
        "rescore": [{"name": "none"}, {"name": "asymmetric"}],
    }
    results = run(parse_config(document), tmp_path / "out")
    assert [row["rescore"] for row in results["rows"]] == ["none"]
    (skipped,) = results["skipped"]
    assert skipped["combination"] == "raw in faiss-flat with asymmetric"
    assert "'asymmetric' reads binary codes, which codec 'raw' does not give" in skipped["reason"]


@pytest.mark.parametrize("work", [run, Collection.build])
def test_where_nothing_goes_together_it_is_an_error_before_any_work(pictures: Path, tmp_path: Path, work: Any) -> None:
    document = {
        "source": {"name": "folder", "root": str(pictures)},
        "extractors": [{"name": "hog", "size": 32}],
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss-flat"}],
        "rescore": [{"name": "asymmetric"}],
    }
    with pytest.raises(ConfigError, match="'asymmetric' reads binary codes, which codec 'raw' does not give"):
        work(parse_config(document), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arrays_are_compared_where_one_rescorer_does_not_go_with_one_codec() -> None:
    x = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    rows = cf.compare(
        vectors=x,
        queries=x[:5],
        codecs=["raw", {"name": "itq", "bits": 8}],
        backends=["faiss-flat", "faiss-binary-flat"],
        rescore=["none", {"name": "asymmetric", "candidates": 10}],
    )
    assert [(row["codec"], row["rescore"]) for row in rows] == [("raw", "none"), ("itq", "none"), ("itq", "asymmetric")]
