"""`cbir plan`: bytes before anything is built, against what is built; and a build that cannot fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cbir_faiss.cli import main
from cbir_faiss.collection import Collection, room
from cbir_faiss.config import parse_config
from cbir_faiss.errors import CbirError, ConfigError, InputError
from cbir_faiss.storage.manifest import read_manifest
from cbir_faiss.tuning import plan as module
from cbir_faiss.tuning.plan import plan


def cbir(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIZES", (600, 3_000))


def config(
    tmp_path: Path, codec: Any, backend: Any, rescore: Any = None, n: int = 500, dim: int = 32
) -> dict[str, Any]:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((n, dim), np.float32))
    return {
        "source": {"name": "vectors", "file": str(tmp_path / "x.npy")},
        "codecs": [codec],
        "backends": [backend],
        "rescore": [rescore or {"name": "none"}],
    }


RAW, LSH = {"name": "raw"}, {"name": "lsh", "bits": 64}
CASES = [
    (LSH, {"name": "faiss-binary-flat"}, {"name": "float"}),
    (RAW, {"name": "faiss-pq", "bits": 64}, {"name": "none"}),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            (RAW, {"name": "faiss-flat"}, {"name": "none"}),
            (LSH, {"name": "faiss-binary-hnsw", "m": 8}, {"name": "float", "store": "int8"}),
            (RAW, {"name": "faiss-ivf"}, {"name": "none"}),
            (RAW, {"name": "faiss-rabitq"}, {"name": "float", "store": "float16"}),
            (LSH, {"name": "faiss-binary-ivf"}, {"name": "none"}),
            (RAW, {"name": "rabitq", "bits": 2, "nlist": 64}, {"name": "none"}),
            ({"name": "pca", "dim": 16}, {"name": "faiss-eden", "bits": 3}, {"name": "none"}),
            (RAW, {"name": "faiss-hnsw", "storage": "sq8"}, {"name": "none"}),
            (RAW, {"name": "faiss", "factory": "SQ8"}, {"name": "none"}),
            (RAW, {"name": "faiss", "factory": "IVF64,PQ8x4fs"}, {"name": "none"}),
            (RAW, {"name": "faiss-pq", "bits": 32, "nlist": 100}, {"name": "none"}),
            (RAW, {"name": "usearch"}, {"name": "none"}),
        )
    ),
]


@pytest.mark.parametrize(("codec", "backend", "rescore"), CASES, ids=lambda part: str(part.get("name", "")))
def test_bytes_are_those_of_what_is_built(codec: Any, backend: Any, rescore: Any, tmp_path: Path) -> None:
    n = 6_000
    found = plan(parse_config(config(tmp_path, codec, backend, rescore)), n)
    built = config(tmp_path, codec, backend, rescore, n)
    Collection.build(parse_config(built), tmp_path / "x.cbir").close()
    files = read_manifest(tmp_path / "x.cbir").files
    index = sum(entry.size for name, entry in files.items() if "/backend/" in name)
    disk = sum(path.stat().st_size for path in (tmp_path / "x.cbir").rglob("*") if path.is_file())
    assert found.items == n
    assert found.index_bytes == pytest.approx(index, rel=0.05)
    assert found.disk_bytes == pytest.approx(disk, rel=0.05)
    assert found.resident_bytes >= 0.9 * index
    assert found.build_peak_bytes > found.index_bytes
    assert found.build_seconds is not None
    assert found.build_seconds > 0


def test_a_width_is_enough_where_the_source_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    document = config(tmp_path, LSH, {"name": "faiss-binary-flat"}, {"name": "float"})
    document["source"] = {"name": "folder", "root": str(tmp_path / "not yet")}
    (tmp_path / "c.yaml").write_text(json.dumps(document))
    told = json.loads(cbir("plan", tmp_path / "c.yaml", "--items", 10**6, "--dim", 128, "--json").stdout)
    keys = {"items", "index_bytes", "resident_bytes", "disk_bytes", "build_peak_bytes", "build_seconds"}
    assert set(told) == keys
    assert told["index_bytes"] == pytest.approx(8e6, rel=0.05)
    assert told["disk_bytes"] > 10**6 * 512
    without = cbir("plan", tmp_path / "c.yaml", "--items", 10**6)
    assert without.exit_code == 1
    assert "not yet" in without.stderr
    assert "MB" in cbir("plan", tmp_path / "c.yaml", "--items", 1000, "--dim", 8).stdout
    assert not list(scratch.iterdir())


def test_pictures_give_width_time_and_documents(pictures: Path, tmp_path: Path) -> None:
    document = config(tmp_path, {"name": "itq", "bits": 64}, {"name": "faiss-binary-flat"}, {"name": "float"})
    document |= {"source": {"name": "folder", "root": str(pictures)}, "extractors": [{"name": "hog", "size": 32}]}
    many = plan(parse_config(document), 100_000)
    assert many.build_seconds is not None
    assert many.build_seconds > 0
    assert many.index_bytes == pytest.approx(800_000, rel=0.05)


def test_lists_are_as_many_as_there_will_be(tmp_path: Path) -> None:
    found = plan(parse_config(config(tmp_path, RAW, {"name": "faiss-pq", "bits": 32})), 200_000)
    lists = 1265  # 4 times the root of what is learnt from
    assert found.index_bytes > 200_000 * 12 + lists * 32 * 4
    assert found.index_bytes < 1.1 * (200_000 * 12 + lists * (32 * 4 + 16 * 4) + 100_000)


def test_an_engine_elsewhere_is_arithmetic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = config(tmp_path, RAW, {"name": "qdrant", "url": "http://nowhere.invalid:1"}, dim=64)
    found = plan(parse_config(document), 10**6)
    assert found.index_bytes > 10**6 * 256
    assert found.resident_bytes < 10**6 * 700


def planned(tmp_path: Path, codec: Any, backend: dict[str, Any], dim: int = 64) -> Any:
    return plan(parse_config(config(tmp_path, codec, backend, dim=dim)), 10**6)


def test_a_plan_for_a_server_is_of_the_options_that_it_has(tmp_path: Path) -> None:
    qdrant, million = {"name": "qdrant", "url": "http://nowhere.invalid:1", "hnsw_m": 0}, 10**6
    plain = planned(tmp_path, RAW, qdrant)
    assert plain.build_seconds is None
    differs = {
        "graph": planned(tmp_path, RAW, {**qdrant, "hnsw_m": 64}).index_bytes - plain.index_bytes,
        "int8": planned(tmp_path, RAW, {**qdrant, "quantization": "scalar"}).index_bytes - plain.index_bytes,
        "half": plain.index_bytes - planned(tmp_path, RAW, {**qdrant, "datatype": "float16"}).index_bytes,
        "disk": plain.resident_bytes - planned(tmp_path, RAW, {**qdrant, "on_disk": True}).resident_bytes,
    }
    assert differs["graph"] == pytest.approx(million * 64 * 2.2 * 4)
    assert (differs["int8"], differs["half"], differs["disk"]) == (million * 64, million * 128, million * 256)
    copies = planned(tmp_path, RAW, {**qdrant, "replication_factor": 3})
    assert copies.index_bytes == pytest.approx(3 * plain.index_bytes)
    assert copies.resident_bytes == 3 * plain.resident_bytes
    line = cbir("plan", _written(tmp_path, qdrant), "--items", 1000).stdout.splitlines()[-1]
    assert line.split() == ["build", "-"]


def _written(tmp_path: Path, backend: dict[str, Any]) -> Path:
    (tmp_path / "c.yaml").write_text(json.dumps(config(tmp_path, RAW, backend)))
    return tmp_path / "c.yaml"


def test_codes_take_a_byte_a_bit_where_an_engine_keeps_them_so(tmp_path: Path) -> None:
    codes = {"name": "lsh", "bits": 1024}
    qdrant = planned(tmp_path, codes, {"name": "qdrant", "url": "http://nowhere.invalid:1"})
    pgvector = planned(tmp_path, codes, {"name": "pgvector", "table": "x"})
    assert qdrant.resident_bytes > 10**6 * 1024
    assert 10**6 * 128 < pgvector.resident_bytes < 10**6 * 256


def test_indexes_of_pgvector_and_lancedb_are_told_apart(tmp_path: Path) -> None:
    pgvector, lancedb = {"name": "pgvector", "table": "x"}, {"name": "lancedb", "uri": "s3://nowhere/x"}
    tables = [planned(tmp_path, RAW, {**pgvector, "index": kind}) for kind in ("none", "binary", "ivfflat", "hnsw")]
    assert [one.index_bytes for one in tables] == sorted({one.index_bytes for one in tables})
    half = planned(tmp_path, RAW, {**pgvector, "index": "hnsw", "datatype": "float16"})
    wide = planned(tmp_path, RAW, {**pgvector, "index": "hnsw", "hnsw_m": 32, "hnsw_ef_construct": 64})
    assert half.index_bytes == tables[-1].index_bytes - 10**6 * 2 * 128
    assert wide.index_bytes > tables[-1].index_bytes
    assert planned(tmp_path, RAW, {**lancedb, "index": "ivf_pq"}).resident_bytes < 10**6 * 64
    assert planned(tmp_path, RAW, lancedb).resident_bytes == 10**6 * 256


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["lancedb", "qdrant"])
def test_an_engine_of_this_process_is_tried(engine: str, tmp_path: Path) -> None:
    document = config(tmp_path, RAW, {"name": engine, "path": str(tmp_path / "engine")}, dim=64)
    found = plan(parse_config(document), 20_000)
    assert found.index_bytes > 20_000 * 256 * 0.9
    assert not (tmp_path / "engine").exists()


def test_what_cannot_be_planned(tmp_path: Path) -> None:
    good = config(tmp_path, LSH, {"name": "faiss-binary-flat"})
    with pytest.raises(InputError, match="at least one item"):
        plan(parse_config(good), 0)
    with pytest.raises(ConfigError, match="exactly one"):
        plan(parse_config(good | {"codecs": [LSH, RAW]}), 10)
    with pytest.raises(ConfigError, match="takes float"):
        plan(parse_config(good | {"backends": [{"name": "faiss-flat"}]}), 10)
    with pytest.raises(CbirError, match="bits"):
        plan(parse_config(good | {"codecs": [{"name": "itq", "bits": 64}]}), 10)


class Usage(NamedTuple):
    free: int


def test_a_build_that_cannot_fit_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = config(tmp_path, RAW, {"name": "faiss-flat"})
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: Usage(100_000))
    monkeypatch.setattr("cbir_faiss.collection.build.extract", lambda *a, **b: pytest.fail("it was extracted"))
    with pytest.raises(CbirError, match=r"500 items take at least .* on the disk, and 0\.1 MB are free"):
        Collection.build(parse_config(document), tmp_path / "x.cbir")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: Usage(10**12))
    monkeypatch.setattr(room, "available_memory", lambda: 1000)
    with pytest.raises(CbirError, match="of memory"):
        Collection.build(parse_config(document), tmp_path / "x.cbir")
    assert not (tmp_path / "x.cbir").exists()
    assert not (tmp_path / "x.cbir.building").exists()


@pytest.mark.parametrize(("codec", "backend", "rescore"), CASES, ids=lambda part: str(part.get("name", "")))
def test_the_least_is_never_more_than_what_is_built(codec: Any, backend: Any, rescore: Any, tmp_path: Path) -> None:
    parsed = parse_config(config(tmp_path, codec, backend, rescore, n=3000))
    least = room.least_of(parsed, parsed.source.make(), parsed.extractors[0].make())
    Collection.build(parsed, tmp_path / "x.cbir").close()
    disk = sum(path.stat().st_size for path in (tmp_path / "x.cbir").rglob("*") if path.is_file())
    assert 0 < least.disk <= disk
