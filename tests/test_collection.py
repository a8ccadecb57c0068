"""A built collection: every way to ask it, what it refuses, changes to it, and readers while it changes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cbir_faiss.backends.faiss._backend import FaissBackend
from cbir_faiss.base.registry import make
from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config
from cbir_faiss.errors import BadImage, CbirError, CorruptCollection, DimensionMismatch, InputError, UnknownId
from cbir_faiss.images.reading import open_image
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.pipeline.extraction import extract, stream
from cbir_faiss.storage import changes, manifest, tiers
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
    ({"name": "raw"}, {"name": "faiss", "factory": "IVF4,SQ8", "search": {"nprobe": 4}}, {"name": "none"}),
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
    assert len(collection.search(query, k=1000)[0]) == 36
    for where in ({"label": "checks"}, 'label = "checks"', 'label != "blob" and not path in ("stripes/01.png")'):
        found = collection.search(query, k=1000, where=where)[0]
        assert "blob" not in {hit.label for hit in found}
        assert len(found) == 12 if where == {"label": "checks"} else 12 <= len(found) <= 24
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


def test_others_may_write_while_an_add_extracts(
    build: Build, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they added is not added again, and what they deleted of the given files is."""
    collection = build()
    folder = tmp_path / "more"
    shutil.copytree(pictures / "blob", folder)
    for path in folder.iterdir():
        with Image.open(path) as image:
            image.rotate(90).save(path)
    collection.add(sorted(folder.iterdir())[:4])
    meanwhile: list[Callable[[Collection], Any]] = [
        lambda other: other.add([sorted(folder.iterdir())[5]]),
        lambda other: other.delete(where={"path": str(sorted(folder.iterdir())[0])}),
    ]

    def watched(source: Any, extractor: Any, rows: Any, **options: Any) -> Iterator[Any]:
        while meanwhile:
            with Collection.open(collection.folder) as other:
                meanwhile.pop()(other)
        return stream(source, extractor, rows, **options)

    monkeypatch.setattr("cbir_faiss.pipeline.extraction.stream", watched)
    done = collection.add([folder])
    assert (done.added, done.replaced, done.unchanged) == (8, 0, 4)
    documents = [record.document for _, record in collection._store.records()]
    names = [document["path"] for document in documents]
    assert len(names) == len(set(names)) == 36 + 12
    assert collection.verify() == []


def test_an_add_waits_for_a_commit_and_a_delete_does_not(build: Build, pictures: Path, tmp_path: Path) -> None:
    collection = build()
    with Image.open(pictures / "blob" / "03.png") as image:
        image.rotate(90).save(tmp_path / "new.png")
    with ThreadPoolExecutor(1) as pool:
        with writer_lock(collection.folder):
            added = pool.submit(lambda: Collection.open(collection.folder).add([tmp_path / "new.png"]))
            with pytest.raises(CbirError, match="another process is writing"):
                collection.delete([1])
            assert not added.done()
        assert added.result().added == 1
    with (
        writer_lock(collection.folder),
        pytest.raises(CbirError, match="try again"),
        writer_lock(collection.folder, 0.05),
    ):
        pass


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
    assert 1 < most <= 3 * (tiers.tier_of(36) + 1)
    found = collection.search([pictures / "blob" / "03.png", pictures / "stripes" / "11.png"], k=99)
    assert all({hit.id for hit in hits} <= there for hits in found)
    if combination[1]["name"] != "faiss":  # which looks into some lists only
        assert all({hit.id for hit in hits} == there for hits in found)
    labels = collection.info()["labels"]
    assert sum(labels.values()) == len(there)
    assert collection.verify() == []


# -- growing


LEARNING: list[dict[str, Any]] = [
    {"name": "faiss-ivf", "nlist": 4, "metric": "cosine"},
    {"name": "faiss-pq", "nlist": 4, "bits": 32},
    {"name": "faiss-rabitq", "nlist": 4},
    {"name": "faiss-rabitq", "nlist": 0, "bits": 2},
    {"name": "faiss-eden", "nlist": 4},
    {"name": "faiss-hnsw", "storage": "sq8"},
    *([{"name": "rabitq", "nlist": 4}, {"name": "rabitq-hnsw"}] if find_spec("rabitqlib") else []),
    {"name": "faiss-lsh", "bits": 64, "thresholds": True},
    {"name": "faiss", "factory": "PCA8,IVF4,SQ8"},
    {"name": "faiss", "factory": "PCA8,PQ4x4fs"},
    {"name": "faiss", "factory": "IVF4,PQ4x4fs,RFlat"},
    {"name": "faiss-binary-ivf", "nlist": 4},
]


@pytest.fixture
def of_vectors(tmp_path: Path) -> Callable[..., Collection]:
    """Builds a collection of the first of 2,000 vectors, which the others can be added to."""

    def run(backend: dict[str, Any], n: int, codec: dict[str, Any] | None = None) -> Collection:
        np.save(tmp_path / "x.npy", VECTORS[:n])
        default = {"name": "lsh", "bits": 64} if "binary" in backend["name"] else {"name": "raw"}
        document = {
            "source": {"name": "vectors", "file": str(tmp_path / "x.npy")},
            "codecs": [codec or default],
            "backends": [backend],
        }
        return Collection.build(parse_config(document), tmp_path / "c")

    return run


VECTORS = np.random.default_rng(0).standard_normal((2000, 16)).astype(np.float32)


@pytest.mark.parametrize("backend", LEARNING, ids=lambda b: b.get("factory", b["name"]))
def test_an_index_that_learns_does_so_once_until_the_items_are_four_times_as_many(
    of_vectors: Any, backend: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = of_vectors(backend, 200)
    learnt: list[int] = []
    real = FaissBackend._train
    monkeypatch.setattr(FaissBackend, "_train", lambda self, sample: [learnt.append(len(sample)), real(self, sample)])
    for start in range(200, 800, 100):
        collection.add_vectors(VECTORS[start : start + 100])
    assert learnt == []
    assert len(collection.manifest.segments) > 1
    assert collection.verify() == []
    collection.add_vectors(VECTORS[800:801])
    assert learnt == [801]
    assert len(collection.manifest.segments) == 1
    collection.add_vectors(VECTORS[801:802])
    assert learnt == [801]
    assert collection.verify() == []


@pytest.mark.parametrize("backend", LEARNING, ids=lambda b: b.get("factory", b["name"]))
def test_a_vector_is_as_far_in_every_segment(of_vectors: Any, backend: dict[str, Any]) -> None:
    collection = of_vectors(backend, 200)
    for _ in range(3):
        collection.add_vectors(VECTORS[:20])
    collection.delete([205, 207])
    assert len(collection.manifest.segments) == 4
    for item, hits in enumerate(collection.search(VECTORS[:5], k=1000)):
        far = {hit.id: hit.distance for hit in hits}
        assert len({far[i] for i in (item, 200 + item, 220 + item, 240 + item)}) == 1


@pytest.mark.parametrize("backend", LEARNING, ids=lambda b: b.get("factory", b["name"]))
def test_deleting_is_never_refused_for_want_of_items_to_learn_from(of_vectors: Any, backend: dict[str, Any]) -> None:
    collection = of_vectors(backend, 200)
    for left in (100, 20, 2, 1):
        collection.delete(range(left, len(collection)))
        assert len(collection) == left
        assert {hit.id for hit in collection.search(VECTORS[:1], k=9)[0]} <= set(range(left))
    collection.delete([0])
    assert collection.add_vectors(VECTORS[:2]).tolist() == [200, 201]
    assert {hit.id for hit in collection.search(VECTORS[:2], k=1)[0]} <= {200, 201}
    assert collection.verify() == []


def test_what_a_killed_writer_had_learnt_is_not_taken(of_vectors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = of_vectors({"name": "faiss-ivf", "nlist": 4, "metric": "cosine"}, 50)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(changes, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            collection.add_vectors(VECTORS[50:1000])
    left = collection.folder / "trained" / "2"
    before = {path.name: path.read_bytes() for path in left.iterdir()}
    collection.add_vectors(-VECTORS[1000:1300] + 3)
    assert collection.manifest.training == manifest.Training(folder="trained/2", items=350)
    assert {path.name: path.read_bytes() for path in left.iterdir()} != before
    collection.delete([3])
    collection.delete([4])
    assert collection.verify() == []
    assert [path.name for path in left.parent.iterdir()] == ["2"]


def test_an_item_is_rewritten_seldom_and_segments_are_few(of_vectors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = of_vectors({"name": "faiss-binary-flat"}, 500)
    written: list[int] = []
    real = changes.write_segment
    monkeypatch.setattr(changes, "write_segment", lambda *a: [written.append(real(*a)), written[-1]][1])
    for start in range(500, 1000, 5):
        collection.add_vectors(VECTORS[start : start + 5])
    assert sum(written) <= 5 * 500
    assert max(written) <= 500
    assert len(collection.manifest.segments) <= 1 + 3 * 4
    assert {hit.id for hit in collection.search(VECTORS[:1], k=1000)[0]} == set(range(1000))


def test_filters_of_any_size_and_documents_of_any_text(of_vectors: Any) -> None:
    collection = of_vectors({"name": "faiss-binary-ivf", "nlist": 4}, 200)
    odd = {"path": "ä/\U0001f33b.jpg", "label": "\u2028", "big": 2**70, "nested": {"x": [1]}}
    (item,) = collection.add_vectors(VECTORS[:1], [odd]).tolist()
    ask: list[Any] = [
        {"path": {"in": [f"no/{i}" for i in range(40_000)] + [odd["path"]]}},
        {"label": {"in": [*range(40_000), odd["label"]]}},
        {"big": {"in": [2**70, *range(40_000)]}},
        f"{'not ' * 70}big >= {2**70}",
        f"big > {2**70 - 1} and big < {2**70 + 1}",
    ]
    for where in ask:
        assert [hit.id for hit in collection.search(VECTORS[:3], k=3, where=where)[0]] == [item]
    assert collection.search(VECTORS[:1], where={"nested": 1}) == [[]]
    assert collection.info()["labels"] == {"\u2028": 1}
    assert collection.documents([item]) == [odd]
    with pytest.raises(InputError, match="lone surrogate"):
        collection.add_vectors(VECTORS[:1], [{"label": "\ud800"}])
    assert collection.search(VECTORS[:1], where={"label": "\ud800"}) == [[]]
    with pytest.raises(InputError, match="nested at most 100 deep"):
        collection.search(VECTORS[:1], where="not " * 5000 + "a = 1")
    assert collection.delete(where={"path": {"in": [odd["path"], *(f"{i:09}" for i in range(190))]}}) == 191


def test_a_delete_rewrites_the_segments_with_many_dead_rows_alone(of_vectors: Any) -> None:
    collection = of_vectors({"name": "faiss-binary-flat"}, 400)
    collection.add_vectors(VECTORS[400:450])
    collection.add_vectors(VECTORS[450:500])
    first, second, third = (segment.name for segment in collection.manifest.segments)
    collection.delete([0, 1, *range(400, 420)])
    names = [segment.name for segment in collection.manifest.segments]
    assert (names[0], names[2]) == (first, third)
    assert names[1] not in (first, second, third)
    assert [segment.live_rows for segment in collection.manifest.segments] == [398, 30, 50]
    assert collection.info()["deleted"] == 2
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


def replaced(folder: Path, other: Path, way: str) -> None:
    """Another collection in the place of an open one: renamed to it, or copied over it."""
    if way == "renamed":
        folder.rename(folder.with_name("away"))
        other.rename(folder)
    else:
        shutil.rmtree(folder)
        shutil.copytree(other, folder)


@pytest.mark.parametrize("way", ["renamed", "copied"])
@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(part["name"] for part in c))
def test_a_collection_that_is_replaced_answers_as_it_was_opened(
    build: Build, pictures: Path, tmp_path: Path, combination: Any, way: str
) -> None:
    collection = build(combination)
    queries = [pictures / "blob" / "03.png", pictures / "checks" / "07.png"]
    vectors = collection.extractor([open_image(query) for query in queries])["embedding"]
    with Collection.open(collection.folder) as reader:
        expected = reader.search(vectors, k=9), reader.search_ids([3], k=5), reader.documents([4])
        labelled = reader.search(vectors, k=4, where={"label": "checks"})
    opened = Collection.open(collection.folder)
    for path in (pictures / "stripes").iterdir():
        with Image.open(path) as image:
            image.rotate(90).save(pictures / "blob" / f"other-{path.name}")
    build(combination, out="other.cbir").close()
    replaced(collection.folder, tmp_path / "other.cbir", way)
    assert (opened.search(vectors, k=9), opened.search_ids([3], k=5), opened.documents([4])) == expected
    assert opened.search(vectors, k=4, where={"label": "checks"}) == labelled


def test_a_replaced_extractor_is_refused(build: Build, pictures: Path) -> None:
    """The extractor is loaded when a picture is searched for, and may be another's by then."""
    opened = Collection.open(build(extractors=[{"name": "compact"}]).folder)
    (network,) = (opened.folder / "extractor").iterdir()
    shutil.copytree(opened.folder, opened.folder.with_name("other.cbir"))
    content = network.read_bytes()
    network.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptCollection, match="replaced since it was opened"):
        opened.search([pictures / "blob" / "03.png"])
    replaced(opened.folder, opened.folder.with_name("other.cbir"), "renamed")
    assert paths(opened.search([pictures / "blob" / "03.png"])[0])[0] == "blob/03.png"


def test_a_collection_replaced_while_it_is_opened_is_opened_again(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files have the same sizes, so that only their content tells them apart."""
    x = np.random.default_rng(0).standard_normal((2, 50, 8)).astype(np.float32)
    for name, values in zip("ab", x, strict=True):
        np.save(tmp_path / f"{name}.npy", values)
        source = {"name": "vectors", "file": str(tmp_path / f"{name}.npy")}
        build(source=source, extractors=[{"name": "vectors"}], out=f"{name}.cbir").close()
    real, calls = manifest.check_sizes, []

    def swap(folder: Path, found: Any) -> None:
        real(folder, found)
        if not calls:
            calls.append(folder)
            replaced(tmp_path / "a.cbir", tmp_path / "b.cbir", "renamed")

    monkeypatch.setattr("cbir_faiss.storage.store.check_sizes", swap)
    with Collection.open(tmp_path / "a.cbir") as opened:
        assert opened.search(x[1][:5], k=1)[0][0].distance == 0
        assert opened.manifest == manifest.read_manifest(tmp_path / "a.cbir")


@pytest.mark.parametrize("commits", [1, 3])
def test_verify_beside_a_writer_finds_no_damage(build: Build, monkeypatch: pytest.MonkeyPatch, commits: int) -> None:
    collection = build()
    collection.delete([35])
    writer = Collection.open(collection.folder)
    real, left = manifest.sha256_of, list(range(commits))

    def slow(path: Path) -> str:
        some, left[:] = left.copy(), []
        for item in some:
            writer.delete([item])
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "sha256_of", slow)
        assert collection.verify() == []
    assert not left
    broken = collection.folder / "codec.npz"
    broken.write_bytes(broken.read_bytes()[:-1] + b"x")
    assert [name for name, _ in collection.verify()] == ["codec.npz"]


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
