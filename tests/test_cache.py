"""The embedding cache: few files, none of them open; damage is found; several processes at once; older caches."""

from __future__ import annotations

import json
import logging
import multiprocessing
import resource
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbir_faiss.base.registry import make
from cbir_faiss.errors import CbirError
from cbir_faiss.pipeline import cache as caching
from cbir_faiss.pipeline.cache import EmbeddingCache
from cbir_faiss.pipeline.extraction import extract


def key(i: int) -> bytes:
    return i.to_bytes(32, "big")


def columns(numbers: Any) -> dict[str, np.ndarray]:
    numbers = np.asarray(numbers)
    return {
        "embedding": np.stack([numbers, numbers + 0.5], axis=1).astype(np.float32),
        "phash": (numbers[:, None] % 251 * np.ones(3)).astype(np.uint8),
    }


def fill(folder: Path, first: int, last: int, step: int = 1) -> None:
    """Items ``first`` … ``last``, flushed ``step`` by step."""
    cache = EmbeddingCache(folder)
    for start in range(first, last, step):
        some = range(start, min(start + step, last))
        cache.add([key(i) for i in some], columns(some))
        cache.flush()


def holds(cache: EmbeddingCache, numbers: Any) -> bool:
    numbers = np.asarray(numbers)
    assert all(key(i) in cache for i in numbers.tolist())
    found = cache.gather([key(i) for i in numbers.tolist()])
    return all(np.array_equal(found[name], column) for name, column in columns(numbers).items())


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("shard-*"))


def test_a_cache_of_many_shards_needs_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbir_faiss.pipeline.cache.MERGED", 10_000, raising=False)  # as a cache that nobody merged
    fill(tmp_path, 0, 60)
    monkeypatch.undo()
    assert len(shards(tmp_path)) == 60
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 30, hard))
    try:
        cache = EmbeddingCache(tmp_path)
        assert holds(cache, np.random.default_rng(0).permutation(60))
        cache.add([key(60)], columns([60]))
        cache.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert holds(EmbeddingCache(tmp_path), range(61))


def test_small_shards_become_few_large_ones(tmp_path: Path) -> None:
    fill(tmp_path, 0, 150)
    assert len(shards(tmp_path)) <= 7 * 3
    cache = EmbeddingCache(tmp_path)
    assert holds(cache, np.random.default_rng(0).permutation(150))
    assert set(cache.gather([key(5)], ["phash"])) == {"phash"}
    assert key(150) not in cache
    assert {path.name for path in tmp_path.iterdir()} - {path.name for path in shards(tmp_path)} == {"LOCK"}


def test_a_shard_that_is_full_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "FULL_ITEMS", 16)
    fill(tmp_path, 0, 160, step=16)
    before = shards(tmp_path)
    fill(tmp_path, 160, 176, step=16)
    assert len(before) == 10
    assert set(before) < set(shards(tmp_path))


def test_keys_take_little_memory(tmp_path: Path) -> None:
    n = 100_000
    cache = EmbeddingCache(tmp_path)
    rng = np.random.default_rng(0)
    cache.add([rng.bytes(32) for _ in range(n)], {"embedding": np.zeros((n, 1), np.float32)})
    cache.flush()
    del cache
    tracemalloc.start()
    again = EmbeddingCache(tmp_path)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken < 45 * n
    del again


# -- damage


@pytest.mark.parametrize("file", ["0.npy", "1.npy", "keys.npy", "shard.json"])
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture) -> None:
    fill(tmp_path / "whole", 0, 20, step=20)
    size = next((tmp_path / "whole").rglob(file)).stat().st_size
    for at in np.random.default_rng(0).integers(0, size, 12).tolist():
        folder = tmp_path / str(at)
        shutil.copytree(tmp_path / "whole", folder)
        (path,) = folder.rglob(file)
        content = bytearray(path.read_bytes())
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        caplog.clear()
        cache = EmbeddingCache(folder)
        assert not any(key(i) in cache for i in range(20)), f"byte {at} of {file}"
        assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1
        cache.add([key(i) for i in range(20)], columns(range(20)))
        cache.flush()
        assert holds(EmbeddingCache(folder), range(20))
        assert len(caplog.records) == 1, "it is said once"


def test_damaged_shards_cost_time_and_nothing_else(pictures: Path, tmp_path: Path) -> None:
    def run() -> Any:
        source = make("sources", "folder", root=str(pictures))
        return extract(source, make("extractors", "hog"), cache=tmp_path / "cache")

    first = run()
    (column,) = (tmp_path / "cache").rglob("0.npy")
    stored = np.load(column)
    stored[3, 5] = np.nan
    np.save(column, stored)
    again = run()
    assert again.computed == 36
    np.testing.assert_array_equal(first.columns["embedding"], again.columns["embedding"])
    assert run().computed == 0


def older(folder: Path, name: str, numbers: Any) -> Path:
    """A shard as 0.1 wrote it: without digests."""
    shard = folder / f"shard-{name}"
    shard.mkdir(parents=True)
    np.save(shard / "keys.npy", np.frombuffer(b"".join(key(i) for i in numbers), np.uint8).reshape(-1, 32))
    for i, column in enumerate(columns(numbers).values()):
        np.save(shard / f"{i}.npy", column)
    (shard / "columns.json").write_text(json.dumps(["embedding", "phash"]))
    return shard


def test_an_older_cache_is_used_and_merged(tmp_path: Path) -> None:
    for part in range(9):
        older(tmp_path, str(part), range(10 * part, 10 * part + 10))
    assert holds(EmbeddingCache(tmp_path), range(90))
    fill(tmp_path, 90, 91)
    assert holds(EmbeddingCache(tmp_path), range(91))
    assert len(shards(tmp_path)) < 9


def test_an_older_shard_with_nan_is_not_used(tmp_path: Path) -> None:
    shard = older(tmp_path, "a", range(10))
    stored = np.load(shard / "0.npy")
    stored[7] = np.nan
    np.save(shard / "0.npy", stored)
    older(tmp_path, "b", range(10, 20))
    cache = EmbeddingCache(tmp_path)
    assert not any(key(i) in cache for i in range(10))
    assert holds(cache, range(10, 20))


def test_a_cache_that_cannot_be_read_or_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(np, "load", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        with pytest.raises(CbirError, match=r"the embedding cache cannot be read: Permission denied"):
            EmbeddingCache(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    cache = EmbeddingCache(tmp_path / "file" / "x")
    cache.add([key(0)], columns([0]))
    with pytest.raises(CbirError, match="the embedding cache cannot be written"):
        cache.flush()


# -- several processes


def test_what_another_process_merged_is_found(tmp_path: Path) -> None:
    fill(tmp_path, 0, 7)
    early, asked = EmbeddingCache(tmp_path), EmbeddingCache(tmp_path)
    assert holds(asked, range(7))
    before = shards(tmp_path)
    fill(tmp_path, 7, 20)
    assert not set(before) & set(shards(tmp_path))
    assert holds(asked, range(7))
    assert holds(early, range(7))


def test_an_emptied_cache_is_one_line(tmp_path: Path) -> None:
    fill(tmp_path, 0, 3)
    cache = EmbeddingCache(tmp_path)
    assert key(1) in cache
    shutil.rmtree(tmp_path)
    with pytest.raises(CbirError, match="has lost 1 of 1 items"):
        cache.gather([key(1)])


def test_several_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["numpy", "cbir_faiss.pipeline.cache"])
    work = [context.Process(target=fill, args=(tmp_path, 30 * i, 30 * i + 50)) for i in range(2)]
    for process in work:
        process.start()
    while any(process.is_alive() for process in work):
        cache = EmbeddingCache(tmp_path)
        met = [i for i in range(80) if key(i) in cache]
        assert not met or holds(cache, met)
    for process in work:
        process.join()
        assert process.exitcode == 0
    fill(tmp_path, 80, 81)
    assert holds(EmbeddingCache(tmp_path), range(81))
