"""Builds by Ray on a local cluster: they find what a single machine's build finds, and fail as clearly."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbir_faiss.collection import Collection
from cbir_faiss.config import load_config, parse_config
from cbir_faiss.errors import ConfigError, InputError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def build(place: Path, name: str, engine: Any = None, **sections: Any) -> Collection:
    document = {
        "source": {"name": "folder", "root": str(place / "pictures")},
        "extractors": [{"name": "hog", "size": 32}],
        "codecs": [{"name": "lsh", "bits": 64}],
        "backends": [{"name": "faiss-binary-flat"}],
        "rescore": [{"name": "float"}],
        **sections,
        **({"engine": engine} if engine else {}),
    }
    return Collection.build(parse_config(document), place / name, cache=place / f"cache-{name}")


def test_a_cluster_builds_what_one_machine_builds(cluster: None, pictures: Path) -> None:
    place = pictures.parent
    (pictures / "blob" / "bad.png").write_bytes(b"")
    one = build(place, "one")
    many = build(place, "many", {"name": "ray", "segments": 3, "workers": 2})
    assert one.report is not None
    assert many.report is not None
    assert many.info()["segments"] == 3
    assert many.report.items == one.report.items == 36
    assert many.report.failed == one.report.failed
    queries = [pictures / "blob" / "03.png", pictures / "stripes" / "07.png"]
    for where in (None, {"label": "checks"}):
        expected = one.search(queries, k=36, where=where)
        met = many.search(queries, k=36, where=where)
        assert [[hit.path for hit in hits] for hits in met] == [[hit.path for hit in hits] for hits in expected]
    assert many.verify() == []
    again = build(place, "many", {"name": "ray", "segments": 3, "workers": 2})
    assert again.manifest.generation == many.manifest.generation
    many.delete([0])
    assert len(many) == 35


def test_vectors_are_written_by_several_tasks(cluster: None, pictures: Path) -> None:
    place = pictures.parent
    x = np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32)
    x[5, 5] = np.nan
    np.save(place / "x.npy", x)
    sections = {"source": {"name": "vectors", "file": str(place / "x.npy")}, "extractors": [{"name": "vectors"}]}
    one, many = build(place, "one", **sections), build(place, "many", "ray", **sections)
    assert many.info()["segments"] == 4
    assert many.search(x[7:9], k=99) == one.search(x[7:9], k=99)


def test_what_goes_wrong_in_a_process_is_told(cluster: None, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"text")
    with pytest.raises(InputError, match=r"not one of 1 items could be used; a\.png: not an image"):
        build(tmp_path, "x", "ray")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x.building").exists()


def test_the_engine_section_is_checked(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "source: {name: digits}\ncodecs: [{name: raw}]\nbackends: [{name: faiss-flat}]\nengine: spark\n"
    )
    with pytest.raises(ConfigError, match=r"c\.yaml:4: engine"):
        load_config(tmp_path / "c.yaml")
