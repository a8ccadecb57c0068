"""Manifests, catalogues and locks: what they accept, what they refuse, and that a commit is all or nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cbir_faiss._lib.files import write_durably
from cbir_faiss.base import Item
from cbir_faiss.base.filters import parse_where
from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config
from cbir_faiss.errors import CbirError, CorruptCollection
from cbir_faiss.storage import fields, tiers
from cbir_faiss.storage import manifest as manifests
from cbir_faiss.storage.catalogue import Catalogue, Record, document, write_catalogue
from cbir_faiss.storage.changes import NO_IDS
from cbir_faiss.storage.lock import writer_lock
from cbir_faiss.storage.segment import Block, Segment, write_segment
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Hits

BIG = 2**70
numbers = st.sampled_from([0, 1, 1.0, -5, 2.5, -0.0, 2**53, 2**53 + 1, float(2**53), BIG, float(BIG), -BIG, 1e300])
texts = st.sampled_from(["cat", "dog", "", 'q"uote', "ünï", "\ud83d", "\U0001f600", "\uffff", "1", "1.0", "null"])
scalars = st.none() | st.booleans() | numbers | texts
keys = st.sampled_from(["a", "b", 'k"ey', "label"])
values = scalars | st.lists(scalars | st.just({"in": 1}) | st.just([1]), max_size=3) | st.just({"x": "cat"})
paths = st.sampled_from(["", "a/1.jpg", "a/2.jpg", "\udcff.jpg", "\U0001f600.jpg", "z"])
documents = st.builds(lambda payload, path: {**payload, "path": path}, st.dictionaries(keys, values, max_size=3), paths)
asked = keys | st.just("none")
signs = st.sampled_from(["gt", "gte", "lt", "lte"])
leaves = st.one_of(
    st.builds(lambda key, value: {key: value}, asked, scalars),
    st.builds(lambda key, some: {key: {"in": some}}, asked, st.lists(scalars, max_size=3)),
    st.builds(lambda key, sign, bound: {key: {sign: bound}}, asked, signs, numbers | texts),
    st.builds(lambda key, low, high: {key: {"gte": low, "lt": high}}, asked, numbers | texts, numbers | texts),
    st.builds(lambda some: {"path": {"in": some}}, st.lists(paths | scalars, max_size=3)),
    st.builds(lambda sign, bound: {"path": {sign: bound}}, signs, paths | numbers),
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


def segment_of(folder: Path, rows: list[dict[str, Any]]) -> Segment:
    """Items 10, 11, … with these documents, and no index."""
    ids = np.arange(10, 10 + len(rows))
    block = Block(ids, np.zeros((len(rows), 1), np.uint8), {}, [Record(row) for row in rows])
    write_segment(folder, [block])
    return opened(folder, len(rows))


def opened(folder: Path, rows: int) -> Segment:
    return Segment(folder, manifests.SegmentEntry(name=folder.name, rows=rows, live_rows=rows), lambda: None)  # type: ignore[arg-type,return-value]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(rows=st.lists(documents, min_size=1, max_size=6), where=filters, most=st.sampled_from([1, 2, 1 << 15]))
def test_a_segment_finds_what_a_filter_matches_in_python(
    rows: list[dict[str, Any]], where: dict[str, Any], most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With its index, of all keys or of those with few values, and without one, as earlier versions wrote it."""
    place = tmp_path_factory.mktemp("segment")
    tree = parse_where(where)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields.FieldCollector.__init__, "__defaults__", (most,))
        segment = segment_of(place / "new", rows)
    for path in shutil.copytree(place / "new", place / "old").glob("field*"):
        path.unlink()
    for one in (segment, opened(place / "old", len(rows))):
        assert one.live_ids_of(tree).tolist() == [10 + i for i, row in enumerate(rows) if tree.matches(row)]
        assert one.documents_of(one.ids, np.arange(len(rows))) == rows
        one.close()


def test_the_ids_of_a_filter_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = segment_of(tmp_path / "x", [{"path": "", "a": 1}, {"path": "", "a": True}, {"path": "", "a": 1.0}])
    one, true = parse_where({"a": 1}), parse_where({"a": True})
    assert one == true  # for Python, but no row is kept for the other's filter
    first = segment.live_ids_of(one)
    assert first.tolist() == [10, 12]
    assert segment.live_ids_of(true).tolist() == [11]
    assert segment.live_ids_of(one) is first
    assert segment.live_ids_of(parse_where({"a": 1})) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0
    monkeypatch.setattr("cbir_faiss.storage.segment._FILTERED_BYTES", 24)
    segment.live_ids_of(parse_where("a in (1, true)"))
    assert segment.live_ids_of(one) is not first


def test_a_field_counts_its_values(tmp_path: Path) -> None:
    labels: list[Any] = ["cat", ["cat", "dog", "cat"], None, 3, "dog", {"no": 1}]
    segment = segment_of(tmp_path / "x", [{"path": "", "label": label} for label in labels])
    counts = {None: 1, 3: 1, "cat": 2, "dog": 2}
    assert dict(segment.field("label").counts(None)) == counts
    live = np.array([True, False, True, True, True, True])
    assert dict(segment.field("label").counts(live)) == counts | {"cat": 1, "dog": 1}
    assert dict(segment.field("nothing").counts(None)) == {}


def test_values_that_tell_items_apart_are_not_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields.FieldCollector.__init__, "__defaults__", (10,))
    rows = [{"path": f"{i}", "url": f"http://{i}", "label": f"{i % 10}", "many": [1, 2, i]} for i in range(100)]
    segment = segment_of(tmp_path / "x", rows)
    assert segment.fields is not None
    assert segment.fields.get("url") is None
    assert segment.fields.get("many") is None
    known = segment.fields.get("label")
    assert known is not None
    assert len(known.values) == 10
    assert segment.live_ids_of(parse_where('url = "http://77"')).tolist() == [87]


def test_equal_documents_give_equal_files(tmp_path: Path) -> None:
    rows = [{"path": f"{i}", "b": [i % 3, "x"], "a": i % 7} for i in range(50)]
    one, other = segment_of(tmp_path / "1", rows).folder, segment_of(tmp_path / "2", rows).folder
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in other.iterdir()}


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
    catalogue.close()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.integers(1, 4), st.integers(1, 5000)), max_size=120))
def test_segments_stay_few_and_items_are_rewritten_seldom(adds: list[int]) -> None:
    """Whatever is added in whatever order: of n items each is written once a tier, and no tier is ever full."""
    segments: list[tuple[int, int]] = []  # rows, and how often the most rewritten of them was written
    for rows in adds:
        after = [*segments, (rows, 0)]
        runs = tiers.runs_of([size for size, _ in after])
        assert [start for start, _ in runs] == [0, *(stop for _, stop in runs[:-1])]
        assert runs[-1][1] == len(after)
        parts = [after[start:stop] for start, stop in runs]
        segments = [
            part[0] if len(part) == 1 and part[0][1] else (sum(n for n, _ in part), 1 + max(w for _, w in part))
            for part in parts
        ]
        levels = [tiers.tier_of(size) for size, _ in segments]
        assert levels == sorted(levels, reverse=True)
        assert all(levels.count(level) < tiers.TIER for level in levels)
        assert all(written <= 1 + level for (_, written), level in zip(segments, levels, strict=True))


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


@pytest.mark.parametrize("ahead", [1, 30])
def test_an_engine_that_is_ahead_gives_what_this_generation_holds(ahead: int) -> None:
    """Items of a later generation are left out, and the next are asked for until there are no more."""
    held = np.array([ahead, ahead + 1])
    count = ahead + 2

    def search(codes: Any, k: int, where: Any, options: Any) -> Hits:
        ids = np.full((len(codes), k), -1, np.int64)
        ids[:, : min(k, count)] = np.arange(min(k, count))
        return Hits(ids, np.where(ids < 0, np.inf, ids).astype(np.float32))

    store: Any = SimpleNamespace(holds=lambda ids: np.isin(ids, held))
    engine: Any = SimpleNamespace(search=search, count=lambda: count)
    hits = Store._search_engine(store, engine, np.zeros((2, 1), np.uint8), 3, None, None)
    assert hits.ids.tolist() == [[ahead, ahead + 1, -1]] * 2
    assert hits.distances.tolist() == [[ahead, ahead + 1, np.inf]] * 2


def test_nothing_is_deleted_unless_it_is_named() -> None:
    assert NO_IDS.shape == (0,)


@pytest.mark.parametrize(("rescore", "shared"), [("float32", True), ("float16", False), ("int8", False)])
def test_floats_that_are_the_codes_are_stored_once(rescore: str, shared: bool, tmp_path: Path) -> None:
    """What an index is made of and what ranks its candidates again is one file by two names, in every segment and after
    a merge; where a copy has made two of it, nothing changes."""
    x = np.random.default_rng(0).standard_normal((60, 16), dtype=np.float32)
    np.save(tmp_path / "x.npy", x[:40])
    config = {
        "source": {"name": "vectors", "file": str(tmp_path / "x.npy")},
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss-hnsw"}],
        "rescore": [{"name": "float", "store": rescore, "candidates": 10}],
    }
    folder = tmp_path / "x.cbir"
    with Collection.build(parse_config(config), folder) as collection:
        collection.add_vectors(x[40:])
        collection.delete(range(0, 30))
        segments = [folder / "segments" / entry.name for entry in collection.manifest.segments]
        for segment in segments:
            assert (segment / "codes.npy").samefile(segment / "column-embedding.npy") == shared
        told = {name: size for name, size in collection.info()["bytes"].items() if "column-embedding" in name}
        assert len(told) == len(segments)
        assert all((size == 0) == shared for size in told.values())
        hits = collection.search_hits(x[30:], 3)
        assert hits.ids[:, 0].tolist() == list(range(30, 60))
        assert collection.verify() == []
    shutil.copytree(folder, tmp_path / "copy.cbir")
    with Collection.open(tmp_path / "copy.cbir") as copy:
        np.testing.assert_array_equal(copy.search_hits(x[30:], 3).ids, hits.ids)
        assert copy.verify() == []


def test_a_column_that_differs_from_the_codes_in_one_block_keeps_a_file_of_its_own(tmp_path: Path) -> None:
    def block(first: int, code: float, kept: float) -> Block:
        ids = np.arange(first, first + 2)
        codes, column = np.full((2, 3), code, np.float32), np.full((2, 3), kept, np.float32)
        return Block(ids, codes, {"embedding": column}, [Record({}) for _ in ids])

    write_segment(tmp_path / "s", [block(0, 1, 1), block(2, 1, 2)])
    assert np.load(tmp_path / "s" / "column-embedding.npy")[:, 0].tolist() == [1, 1, 2, 2]
    assert np.load(tmp_path / "s" / "codes.npy")[:, 0].tolist() == [1, 1, 1, 1]
