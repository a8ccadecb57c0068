"""What storage and the search for duplicates promise, and nothing else would notice if it were not kept."""

from __future__ import annotations

import fcntl
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cbir_faiss.collection import Collection, duplicates
from cbir_faiss.config import parse_config
from cbir_faiss.errors import CbirError
from cbir_faiss.storage import changes
from cbir_faiss.storage.lock import writer_lock


def build(pictures: Path, codec: dict[str, Any], backend: dict[str, Any]) -> Collection:
    document = {
        "source": {"name": "folder", "root": str(pictures)},
        "extractors": [{"name": "hog", "size": 32}],
        "codecs": [codec],
        "backends": [backend],
    }
    return Collection.build(parse_config(document), pictures.parent / "x.cbir")


# -- near codes


def some_near(n: int, size: int, seed: int) -> Any:
    """Distinct packed codes ``(n, size)``, most of them a few bits from another."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (n, size), dtype=np.uint8)
    for row in range(n // 4, n):
        bits = np.unpackbits(codes[rng.integers(0, row)])
        bits[rng.integers(0, size * 8, rng.integers(1, 9))] ^= 1
        codes[row] = np.packbits(bits)
    return np.unique(codes, axis=0)


@pytest.mark.parametrize("at_once", [1, 5, 1 << 21])
@pytest.mark.parametrize("lookup", [1e-6, 20])  # nearly free look-ups: long parts, with bits flipped in them
@pytest.mark.parametrize(("size", "radius"), [(1, 2), (2, 1), (2, 5), (3, 4), (7, 3), (8, 3), (11, 7)])
def test_every_near_pair_is_found_however_the_work_is_cut(
    size: int, radius: int, lookup: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_LOOKUP", lookup)
    monkeypatch.setattr(duplicates, "_AT_ONCE", at_once)
    monkeypatch.setattr(duplicates, "_KEY_BITS", 20)
    codes = some_near(60, size, seed=size)
    distances = np.bitwise_count(codes[:, None] ^ codes[None]).sum(axis=2)
    expected = {(a, b) for a, b in itertools.combinations(range(len(codes)), 2) if distances[a, b] <= radius}
    blocks = [zip(a.tolist(), b.tolist(), strict=True) for a, b in duplicates.near_pairs(codes, radius)]
    assert {(min(pair), max(pair)) for block in blocks for pair in block} == expected


@pytest.mark.parametrize(
    ("bits", "radius", "n"), [(256, 8, 20_000), (32, 3, 1_000_000), (64, 7, 3_000), (64, 12, 10**8)]
)
def test_codes_are_cut_for_the_least_work(bits: int, radius: int, n: int) -> None:
    def work(lengths: list[int], flips: int) -> float:
        masks = [sum(math.comb(length, count) for count in range(flips + 1)) for length in lengths]
        return sum(many * (duplicates._LOOKUP + n / 2.0**length) for many, length in zip(masks, lengths, strict=True))

    parts, flips = duplicates._parts(bits, radius, n)
    assert flips == radius // len(parts)
    evenly = [[bits // m + (part < bits % m) for part in range(m)] for m in range(1, radius + 2)]
    best = min(work(lengths, radius // len(lengths)) for lengths in evenly if max(lengths) <= duplicates._KEY_BITS)
    assert work([stop - start for start, stop in parts], flips) <= 1.5 * best


# -- collections


def test_a_collection_searches_with_the_options_it_was_built_with(pictures: Path) -> None:
    query = [pictures / "blob" / "03.png"]
    backend = {"name": "faiss-ivf", "nlist": 6, "search": {"nprobe": 1}}  # by default it looks into all six
    with build(pictures, {"name": "raw"}, backend) as collection:
        found = collection.search(query, k=36)[0]
    assert 0 < len(found) < 36
    with Collection.open(collection.folder) as again:
        assert again.search(query, k=36)[0] == found


def test_dead_rows_are_kept_up_to_their_share(pictures: Path) -> None:
    for number in range(6):
        (pictures / "blob" / f"{number:02}.png").unlink()
    with build(pictures, {"name": "lsh", "bits": 64}, {"name": "faiss-binary-flat"}) as collection:
        assert changes.MAX_DEAD_SHARE * 30 == 6
        collection.delete(range(6))
        assert collection.info()["deleted"] == 6
        collection.delete([6])
        assert collection.info()["deleted"] == 0
        assert len(collection) == 23


def test_a_label_is_found_by_the_index_of_its_values(pictures: Path) -> None:
    with build(pictures, {"name": "lsh", "bits": 64}, {"name": "faiss-binary-flat"}) as collection:
        (segment,) = collection._store.segments
        field = None if segment.fields is None else segment.fields.get("label")
        assert field is not None
        assert dict(field.counts(None)) == {"blob": 12, "checks": 12, "stripes": 12}


def test_a_lock_of_a_folder_that_was_replaced_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "x.cbir"
    folder.mkdir()
    real = fcntl.flock

    def replaced(handle: int, how: int) -> None:
        real(handle, how)
        folder.rename(tmp_path / "aside.cbir")
        folder.mkdir()
        (folder / "LOCK").touch()

    monkeypatch.setattr("fcntl.flock", replaced)
    with pytest.raises(CbirError, match="another process"), writer_lock(folder):
        pass
