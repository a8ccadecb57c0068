"""Builds by Ray on a local cluster: they find what a single machine's build finds, and fail as clearly."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbir_faiss.collection import Collection
from cbir_faiss.config import load_config, parse_config
from cbir_faiss.errors import CbirError, ConfigError, InputError
from cbir_faiss.pipeline.cache import default_cache

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # Ray's own


def disks_of_their_own() -> Callable[[], None]:
    """What a process of Ray runs first: what it writes to the cache is seen on its node alone."""

    def own_disk() -> None:  # in here, so that it is sent as it is: the processes cannot import this file
        from cbir_faiss.pipeline import cache

        init = cache.EmbeddingCache.__init__

        def on_this_node(self: Any, folder: Path | None) -> None:
            init(self, folder and Path(os.environ["NODE_DISK"], *folder.parts[1:]))

        cache.EmbeddingCache.__init__ = on_this_node  # type: ignore[method-assign]

    return own_disk


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two nodes, each with a home, a disk and a processor of its own; returns where the disks are."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    disks = tmp_path_factory.mktemp("nodes")
    nodes = Cluster()
    try:
        for name in ("one", "two"):
            own = {"HOME": str(disks / name), "NODE_DISK": str(disks / name)}
            (disks / name).mkdir()
            nodes.add_node(num_cpus=1, include_dashboard=False, object_store_memory=100 << 20, env_vars=own)
        setup = {"worker_process_setup_hook": disks_of_their_own()}
        ray.init(address=nodes.address, log_to_driver=False, runtime_env=setup)
        yield disks
    finally:
        ray.shutdown()
        nodes.shutdown()


def build(place: Path, name: str, engine: Any = None, cache: Path | None = None, **sections: Any) -> Collection:
    document = {
        "source": {"name": "folder", "root": str(place / "pictures")},
        "extractors": [{"name": "hog", "size": 32}],
        "codecs": [{"name": "lsh", "bits": 64}],
        "backends": [{"name": "faiss-binary-flat"}],
        "rescore": [{"name": "float"}],
        **sections,
        **({"engine": engine} if engine else {}),
    }
    return Collection.build(parse_config(document), place / name, cache=cache or place / f"cache-{name}")


def test_a_cluster_builds_what_one_machine_builds(cluster: Path, pictures: Path) -> None:
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


def test_nodes_share_the_source_and_the_collection_and_nothing_else(cluster: Path, pictures: Path) -> None:
    """The cache is the default one, which each node has on its own disk."""
    many = build(pictures.parent, "many", {"name": "ray", "workers": 2}, cache=default_cache())
    assert (many.report.items, many.report.failed) == (36, [])  # type: ignore[union-attr]
    assert many.verify() == []
    assert list(cluster.rglob("shard-*")), "a node keeps what it made, for a build that goes on"
    again = build(pictures.parent, "again", cache=default_cache())  # and so does the machine that builds
    assert again.report is not None
    assert (again.report.resumed_items, again.report.images_per_second) == (36, 0)


def test_what_a_process_did_not_send_is_an_error(cluster: Path, pictures: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("cbir_faiss.collection.ray._keep", lambda store, part: None)
    with pytest.raises(CbirError, match="36 of 36 items are not in the embedding cache"):
        build(pictures.parent, "x", "ray")
    assert not (pictures.parent / "x").exists()


def test_vectors_are_written_by_several_tasks(cluster: Path, pictures: Path) -> None:
    place = pictures.parent
    x = np.random.default_rng(0).standard_normal((100, 16)).astype(np.float32)
    x[5, 5] = np.nan
    np.save(place / "x.npy", x)
    sections = {"source": {"name": "vectors", "file": str(place / "x.npy")}, "extractors": [{"name": "vectors"}]}
    one, many = build(place, "one", **sections), build(place, "many", "ray", **sections)
    assert many.info()["segments"] == 4
    assert many.search(x[7:9], k=99) == one.search(x[7:9], k=99)


def test_what_goes_wrong_in_a_process_is_told(cluster: Path, tmp_path: Path) -> None:
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
