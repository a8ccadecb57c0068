"""Duplicates: every near pair is found, by few comparisons; groups, the table and the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cbir_faiss.cli import main
from cbir_faiss.collection import Collection, duplicates
from cbir_faiss.config import parse_config
from cbir_faiss.errors import InputError, Unsupported
from cbir_faiss.storage.store import Store


def random_codes(n: int, size: int, seed: int, clusters: int = 0) -> Any:
    """Packed codes, some of them a few flipped bits from others."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (n, size), dtype=np.uint8)
    for _ in range(clusters):
        a, b = rng.integers(0, n, 2)
        bits = np.unpackbits(codes[a])
        bits[rng.integers(0, size * 8, rng.integers(0, 12))] ^= 1
        codes[b] = np.packbits(bits)
    return codes


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    n=st.integers(0, 60),
    size=st.sampled_from([1, 2, 3, 8, 16, 33]),
    radius=st.integers(0, 20),
    seed=st.integers(0, 1000),
    lookup=st.sampled_from([0.05, 1, 20]),
    at_once=st.sampled_from([1, 7, 1 << 21]),
)
def test_groups_lie_around_their_first(n: int, size: int, radius: int, seed: int, lookup: float, at_once: int) -> None:
    """However a look-up is priced against a comparison, and however many pairs are compared at once."""
    codes = random_codes(n, size, seed, clusters=n // 2)
    distances = np.bitwise_count(codes[:, None] ^ codes[None]).sum(axis=2)
    groups, free = [], list(range(n))
    while free:
        near = [row for row in free if distances[free[0], row] <= radius]
        free = [row for row in free if row not in near]
        groups.append(near)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_LOOKUP", lookup)
        patch.setattr(duplicates, "_AT_ONCE", at_once)
        assert duplicates.around_firsts(codes, radius) == [group for group in groups if len(group) > 1]


def test_a_chain_is_no_group() -> None:
    """Each is near the next, but the ends are far apart."""
    chain = np.packbits(np.tri(64, 64, -1, dtype=np.uint8), axis=1)
    groups = duplicates.around_firsts(chain, 4)
    assert [len(group) for group in groups] == [5] * 12 + [4]
    assert sorted(row for group in groups for row in group) == list(range(64))


def test_a_radius_that_joins_nearly_everything_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_MOST_PAIRS", 1000)
    with pytest.raises(InputError, match="within 60 bits nearly everything is alike"):
        duplicates.around_firsts(random_codes(200, 8, 0), 60)
    assert duplicates.around_firsts(random_codes(200, 8, 0), 0) == []


def test_few_codes_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = random_codes(20_000, 32, 0, clusters=500)
    compared: list[int] = []
    real = duplicates.hamming

    def counting(a: Any, b: Any) -> Any:
        compared.append(max(len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr(duplicates, "hamming", counting)
    assert len(duplicates.around_firsts(codes, 8)) > 300
    assert sum(compared) < 20 * len(codes)


DOUBLED = {"checks/05.png", "checks/again.jpg"}


@pytest.fixture
def doubled(pictures: Path, tmp_path: Path) -> Path:
    """A collection with a copy of one picture and a re-encoded version of another."""
    shutil.copy(pictures / "blob" / "03.png", pictures / "stripes" / "copy.png")
    with Image.open(pictures / "checks" / "05.png") as image:
        image.save(pictures / "checks" / "again.jpg", quality=95)
    return tmp_path


def build(place: Path, codec: dict[str, Any], backend: str) -> Store:
    document = {
        "source": {"name": "folder", "root": str(place / "pictures")},
        "extractors": [{"name": "hog", "size": 32}],
        "codecs": [codec],
        "backends": [{"name": backend}],
    }
    Collection.build(parse_config(document), place / "x.cbir").close()
    return Store.open(place / "x.cbir")


def test_copies_and_near_copies_of_pictures(doubled: Path) -> None:
    with build(doubled, {"name": "lsh", "bits": 256}, "faiss-binary-flat") as store:
        found = duplicates.find_duplicates(store)
        assert [[one.path for one in group] for group in found.copies] == [["blob/03.png", "stripes/copy.png"]]
        assert all(one.same and one.distance == 0 for group in found.copies for one in group)
        near = [[one.path for one in group] for group in found.alike]
        assert ["checks/05.png", "checks/again.jpg"] in [sorted(set(group) & DOUBLED) for group in near]
        assert "stripes/copy.png" not in [path for group in near for path in group]
        assert all(one.distance <= 8 and not one.same for group in found.alike for one in group)
        assert len({one.id for group in found.alike for one in group}) == sum(map(len, found.alike))
        equal = duplicates.find_duplicates(store, 0)
        assert equal.copies == found.copies
        assert {one.distance for group in equal.alike for one in group} <= {0}
        with pytest.raises(InputError, match="number of bits, not -1"):
            duplicates.find_duplicates(store, -1)


def test_floats_have_only_equal_content(doubled: Path) -> None:
    with build(doubled, {"name": "raw"}, "faiss-flat") as store:
        (only,) = duplicates.find_duplicates(store).groups
        assert [one.path for one in only] == ["blob/03.png", "stripes/copy.png"]
        with pytest.raises(Unsupported, match="--radius is for binary codes"):
            duplicates.find_duplicates(store, 3)


def test_deleted_items_are_no_duplicates(doubled: Path) -> None:
    build(doubled, {"name": "lsh", "bits": 256}, "faiss-binary-flat").close()
    with Collection.open(doubled / "x.cbir") as collection:
        collection.delete(where='label = "checks"')
        collection.delete(where='path = "stripes/copy.png"')
    with Store.open(doubled / "x.cbir") as store:
        left = {one.path for group in duplicates.find_duplicates(store, 0).groups for one in group}
        assert "stripes/copy.png" not in left
        assert not any(path.startswith("checks") for path in left)
        assert store.same_content() == []


def test_the_table_and_the_page(doubled: Path) -> None:
    build(doubled, {"name": "lsh", "bits": 256}, "faiss-binary-flat").close()
    folder, page = str(doubled / "x.cbir"), doubled / "page.html"
    result = CliRunner().invoke(main, ["duplicates", folder, "--radius", "0", "--html", str(page)])
    assert result.exit_code == 0, result.output
    assert "stripes/copy.png" in result.stdout
    assert "same bytes" in result.stdout
    assert "copies: 1 groups of 2 items" in result.stdout
    assert "look-alikes: " in result.stdout
    text = page.read_text(encoding="utf-8")
    listed = json.loads(CliRunner().invoke(main, ["duplicates", folder, "--radius", "0", "--json"]).stdout)
    assert text.index("Copies") < text.index("stripes/copy.png") < text.index("<h2>Look-alikes")
    assert listed[0][1]["path"] == "stripes/copy.png"
    assert text.count("data:image/jpeg;base64,") == sum(map(len, listed))
    assert "http" not in text.replace("http-equiv", "")
    assert {"id", "path", "label", "distance", "same"} == set(listed[0][0])
