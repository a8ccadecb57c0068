"""Manifests, catalogues and locks: what they accept, what they refuse, and that a commit is all or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbir_faiss._lib.files import write_durably
from cbir_faiss.base import Item
from cbir_faiss.base.filters import parse_where
from cbir_faiss.errors import CbirError, CorruptCollection
from cbir_faiss.storage import manifest as manifests
from cbir_faiss.storage.catalogue import Catalogue, Record, document, write_catalogue
from cbir_faiss.storage.lock import writer_lock

scalars = (
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["cat", "dog", "", 'q"uote', "ünï"]) | st.just(2.5)
)
documents = st.dictionaries(st.sampled_from(["a", "b", 'k"ey']), scalars | st.lists(scalars, max_size=3), max_size=3)
leaves = st.one_of(
    st.tuples(st.sampled_from(["a", "b", 'k"ey', "none"]), scalars).map(lambda t: {t[0]: t[1]}),
    st.tuples(st.sampled_from(["a", "b"]), st.lists(scalars, max_size=3)).map(lambda t: {t[0]: {"in": t[1]}}),
    st.tuples(
        st.sampled_from(["a", "b"]), st.sampled_from(["gt", "gte", "lt", "lte"]), st.sampled_from([0, 2.5, "cat"])
    ).map(lambda t: {t[0]: {t[1]: t[2]}}),
)
filters = st.recursive(
    leaves,
    lambda inner: st.one_of(
        inner.map(lambda f: {"not": f}),
        st.lists(inner, min_size=1, max_size=2).map(lambda fs: {"and": fs}),
        st.lists(inner, min_size=1, max_size=2).map(lambda fs: {"or": fs}),
    ),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.lists(documents, min_size=1, max_size=6), where=filters)
def test_filters_in_sql_match_what_they_match_in_python(
    rows: list[dict[str, Any]], where: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("catalogue") / "items.sqlite"
    write_catalogue(path, enumerate(map(Record, rows)))
    catalogue = Catalogue(path)
    tree = parse_where(where)
    assert catalogue.select(tree).tolist() == [i for i, row in enumerate(rows) if tree.matches(row)]
    catalogue.close()


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    rows = [(i, Record({"path": f"{i}.jpg", "label": "x", "n": i}, (i, i))) for i in range(3000)]
    write_catalogue(tmp_path / "a", rows)
    write_catalogue(tmp_path / "b", iter(rows))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_catalogue_gives_back_what_was_written(tmp_path: Path) -> None:
    items = [Item("ä/1.jpg", ("cat",), {"year": 1990}), Item("b.jpg", ("cat", "dog")), Item("c.jpg")]
    records = [Record(document(item), (7, 8 * i) if i else None, b"same", bool(i)) for i, item in enumerate(items)]
    write_catalogue(tmp_path / "items", enumerate(records, 10))
    catalogue = Catalogue(tmp_path / "items")
    assert catalogue.documents([12, 10, 99]) == {
        10: {"path": "ä/1.jpg", "label": "cat", "year": 1990},
        12: {"path": "c.jpg"},
    }
    assert catalogue.records_of(["b.jpg", "nothing"]) == [(11, records[1])]
    assert list(catalogue.records(11)) == [(11, records[1]), (12, records[2])]
    assert list(catalogue.digests()) == [(10, b"same"), (11, b"same"), (12, b"same")]
    assert catalogue.labels() == {"cat": 2, "dog": 1}
    catalogue.close()


def entry(name: str) -> manifests.PluginEntry:
    return manifests.PluginEntry(name=name, options={})


def committed(folder: Path, **changed: Any) -> manifests.Manifest:
    (folder / "data.bin").write_bytes(b"12345")
    values: dict[str, Any] = {
        "config": {},
        "extractor": None,
        "codec": entry("raw"),
        "backend": entry("faiss-flat"),
        "rescore": entry("none"),
        "embedding": "embedding",
        "dim": 4,
        "bits": None,
        "width": 4,
        "kind": "float",
        "metric": "l2",
        "trained": False,
        "next_id": 0,
        "segments": (),
        "files": manifests.describe_files(folder, ["data.bin"]),
    }
    manifest = manifests.Manifest(**{**values, **changed})
    manifests.commit(folder, manifest)
    return manifest


def test_a_committed_manifest_is_read_back(tmp_path: Path) -> None:
    manifest = committed(tmp_path)
    assert manifests.read_manifest(tmp_path) == manifest
    manifests.check_sizes(tmp_path, manifest)
    assert manifests.damaged_files(tmp_path, manifest) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_damage_to_a_file_is_found_and_named(tmp_path: Path, damage: str) -> None:
    manifest = committed(tmp_path)
    if damage == "gone":
        (tmp_path / "data.bin").unlink()
    else:
        (tmp_path / "data.bin").write_bytes(b"12344" if damage == "flip" else b"123")
    assert [name for name, _ in manifests.damaged_files(tmp_path, manifest)] == ["data.bin"]
    if damage != "flip":
        with pytest.raises(CorruptCollection, match=r"data\.bin"):
            manifests.check_sizes(tmp_path, manifest)


def test_any_flipped_byte_of_current_or_manifest_is_refused(tmp_path: Path) -> None:
    committed(tmp_path)
    for name in ("CURRENT", "manifest-1.json"):
        good = (tmp_path / name).read_bytes()
        for at in range(0, len(good), 7):
            (tmp_path / name).write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            with pytest.raises(CorruptCollection):
                manifests.read_manifest(tmp_path)
        (tmp_path / name).write_bytes(good)


def test_another_format_is_refused_with_both_versions(tmp_path: Path) -> None:
    committed(tmp_path, format=7)
    with pytest.raises(CorruptCollection, match="format 7, this version reads format 1"):
        manifests.read_manifest(tmp_path)


def test_a_folder_that_is_no_collection(tmp_path: Path) -> None:
    with pytest.raises(CorruptCollection, match="not a collection"):
        manifests.read_manifest(tmp_path)


def test_a_writer_excludes_another(tmp_path: Path) -> None:
    with writer_lock(tmp_path), pytest.raises(CbirError, match="another process is writing"), writer_lock(tmp_path):
        pass
    with writer_lock(tmp_path):
        pass


def test_writing_durably_replaces_at_once(tmp_path: Path) -> None:
    write_durably(tmp_path / "x.json", json.dumps(1).encode())
    write_durably(tmp_path / "x.json", json.dumps(2).encode())
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
    assert (tmp_path / "x.json").read_text() == "2"
