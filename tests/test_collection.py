"""A built collection: every way to ask it, what it refuses, changes to it, and readers while it changes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cbir_faiss.base.registry import make
from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config
from cbir_faiss.errors import BadImage, CbirError, CorruptCollection, DimensionMismatch, InputError, UnknownId
from cbir_faiss.images.reading import open_image
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.pipeline.extraction import extract
from cbir_faiss.storage import changes, manifest
from cbir_faiss.storage.lock import writer_lock

Build = Callable[..., Collection]
COMBINATIONS = [
    ({"name": "raw"}, {"name": "faiss-flat", "metric": "cosine"}, {"name": "none"}),
    ({"name": "raw"}, {"name": "faiss-flat"}, {"name": "float", "candidates": 20}),
    ({"name": "lsh", "bits": 128}, {"name": "faiss-binary-flat"}, {"name": "float", "store": "int8"}),
    ({"name": "lsh", "bits": 128}, {"name": "faiss-binary-flat"}, {"name": "asymmetric"}),
    ({"name": "itq", "bits": 24}, {"name": "faiss-binary-flat"}, {"name": "none"}),
    ({"name": "itq", "bits": 24}, {"name": "faiss-binary-flat"}, {"name": "float", "candidates": "all"}),
    ({"name": "raw"}, {"name": "faiss-lsh", "bits": 256}, {"name": "none"}),
    ({"name": "raw"}, {"name": "faiss", "factory": "IVF4,SQ8"}, {"name": "none"}),
]
PLAIN = ({"name": "lsh", "bits": 128}, {"name": "faiss-binary-flat"}, {"name": "none"})


@pytest.fixture
def build(pictures: Path, tmp_path: Path) -> Build:
    """Builds a collection of the pictures (or other source) with HOG."""

    def run(combination: Any = PLAIN, out: str = "x.cbir", **sections: Any) -> Collection:
        codec, backend, rescore = combination
        source = {"name": "folder", "root": str(pictures)}
        hog = {"name": "hog", "size": 32}
        document = {
            "source": source,
            "extractors": [hog],
            "codecs": [codec],
            "backends": [backend],
            "rescore": [rescore],
            **sections,
        }
        return Collection.build(parse_config(document), tmp_path / out)

    return run


def paths(found: list[Any]) -> list[str]:
    return [match.path for match in found]


# -- search


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(part["name"] for part in c))
def test_a_picture_finds_itself_first(build: Build, pictures: Path, combination: Any) -> None:
    collection = build(combination)
    files = [pictures / "blob" / "03.png", pictures / "checks" / "07.png"]
    with Image.open(files[0]) as picture:
        for queries in (files, [str(file) for file in files], [picture, files[1]]):
            found = collection.search(queries, k=4)
            assert [paths(hits)[0] for hits in found] == ["blob/03.png", "checks/07.png"]
            assert all(len(hits) == 4 for hits in found)
    assert [hit.label for hit in found[0]][:2] == ["blob", "blob"]
    for hits in found:
        distances = [hit.distance for hit in hits]
        assert distances == sorted(distances)
    assert collection.verify() == []


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(part["name"] for part in c))
def test_ids_and_vectors_find_what_pictures_find(build: Build, pictures: Path, combination: Any) -> None:
    collection = build(combination)
    source = make("sources", "folder", root=str(pictures))
    x = extract(source, make("extractors", "hog", size=32), cache=None).columns["embedding"]
    by_vector = collection.search(x[[3, 17]], k=6)
    assert [paths(hits) for hits in by_vector] == [paths(hits) for hits in collection.search(list(x[[3, 17]]), k=6)]
    by_picture = collection.search([pictures / source.items()[row].path for row in (3, 17)], k=6)
    assert [paths(hits) for hits in by_vector] == [paths(hits) for hits in by_picture]
    by_id = collection.search_ids([3, 17], k=5)
    assert all(len(hits) == 5 for hits in by_id)
    assert 3 not in [hit.id for hit in by_id[0]]
    if combination[2]["name"] != "asymmetric":  # of a stored item only the signs of the projection are known
        expected = [sorted(round(hit.distance, 2) for hit in hits[1:]) for hits in by_vector]
        met = [sorted(round(hit.distance, 2) for hit in hits) for hits in by_id]
        np.testing.assert_allclose(met, expected, atol=0.02)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(part["name"] for part in c))
def test_filters_and_k_beyond_the_collection(build: Build, pictures: Path, combination: Any) -> None:
    collection = build(combination)
    query = [pictures / "blob" / "03.png"]
    assert len(collection.search(query, k=1000)[0]) == 36 or combination[1].get("factory")
    for where in ({"label": "checks"}, 'label = "checks"', 'label != "blob" and not path in ("stripes/01.png")'):
        found = collection.search(query, k=1000, where=where)[0]
        assert "blob" not in {hit.label for hit in found}
        assert 12 <= len(found) <= 24 or combination[1].get("factory")
    assert collection.search(query, where={"label": "nothing"}) == [[]]
    assert "checks" in {hit.label for hit in collection.search_ids([0], where={"label": "checks"})[0]}


def test_payload_comes_back_with_a_match(build: Build, pictures: Path) -> None:
    (pictures / "list.csv").write_text("path,label,year\nblob/00.png,blob,1990\nchecks/00.png,checks,2001\n")
    collection = build(source={"name": "list", "file": str(pictures / "list.csv")}, codecs=[{"name": "lsh", "bits": 8}])
    (found,) = collection.search([pictures / "blob" / "00.png"], where="year < 2000")
    assert [(hit.path, hit.payload) for hit in found] == [("blob/00.png", {"year": 1990})]
    assert collection.documents([1]) == [{"path": "checks/00.png", "label": "checks", "year": 2001}]


def test_what_a_search_refuses(build: Build, pictures: Path, tmp_path: Path) -> None:
    collection = build()
    (tmp_path / "text.png").write_text("hello")
    good = [pictures / "blob" / "03.png"]
    cases: list[tuple[type[CbirError], str, Callable[[], Any]]] = [
        (BadImage, "not an image", lambda: collection.search([tmp_path / "text.png"])),
        (BadImage, "no such file", lambda: collection.search([tmp_path / "none.png"])),
        (InputError, "at least one", lambda: collection.search([])),
        (InputError, "list of paths", lambda: collection.search(str(good[0]))),
        (InputError, "k must be at least 1", lambda: collection.search(good, k=0)),
        (InputError, "filter", lambda: collection.search(good, where="label ==")),
        (InputError, "NaN", lambda: collection.search(np.full((1, 324), np.nan, np.float32))),
        (DimensionMismatch, "324 dimensions, got 3", lambda: collection.search(np.ones((1, 3), np.float32))),
        (UnknownId, "no item with id 99", lambda: collection.search_ids([1, 99])),
        (UnknownId, "no item with id 36", lambda: collection.documents([36])),
    ]
    for error, message, act in cases:
        with pytest.raises(error, match=message):
            act()


def test_hits_are_the_matches_without_documents(
    build: Build, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = build(COMBINATIONS[2])
    files = sorted((pictures / "blob").iterdir())[:3]
    found = collection.search(files, k=4, where='label != "checks"')
    monkeypatch.setattr("cbir_faiss.storage.store.Store.documents", None)  # not even asked
    hits = collection.search_hits(files, k=4, where='label != "checks"')
    assert hits.ids.tolist() == [[match.id for match in some] for some in found]
    assert hits.distances.tolist() == [[match.distance for match in some] for some in found]


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(part["name"] for part in c))
def test_many_threads_find_what_one_finds(build: Build, pictures: Path, combination: Any) -> None:
    collection = build(combination)
    files = sorted(pictures.rglob("*.png"))[:12]
    vectors = np.concatenate([collection.extractor([open_image(file)])["embedding"] for file in files])
    alone = [collection.search(vector[None], 5) for vector in vectors]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda i: collection.search(vectors[i % 12][None], 5), range(96)))
    assert together == [alone[i % 12] for i in range(96)]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("17", "whole numbers, not '17'"),
        ([1.9], "1-d array of integers, got float64"),
        (["1"], "1-d array of integers"),
        ([True], "1-d array of integers, got bool"),
        (1, "whole numbers, not 1"),
        ([-1], "not negative"),
        (np.array([[1]]), "1-d array"),
    ],
)
def test_ids_that_are_no_whole_numbers_are_refused(build: Build, ids: Any, message: str) -> None:
    collection = build()
    for ask in (collection.delete, collection.search_ids, collection.documents):
        with pytest.raises(InputError, match=message):
            ask(ids)
    assert len(collection) == 36


def test_a_collection_of_vectors(build: Build, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    source = {"name": "vectors", "file": str(tmp_path / "x.npy")}
    collection = build(COMBINATIONS[2], source=source, extractors=[{"name": "vectors"}])
    assert collection.report is not None
    assert (collection.report.items, collection.report.images_per_second) == (50, 0)
    assert paths(collection.search(x[7:8])[0])[0] == "000000007"
    assert len(collection.search_ids([7])[0]) == 5
    with pytest.raises(InputError, match="holds vectors"):
        collection.search([tmp_path / "x.png"])
    with pytest.raises(InputError, match="holds vectors"):
        collection.add([tmp_path])
    added = collection.add_vectors(x[:2] + 0.01, [{"path": "new", "label": "a", "year": 3}, {}])
    assert added.tolist() == [50, 51]
    assert collection.search(x[:1] + 0.01, k=1)[0][0].payload == {"year": 3}
    with pytest.raises(DimensionMismatch):
        collection.add_vectors(np.ones((1, 9), np.float32))
    with pytest.raises(InputError, match="1 documents for 2 vectors"):
        collection.add_vectors(x[:2], [{}])
    with pytest.raises(InputError, match="path is a text"):
        collection.add_vectors(x[:1], [{"path": 3}])


# -- what is not a collection


def test_what_is_no_collection_or_of_another_version(build: Build, tmp_path: Path) -> None:
    with pytest.raises(CorruptCollection, match="not a collection"):
        Collection.open(tmp_path)
    collection = build()
    later = collection.manifest.model_copy(update={"format": 7, "generation": 2})
    manifest.commit(collection.folder, later)
    with pytest.raises(CorruptCollection, match="format 7, this version reads format 1"):
        Collection.open(collection.folder)


def test_files_cut_or_gone_are_named_when_it_is_opened(build: Build) -> None:
    folder = build().folder
    for path in sorted(p for p in (folder / "segments").rglob("*") if p.is_file()):
        content = path.read_bytes()
        for damage in (lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-1])):
            if content:
                damage(path)
                with pytest.raises(CorruptCollection, match=path.name):
                    Collection.open(folder)
                path.write_bytes(content)
    assert Collection.open(folder).verify() == []


def test_every_flipped_byte_is_found_and_its_file_named(build: Build, pictures: Path) -> None:
    (pictures / "blob" / "bad.png").write_bytes(b"")
    collection = build(COMBINATIONS[2])
    collection.delete([5])
    folder, rng = collection.folder, np.random.default_rng(0)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.stat().st_size}
    assert {"CURRENT", "manifest-1.json", "manifest-2.json", "seen-1.json", "segments/1/live-2.npy"} <= names
    for name in sorted(names):
        content = (folder / name).read_bytes()
        for at in {0, len(content) - 1, *rng.integers(0, len(content), 6).tolist()}:
            (folder / name).write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.integers(8)]) + content[at + 1 :])
            try:
                damaged = [found for found, _ in manifest.damaged_files(folder, manifest.read_manifest(folder))]
            except CorruptCollection as error:
                damaged = [file for file in ("CURRENT", "manifest-2.json") if file in str(error)]
            assert name in damaged or (name == "CURRENT" and damaged), f"byte {at} of {name}"
        (folder / name).write_bytes(content)


# -- change


def test_added_files_are_found_and_deleted_ones_are_not(build: Build, pictures: Path, tmp_path: Path) -> None:
    collection = build(COMBINATIONS[2])
    elsewhere = tmp_path / "more" / "cats"
    elsewhere.mkdir(parents=True)
    for name in ("blob/03.png", "checks/01.png"):
        with Image.open(pictures / name) as image:
            image.rotate(90).save(elsewhere / Path(name).name)
    shutil.copy(elsewhere / "03.png", pictures / "blob" / "turned.png")
    (tmp_path / "more" / "broken.png").write_bytes(b"no")
    done = collection.add([tmp_path / "more", pictures / "blob" / "turned.png"])
    assert (done.added, done.replaced, done.unchanged) == (3, 0, 0)
    assert [failure.path for failure in done.failed] == [str(tmp_path / "more" / "broken.png")]
    (found,) = collection.search([elsewhere / "01.png"], k=1)
    assert (found[0].path, found[0].label) == (str(elsewhere / "01.png"), "cats")
    names = {hit.path: hit.label for hit in collection.search([elsewhere / "03.png"], k=2)[0]}
    assert names == {str(elsewhere / "03.png"): "cats", "blob/turned.png": "blob"}
    again = collection.add([tmp_path / "more" / "cats"])
    assert (again.added, again.replaced, again.unchanged) == (0, 0, 2)
    gone = [match.id for match in collection.search([elsewhere / "03.png"], k=2)[0]]
    assert collection.delete(gone) == 2
    assert len(collection) == 37
    assert not set(gone) & {hit.id for hit in collection.search([elsewhere / "03.png"], k=99)[0]}
    assert collection.delete(where='label = "checks"') == 12
    assert collection.info()["labels"] == {"blob": 12, "stripes": 12, "cats": 1}
    assert collection.verify() == []
    with Collection.open(collection.folder) as reopened:
        assert len(reopened) == 25


def test_changed_files_are_replaced_under_new_ids(build: Build, pictures: Path) -> None:
    collection = build()
    file = pictures / "blob" / "03.png"
    (old,) = (hit.id for hit in collection.search([file], k=1)[0])
    with Image.open(file) as image:
        image.rotate(90).save(file)
    done = collection.add([file])
    assert (done.added, done.replaced) == (1, 1)
    (found,) = collection.search([file], k=1)
    assert (found[0].path, found[0].id, found[0].distance) == ("blob/03.png", 36, 0)
    with pytest.raises(UnknownId):
        collection.documents([old])
    file.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"nothing was added; blob/03\.png: not an image"):
        collection.add([file])
    assert collection.documents([36])


def test_ids_are_never_used_again(build: Build, pictures: Path) -> None:
    collection = build()
    collection.delete([34, 35])
    collection.add([pictures / "stripes" / "10.png", pictures / "stripes" / "11.png"])
    assert {hit.id for hit in collection.search([pictures / "stripes" / "11.png"], k=99)[0]} == {*range(34), 36, 37}


def test_what_a_change_refuses(build: Build, tmp_path: Path) -> None:
    collection = build()
    before = collection.manifest
    with pytest.raises(InputError, match="no such file or folder"):
        collection.add([tmp_path / "none"])
    with pytest.raises(UnknownId, match="no item with id 77"):
        collection.delete([1, 77])
    with writer_lock(collection.folder), pytest.raises(CbirError, match="another process is writing"):
        collection.delete([1])
    assert collection.delete(where={"label": "nothing"}) == 0
    assert manifest.read_manifest(collection.folder) == before


def test_everything_can_be_deleted_and_something_added_again(build: Build, pictures: Path) -> None:
    collection = build(COMBINATIONS[2])
    assert collection.delete(range(36)) == 36
    assert collection.search([pictures / "blob" / "03.png"]) == [[]]
    with Collection.open(collection.folder) as empty:
        assert (len(empty), empty.info()["segments"]) == (0, 0)
    collection.add([pictures / "blob"])
    assert {hit.id for hit in collection.search([pictures / "blob" / "03.png"], k=99)[0]} == set(range(36, 48))


@pytest.mark.parametrize("combination", [COMBINATIONS[2], COMBINATIONS[7]], ids=["lsh", "ivf"])
def test_many_changes_give_what_one_build_gives(build: Build, pictures: Path, combination: Any) -> None:
    """Whatever is added and deleted in between, and however often segments are merged."""
    names = sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*.png"))
    aside = pictures.parent / "aside"
    for name in names[24:]:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        (pictures / name).rename(aside / name)
    collection = build(combination)
    rng = np.random.default_rng(1)
    there, most = set(range(24)), 0
    for name in names[24:]:
        (aside / name).rename(pictures / name)
        collection.add([pictures / name])
        there.add(max(there) + 1)
        most = max(most, len(collection.manifest.segments))
        victim = int(rng.choice(sorted(there)))
        collection.delete([victim])
        there.remove(victim)
        dead = collection.info()["deleted"]
        assert dead <= changes.MAX_DEAD_SHARE * (dead + len(there))
    assert most <= changes.MAX_SEGMENTS
    assert most > 1 or combination[1]["name"] == "faiss"
    found = collection.search([pictures / "blob" / "03.png", pictures / "stripes" / "11.png"], k=99)
    assert all({hit.id for hit in hits} <= there for hits in found)
    if combination[1]["name"] != "faiss":  # which looks into some lists only
        assert all({hit.id for hit in hits} == there for hits in found)
    labels = collection.info()["labels"]
    assert sum(labels.values()) == len(there)
    assert collection.verify() == []


def test_a_reader_keeps_its_generation(build: Build, pictures: Path) -> None:
    collection = build(COMBINATIONS[2])
    reader = Collection.open(collection.folder)
    query = [pictures / "blob" / "03.png"]
    before = reader.search(query, k=36)
    for item in range(0, 30, 3):  # many generations, merged more than once
        collection.delete([item])
    assert len(Collection.open(collection.folder)) == 26
    assert reader.search(query, k=36) == before
    assert reader.search(query, k=2, where={"label": "checks"})
    assert reader.search_ids([0], k=1)
    assert reader.documents(range(36))


def test_opening_goes_on_to_the_next_generation(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files vanish between reading the manifest and opening them, as they do beside a fast writer."""
    collection = build()
    writer = Collection.open(collection.folder)
    real, calls = manifest.read_manifest, []

    def slow(folder: Path) -> Any:
        found = real(folder)
        if not calls:
            calls.append(found.generation)
            for item in range(12):
                writer.delete([item])
        return found

    monkeypatch.setattr("cbir_faiss.storage.store.read_manifest", slow)
    with Collection.open(collection.folder) as opened:
        assert calls == [1]
        assert len(opened) == 24


def test_old_files_are_removed_and_strangers_are_not(build: Build) -> None:
    collection = build()
    (collection.folder / "notes.txt").write_text("mine")
    for item in range(10):
        collection.delete([item])
    kept = {str(p.relative_to(collection.folder)) for p in collection.folder.rglob("*") if p.is_file()}
    generation = collection.manifest.generation
    assert "notes.txt" in kept
    assert {name for name in kept if name.startswith("manifest")} == {
        f"manifest-{generation}.json",
        f"manifest-{generation - 1}.json",
    }
    assert len({name.split("/")[1] for name in kept if name.startswith("segments")}) <= 2


operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 5)),
        st.tuples(st.just("delete"), st.integers(0, 60)),
        st.tuples(st.just("where"), st.sampled_from(["a", "b"])),
    ),
    max_size=8,
)


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=operations)
def test_a_collection_behaves_like_a_dictionary(
    steps: list[tuple[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    x = np.random.default_rng(0).standard_normal((80, 16)).astype(np.float32)
    place = tmp_path_factory.mktemp("model")
    np.save(place / "x.npy", x[:20])
    document = {
        "source": {"name": "vectors", "file": str(place / "x.npy")},
        "codecs": [{"name": "lsh", "bits": 64}],
        "backends": [{"name": "faiss-binary-flat"}],
        "rescore": [{"name": "float", "candidates": "all", "metric": "l2", "center": False}],
    }
    collection = Collection.build(parse_config(document), place / "c")
    model: dict[int, Any] = dict.fromkeys(range(20))
    for verb, value in steps:
        if verb == "add":
            labels = [["a", "b"][row % 2] for row in range(value)]
            if value:
                ids = collection.add_vectors(x[20 : 20 + value], [{"label": label} for label in labels])
                model |= dict(zip(ids.tolist(), labels, strict=True))
        elif verb == "delete" and value in model:
            collection.delete([value])
            del model[value]
        elif verb == "where":
            collection.delete(where={"label": value})
            model = {item: label for item, label in model.items() if label != value}
        with Collection.open(collection.folder) as reader:
            found = reader.search(x[:1], k=99)[0]
            assert {hit.id: hit.label for hit in found} == model
            if 0 in model:
                assert found[0].id == 0
    collection.close()


def test_an_engine_with_its_own_storage_follows(build: Build, pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    engine = {"name": "lancedb", "path": str(tmp_path / "lance"), "table": "pictures"}
    collection = build(({"name": "lsh", "bits": 24}, engine, {"name": "float"}))
    query = [pictures / "blob" / "03.png"]
    assert paths(collection.search(query)[0])[0] == "blob/03.png"
    assert not list(collection.folder.rglob("backend"))
    collection.delete([0, 1])
    shutil.copy(query[0], pictures / "blob" / "new.png")
    collection.add([pictures / "blob" / "new.png"])
    found = collection.search(query, k=99)[0]
    assert {hit.id for hit in found} == {*range(2, 37)}
    assert {hit.label for hit in collection.search(query, k=99, where={"label": "checks"})[0]} == {"checks"}


def test_what_an_engine_was_not_given_is_given_when_it_is_opened(
    build: Build, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lancedb")
    engine = {"name": "lancedb", "path": str(tmp_path / "lance"), "table": "pictures"}
    collection = build(({"name": "lsh", "bits": 24}, engine, {"name": "none"}))
    shutil.copy(pictures / "blob" / "03.png", pictures / "blob" / "new.png")

    def killed(store: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(changes, "replay", killed)
        with pytest.raises(KeyboardInterrupt):
            collection.add([pictures / "blob" / "new.png"])
    assert manifest.read_manifest(collection.folder).pending == manifest.Pending(first_id=36)
    with Collection.open(collection.folder) as opened:
        assert opened.manifest.pending is None
        assert 36 in {hit.id for hit in opened.search([pictures / "blob" / "03.png"], k=2)[0]}
        with monkeypatch.context() as patch:
            patch.setattr(changes, "replay", killed)
            with pytest.raises(KeyboardInterrupt):
                opened.delete([36, 4])
    with Collection.open(collection.folder) as opened:
        assert opened.manifest.pending is None
        assert opened._store.engine is not None
        assert opened._store.engine.count() == 35


def test_the_cache_can_be_gone_or_unused(build: Build) -> None:
    build()
    shutil.rmtree(default_cache())
    assert build(out="y.cbir").verify() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_collection_can_be_searched(build: Build, pictures: Path) -> None:
    collection = build()
    for path in [collection.folder, *collection.folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert Collection.open(collection.folder).search([pictures / "blob" / "03.png"])
    with pytest.raises(CbirError, match="cannot be written"):
        collection.delete([1])
