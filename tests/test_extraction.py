"""Extraction: bounded, in order, cached by content, with failures recorded and not fatal."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbir_faiss.base import Item, Source
from cbir_faiss.base.registry import make
from cbir_faiss.errors import CbirError, ConfigError, InputError
from cbir_faiss.pipeline import extraction
from cbir_faiss.pipeline.cache import EmbeddingCache


def folder(root: Path) -> Any:
    return make("sources", "folder", root=str(root))


def test_columns_are_in_the_order_of_the_items(pictures: Path) -> None:
    found = extraction.extract(folder(pictures), make("extractors", "hog"), cache=None, batch_size=5)
    hog = make("extractors", "hog")
    source = folder(pictures)
    one = hog([source.read(7)])["embedding"][0]
    assert found.rows.tolist() == list(range(36))
    np.testing.assert_allclose(found.columns["embedding"][7], one, rtol=1e-6)


def test_a_second_run_computes_nothing_and_finds_the_same(pictures: Path, tmp_path: Path) -> None:
    first = extraction.extract(folder(pictures), make("extractors", "hog"), cache=tmp_path / "cache")
    again = extraction.extract(folder(pictures), make("extractors", "hog"), cache=tmp_path / "cache")
    assert (first.computed, again.computed) == (36, 0)
    np.testing.assert_array_equal(first.columns["embedding"], again.columns["embedding"])


def test_only_new_content_is_computed(pictures: Path, tmp_path: Path) -> None:
    extraction.extract(folder(pictures), make("extractors", "hog"), cache=tmp_path / "cache")
    shutil.copy(pictures / "blob" / "00.png", pictures / "checks" / "copy.png")  # known content, new path
    (pictures / "blob" / "00.png").write_bytes((pictures / "stripes" / "00.png").read_bytes())
    (pictures / "blob" / "01.png").rename(pictures / "blob" / "moved.png")
    found = extraction.extract(folder(pictures), make("extractors", "hog"), cache=tmp_path / "cache")
    assert (len(found), found.computed) == (37, 0)


def test_what_is_hashed_is_what_is_decoded(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is replaced when it has been hashed must not become the embedding of what it was."""
    file, other = pictures / "blob" / "00.png", (pictures / "stripes" / "00.png").read_bytes()
    was = file.read_bytes()
    sha256 = hashlib.sha256

    def replacing(data: bytes = b"") -> Any:
        if data == was:
            file.write_bytes(other)
        return sha256(data)

    expected = extraction.extract(folder(pictures), make("extractors", "hog"), cache=None).columns["embedding"]
    with monkeypatch.context() as patch:
        patch.setattr("cbir_faiss.sources._file_source.hashlib.sha256", replacing)
        extraction.extract(folder(pictures), make("extractors", "hog"), cache=tmp_path / "cache")
    assert file.read_bytes() == other
    file.write_bytes(was)
    found = extraction.extract(folder(pictures), make("extractors", "hog"), cache=tmp_path / "cache")
    np.testing.assert_array_equal(found.columns["embedding"], expected)


def test_what_was_extracted_and_is_lost_is_an_error(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = EmbeddingCache.add
    monkeypatch.setattr(EmbeddingCache, "add", lambda self, keys, columns: real(self, keys[:0], columns))
    with pytest.raises(CbirError, match=r"36 of 36 items are not in the embedding cache"):
        extraction.extract(folder(pictures), make("extractors", "hog"), cache=tmp_path / "cache")


def test_other_options_are_another_cache(pictures: Path, tmp_path: Path) -> None:
    extraction.extract(folder(pictures), make("extractors", "hog"), cache=tmp_path / "cache")
    found = extraction.extract(folder(pictures), make("extractors", "hog", size=32), cache=tmp_path / "cache")
    assert found.computed == 36


def test_a_damaged_shard_is_computed_again(pictures: Path, tmp_path: Path) -> None:
    extraction.extract(folder(pictures), make("extractors", "hog"), cache=tmp_path / "cache")
    (column,) = (tmp_path / "cache").rglob("0.npy")
    column.write_bytes(column.read_bytes()[:500])
    found = extraction.extract(folder(pictures), make("extractors", "hog"), cache=tmp_path / "cache")
    assert found.computed == 36


def test_a_tenth_of_broken_files_is_recorded_with_reasons(pictures: Path) -> None:
    good = (pictures / "blob" / "00.png").read_bytes()
    broken = {
        "text.jpg": b"hello",
        "zero.png": b"",
        "cut.png": good[: len(good) // 2],
        "cut copy.png": good[: len(good) // 2],
    }
    for name, content in broken.items():
        (pictures / "blob" / name).write_bytes(content)
    (pictures / "blob" / "gone.png").symlink_to(pictures / "nowhere.png")
    found = extraction.extract(folder(pictures), make("extractors", "hog"), cache=None)
    assert len(found) == 36
    assert {f.path for f in found.failed} == {f"blob/{name}" for name in [*broken, "gone.png"]}
    assert all(f.reason and "\n" not in f.reason for f in found.failed)


def test_nothing_usable_is_an_error_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"not one of 1 items could be used; x/a\.png"):
        extraction.extract(folder(tmp_path), make("extractors", "hog"), cache=None)


def test_vectors_need_no_extraction_and_bad_rows_are_failures(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    x[3, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    source = make("sources", "vectors", file=str(tmp_path / "x.npy"))
    found = extraction.extract(source, make("extractors", "vectors"), cache=None)
    assert (len(found), len(found.failed)) == (49, 1)
    np.testing.assert_array_equal(found.columns["embedding"], np.delete(x, 3, axis=0))
    np.testing.assert_array_equal(found.block(slice(1, 4))["embedding"], x[[1, 2, 4]])


def test_source_and_extractor_must_go_together(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="yields images, but extractor 'vectors' reads vectors"):
        extraction.extract(folder(pictures), make("extractors", "vectors"), cache=None)
    np.save(tmp_path / "x.npy", np.ones((3, 4), np.float32))
    with pytest.raises(ConfigError, match="use extractor 'vectors'"):
        extraction.extract(
            make("sources", "vectors", file=str(tmp_path / "x.npy")), make("extractors", "hog"), cache=None
        )


def test_progress_reaches_the_total(pictures: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    extraction.extract(
        folder(pictures), make("extractors", "hog"), cache=tmp_path, batch_size=10, progress=lambda *at: seen.append(at)
    )
    assert seen[0] == (0, 36)
    assert seen[-1] == (36, 36)


def test_an_embedding_that_is_not_finite_is_a_failure(pictures: Path) -> None:
    class Broken(type(make("extractors", "hog"))):  # type: ignore[misc]
        def _extract(self, batch: Any) -> Any:
            columns = {name: values.copy() for name, values in super()._extract(batch).items()}
            columns["embedding"][0] = np.inf
            return columns

    found = extraction.extract(folder(pictures), Broken(), cache=None, batch_size=36)
    assert [f.reason for f in found.failed] == ["embedding is not finite"]
    assert len(found) == 35


class _Counting(Source):
    """A source of many tiny items that counts how far reading has run ahead."""

    name, yields = "counting", "vector"

    def _setup(self) -> None:
        self.read_so_far, self._all = 0, [Item(f"{i:05}") for i in range(2000)]

    def _items(self) -> Sequence[Item]:
        return self._all

    def _read(self, index: int) -> Any:
        self.read_so_far += 1
        return np.full(4, index, np.float32)

    def _content_key(self, index: int) -> bytes:
        return index.to_bytes(32, "big")


def test_reading_runs_ahead_by_a_bounded_number() -> None:
    source = _Counting()
    taken = 0
    for batch in extraction.stream(source, make("extractors", "vectors", dim=4), range(2000), batch_size=8, workers=2):
        taken += len(batch.rows)
        assert source.read_so_far - taken <= 2 * 8 + 2 + 8
    assert taken == 2000


def test_batches_are_the_same_whatever_a_killed_run_left(pictures: Path, tmp_path: Path) -> None:
    seen: list[list[bytes]] = []

    class Watched(type(make("extractors", "hog"))):  # type: ignore[misc]
        def _extract(self, batch: Any) -> Any:
            seen[-1].append(batch.tobytes())
            return super()._extract(batch)

    (pictures / "blob" / "cut.png").write_bytes((pictures / "blob" / "03.png").read_bytes()[:99])
    (pictures / "checks" / "copy.png").write_bytes((pictures / "blob" / "03.png").read_bytes())
    for limit in (99, 1, 2):
        seen.append([])
        cache = EmbeddingCache(tmp_path / f"{limit}" / "embeddings" / Watched().fingerprint())
        parts = extraction.stream(folder(pictures), Watched(), range(38), batch_size=10, known=cache)
        for part in itertools.islice(parts, limit):
            by_row = {item.row: item.origin.digest for item in part.seen}
            cache.add([by_row[row] for row in part.rows], part.columns)
        cache.flush()
        seen[-1].clear()
        extraction.extract(folder(pictures), Watched(), cache=tmp_path / f"{limit}", batch_size=10)
    nothing, after_one, after_two = seen
    assert nothing == []
    assert after_one[-2:] == after_two[-2:]
    assert len(after_one) == 3
    assert len(after_two) == 2


def test_shards_are_written_after_some_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cbir_faiss.pipeline.cache.SHARD_SECONDS", 0.0)
    cache = EmbeddingCache(tmp_path)
    cache.add([b"a" * 32], {"embedding": np.ones((1, 3), np.float32)})
    assert b"a" * 32 in EmbeddingCache(tmp_path)


def test_the_cache_keeps_whole_shards_only(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.add([b"a" * 32], {"embedding": np.ones((1, 3), np.float32)})
    assert b"a" * 32 not in EmbeddingCache(tmp_path)  # not flushed, so not there after a crash
    cache.flush()
    assert b"a" * 32 in EmbeddingCache(tmp_path)
    assert EmbeddingCache(tmp_path).gather([b"a" * 32])["embedding"].tolist() == [[1, 1, 1]]
