"""Building: what it reports, what it leaves behind, following the source, and being killed at any moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _builds
import numpy as np
import pytest
from PIL import Image

from cbir_faiss.collection import Collection
from cbir_faiss.collection.build import BuildReport
from cbir_faiss.config import parse_config
from cbir_faiss.errors import CbirError, ConfigError
from cbir_faiss.pipeline import cache
from cbir_faiss.pipeline.extraction import Extraction, stream
from cbir_faiss.storage.lock import writer_lock
from cbir_faiss.storage.manifest import read_manifest

Files = dict[str, bytes]


def document(root: Path, **sections: Any) -> dict[str, Any]:
    return {
        "source": {"name": "folder", "root": str(root)},
        "extractors": [{"name": "hog", "size": 32}],
        "codecs": [{"name": "lsh", "bits": 64}],
        "backends": [{"name": "faiss-binary-flat"}],
        "rescore": [{"name": "float"}],
        **sections,
    }


@pytest.fixture
def build(pictures: Path, tmp_path: Path) -> Callable[..., BuildReport]:
    def run(out: str = "x.cbir", **sections: Any) -> BuildReport:
        with Collection.build(parse_config(document(pictures, **sections)), tmp_path / out) as collection:
            assert collection.report is not None
            return collection.report

    return run


def contents(folder: Path) -> Files:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "LOCK"
    }


# -- what a build reports and leaves


def test_a_build_reports_what_it_did(build: Any, pictures: Path, tmp_path: Path) -> None:
    (pictures / "blob" / "bad.png").write_bytes(b"")
    report = build()
    assert (report.items, report.resumed_items) == (36, 0)
    assert [(f.path, f.reason) for f in report.failed] == [("blob/bad.png", "the file is empty")]
    assert report.images_per_second > 0
    assert set(report.seconds) == {"load", "extract", "fit", "encode", "store", "total"}
    assert sum(report.seconds.values()) <= 2 * report.seconds["total"] + 0.01
    assert report.peak_rss_bytes > 10_000_000
    assert json.loads(json.dumps(report.as_dict()))["failed"] == [
        {"path": "blob/bad.png", "reason": "the file is empty"}
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pictures", "x.cbir"]
    manifest = read_manifest(tmp_path / "x.cbir")
    assert (manifest.items, manifest.failed, manifest.bits, manifest.dim) == (36, 1, 64, 324)


def test_equal_builds_are_equal_byte_by_byte(build: Any, tmp_path: Path) -> None:
    """All but what the collection is called, the id that is its own, and the digest of the manifest with both."""
    build("a.cbir")
    shutil.rmtree(cache.default_cache())
    build("b.cbir")
    one, two = contents(tmp_path / "a.cbir"), contents(tmp_path / "b.cbir")
    manifests = [json.loads(files.pop("manifest-1.json")) for files in (one, two)]
    owners = [manifest.pop("owner") for manifest in manifests]
    assert [manifest.pop("name") for manifest in manifests] == ["a", "b"]
    assert owners[0] != owners[1]
    assert manifests[0] == manifests[1]
    assert one.pop("CURRENT") != two.pop("CURRENT")
    assert one == two


def test_what_was_extracted_before_is_not_extracted_again(build: Any) -> None:
    build("a.cbir")
    report = build("b.cbir")
    assert (report.items, report.resumed_items, report.images_per_second) == (36, 36, 0)


def test_a_zero_vector_where_directions_are_compared_is_a_failure(build: Any, pictures: Path) -> None:
    Image.new("RGB", (40, 40), "white").save(pictures / "blob" / "even.png")
    raw = {"codecs": [{"name": "raw"}], "rescore": [{"name": "none"}]}
    report = build(backends=[{"name": "faiss-flat", "metric": "cosine"}], **raw)
    assert [(f.path, f.reason) for f in report.failed] == [("blob/even.png", "its vector is zero and has no direction")]
    assert report.items == 36
    assert build("y.cbir", backends=[{"name": "faiss-flat", "metric": "l2"}], **raw).items == 37


# -- following the source


def test_a_finished_build_does_nothing(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build()
    before = contents(tmp_path / "x.cbir")
    monkeypatch.setattr("cbir_faiss.collection.build.extract", None)  # not even called
    report = build()
    assert (report.items, report.resumed_items) == (36, 36)
    assert contents(tmp_path / "x.cbir") == before


def test_changed_new_and_removed_files_are_picked_up(build: Any, pictures: Path, tmp_path: Path) -> None:
    (pictures / "blob" / "bad.png").write_bytes(b"")
    build()
    with Image.open(pictures / "blob" / "03.png") as image:
        image.rotate(90).save(pictures / "blob" / "03.png")
    shutil.copy(pictures / "checks" / "00.png", pictures / "checks" / "copy.png")
    (pictures / "stripes" / "05.png").unlink()
    os.utime(pictures / "stripes" / "06.png")
    report = build()
    assert (report.items, report.resumed_items) == (36, 35)
    assert [f.path for f in report.failed] == ["blob/bad.png"]
    with Collection.open(tmp_path / "x.cbir") as collection:
        labels = collection.info()["labels"]
        assert labels == {"blob": 12, "checks": 13, "stripes": 11}
        (found,) = collection.search([pictures / "blob" / "03.png"], k=1)
        assert (found[0].path, found[0].id >= 36) == ("blob/03.png", True)
        generation = collection.manifest.generation
        assert collection.verify() == []
    assert build().items == 36
    assert read_manifest(tmp_path / "x.cbir").generation == generation
    good = (pictures / "checks" / "00.png").read_bytes()
    (pictures / "blob" / "bad.png").write_bytes(good)
    (pictures / "stripes" / "07.png").write_bytes(b"broken now")
    report = build()
    assert [f.path for f in report.failed] == ["stripes/07.png"]
    assert report.items == 36


def test_files_that_fail_are_not_tried_again_until_they_change(
    build: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (pictures / "blob" / "bad.png").write_bytes(b"text")
    build()
    (pictures / "blob" / "new.png").write_bytes((pictures / "blob" / "00.png").read_bytes())
    read: list[int] = []

    def watched(source: Any, extractor: Any, rows: Any, **options: Any) -> Iterator[Any]:
        read.extend(rows)
        return stream(source, extractor, rows, **options)

    monkeypatch.setattr("cbir_faiss.pipeline.extraction.stream", watched)
    report = build()
    assert len(read) == 1
    assert [f.path for f in report.failed] == ["blob/bad.png"]


def test_what_was_added_stays_and_what_was_deleted_stays_away(build: Any, pictures: Path, tmp_path: Path) -> None:
    build()
    other = tmp_path / "other.png"
    with Image.open(pictures / "blob" / "03.png") as image:
        image.rotate(90).save(other)
    with Collection.open(tmp_path / "x.cbir") as collection:
        collection.add([other])
        assert collection.documents([0, 1, 2])[0]["path"] == "blob/00.png"
        collection.delete([0, 1])
        collection.delete([2])
    os.utime(pictures / "blob" / "01.png")
    (pictures / "checks" / "03.png").unlink()
    assert build().items == 33
    (pictures / "checks" / "04.png").unlink()
    assert build().items == 32  # it is remembered from build to build
    with Collection.open(tmp_path / "x.cbir") as collection:
        assert collection.search([other], k=1)[0][0].path == str(other)
        assert collection.add([pictures / "blob" / "01.png"]).added == 1  # how to get one back
    with Image.open(pictures / "blob" / "00.png") as image:
        image.rotate(90).save(pictures / "blob" / "00.png")
    assert build().items == 34  # a file that changed comes back, and what was added again stays
    with Collection.open(tmp_path / "x.cbir") as collection:
        assert collection.info()["labels"]["blob"] == 11


def test_what_replaces_an_item_of_the_source_goes_with_its_file(build: Any, pictures: Path, tmp_path: Path) -> None:
    build()
    file, new = pictures / "blob" / "03.png", pictures / "blob" / "new.png"
    with Image.open(file) as image:
        image.rotate(90).save(new)
        image.rotate(180).save(file)
    with Collection.open(tmp_path / "x.cbir") as collection:
        assert collection.add([file, new]).replaced == 1
    file.unlink()
    new.unlink()
    assert build().items == 36  # only what was there by hand alone stays


def test_adding_by_another_way_to_the_same_folder(
    build: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through ``..``, from inside the folder, and through links to it."""
    (tmp_path / "link").symlink_to(pictures)
    real = tmp_path / "elsewhere" / "deep"
    real.mkdir(parents=True)
    (tmp_path / "aside").symlink_to(real)
    build()
    build("linked.cbir", source={"name": "folder", "root": str(tmp_path / "link")})
    build("dotted.cbir", source={"name": "folder", "root": os.path.relpath(pictures)})
    monkeypatch.chdir(pictures / "blob")
    for out in ("x.cbir", "linked.cbir", "dotted.cbir"):
        with Collection.open(tmp_path / out) as collection:
            for given in ("../checks", "../../link/checks", "00.png", pictures, tmp_path / "aside/../../link/blob"):
                done = collection.add([given])
                assert (done.added, done.unchanged > 0) == (0, True), (out, given)
    with Image.open("03.png") as image:
        image.rotate(90).save("../checks/turned.png")
    with Collection.open(tmp_path / "linked.cbir") as collection:
        assert collection.add(["../checks"]).added == 1
        assert collection.documents([36]) == [{"path": "checks/turned.png", "label": "checks"}]


def test_a_file_that_may_not_be_read_is_tried_again(
    build: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, shut = Path.read_bytes, {"blob/03.png"}

    def read_bytes(self: Path) -> bytes:
        if any(self == pictures / name for name in shut):
            raise PermissionError(13, "Permission denied")
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    report = build()
    assert (report.items, [(f.path, f.reason) for f in report.failed]) == (35, [("blob/03.png", "Permission denied")])
    generation = read_manifest(tmp_path / "x.cbir").generation
    assert len(build().failed) == 1
    assert read_manifest(tmp_path / "x.cbir").generation == generation, "nothing has changed"
    shut.clear()
    report = build()
    assert (report.items, report.failed) == (36, [])
    shut.add("checks/01.png")  # written to, so that nobody knows whether it is the same: what was there stays
    os.utime(pictures / "checks" / "01.png")
    report = build()
    assert (report.items, [f.path for f in report.failed]) == (36, ["checks/01.png"])


def test_a_folder_that_may_not_be_listed_is_left_out(
    build: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, shut = os.scandir, {pictures / "blob"}

    def scandir(path: Any = ".") -> Any:
        if isinstance(path, Path) and path in shut:
            raise PermissionError(13, "Permission denied")
        return real(path)

    build("whole.cbir")
    monkeypatch.setattr(os, "scandir", scandir)
    for out, items in (("x.cbir", 24), ("whole.cbir", 36)):  # what was found in it before is not taken for gone
        report = build(out)
        assert (report.items, [(f.path, f.reason) for f in report.failed]) == (items, [("blob", "Permission denied")])
    shut.clear()
    for out in ("x.cbir", "whole.cbir"):
        report = build(out)
        assert (report.items, report.failed) == (36, [])


def test_files_too_large_and_names_and_texts_that_are_none(build: Any, pictures: Path, tmp_path: Path) -> None:
    with (pictures / "blob" / "large.png").open("wb") as file:
        file.truncate(5 << 30)
    name = os.fsencode(pictures / "checks") + b"/caf\xe9.png"
    try:
        shutil.copy(pictures / "checks" / "00.png", os.fsdecode(name))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    report = build()
    reason = "5,368,709,120 bytes are more than 100 megapixels take"
    assert (report.items, [(f.path, f.reason) for f in report.failed]) == (37, [("blob/large.png", reason)])
    with Collection.open(tmp_path / "x.cbir") as collection:
        done = collection.add([os.fsdecode(name), pictures / "checks"])
        assert (done.added, done.unchanged) == (0, 13)
    table = pictures / "list.jsonl"
    lines = [
        {"path": "blob/00.png", "note": "\ud800"},
        {"path": "blob/01.png", "label": "\udfff"},
        {"path": "blob/02.png"},
    ]
    table.write_text("\n".join(json.dumps(line) for line in lines))
    report = build("list.cbir", source={"name": "list", "file": str(table)})
    assert report.items == 1
    assert [f.path for f in report.failed] == ["blob/00.png", "blob/01.png"]
    assert all("lone surrogate" in f.reason for f in report.failed)
    table.write_text(json.dumps({"path": "\ud800.png"}))
    with pytest.raises(CbirError, match="line 1: 'path' must be the path of an image"):
        build("other.cbir", source={"name": "list", "file": str(table)})
    with Collection.open(tmp_path / "x.cbir") as collection:
        x = np.ones((1, collection.manifest.dim), np.float32)
        with pytest.raises(CbirError, match="document 0 is not Unicode text"):
            collection.add_vectors(x, [{"note": ["\ud800"]}])


def test_a_changed_label_is_taken_over(build: Any, pictures: Path, tmp_path: Path) -> None:
    table = pictures / "list.csv"
    table.write_text("path,label,year\nblob/00.png,blob,1990\nchecks/00.png,checks,2001\n")
    source = {"name": "list", "file": str(table)}
    build(source=source)
    table.write_text("path,label,year\nblob/00.png,round,1990\nchecks/00.png,checks,2001\n")
    assert build(source=source).items == 2
    with Collection.open(tmp_path / "x.cbir") as collection:
        assert collection.documents([1, 2]) == [
            {"path": "checks/00.png", "label": "checks", "year": 2001},
            {"path": "blob/00.png", "label": "round", "year": 1990},
        ]


def test_changed_rows_of_a_file_of_vectors_are_picked_up(build: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    vectors = {
        "source": {"name": "vectors", "file": str(tmp_path / "x.npy")},
        "extractors": [{"name": "vectors"}],
    }
    assert build(**vectors).items == 40
    x[7] = -x[7]
    x[9, 3] = np.nan
    np.save(tmp_path / "x.npy", np.concatenate([x, x[:3] + 1]))
    report = build(**vectors)
    assert (report.items, len(report.failed)) == (42, 1)
    with Collection.open(tmp_path / "x.cbir") as collection:
        assert collection.info()["deleted"] == 2
        assert collection.search(x[7:8], k=1)[0][0].path == "000000007"


def test_rows_keep_their_names_when_there_are_more(build: Any, tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((101, 16)).astype(np.float32)
    vectors = {"source": {"name": "vectors", "file": str(tmp_path / "x.npy")}, "extractors": [{"name": "vectors"}]}
    np.save(tmp_path / "x.npy", x[:100])
    build(**vectors)
    np.save(tmp_path / "x.npy", x)
    build(**vectors)
    with Collection.open(tmp_path / "x.cbir") as collection:
        assert (len(collection), collection.info()["deleted"], collection.manifest.next_id) == (101, 0, 101)


def test_rows_of_an_older_collection_are_known_again(
    build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).standard_normal((101, 16)).astype(np.float32)
    vectors = {"source": {"name": "vectors", "file": str(tmp_path / "x.npy")}, "extractors": [{"name": "vectors"}]}
    np.save(tmp_path / "x.npy", x[:100])
    with monkeypatch.context() as patch:  # names as they were given then
        patch.setattr("cbir_faiss.sources.vectors.Vectors._digits", 2)
        build(**vectors)
    np.save(tmp_path / "x.npy", x)
    build(**vectors)
    with Collection.open(tmp_path / "x.cbir") as collection:
        assert (len(collection), collection.info()["deleted"], collection.manifest.next_id) == (101, 0, 101)
        assert [d["path"] for d in collection.documents([7, 100])] == ["07", "100"]


def test_fitting_holds_only_the_columns_that_it_needs(
    build: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Any] = []
    real = Extraction.block

    def block(self: Any, rows: Any, names: Any = None) -> Any:
        found = real(self, rows, names)
        read.append((len(next(iter(found.values()))), sorted(found)))
        return found

    monkeypatch.setattr(Extraction, "block", block)
    joined = {"name": "joined", "of": [{"name": "hog", "size": 32}, {"name": "phash"}]}
    build(extractors=[joined], rescore=[{"name": "none"}])
    fitting, encoding = [one for one in read if one[0] > 1]
    assert len(fitting[1]) == 1
    assert len(encoding[1]) > 1


# -- what it refuses


def test_what_a_build_refuses(build: Any, pictures: Path, tmp_path: Path) -> None:
    build()
    cases: list[tuple[type[CbirError], str, Any]] = [
        (CbirError, "was built from another config", {"codecs": [{"name": "lsh", "bits": 32}]}),
        (ConfigError, "exactly one", {"codecs": [{"name": "raw"}, {"name": "lsh", "bits": 32}]}),
        (CbirError, "exists and is not a collection", {"out": "pictures"}),
        (CbirError, "cannot be written", {"out": "pictures/blob/00.png/x.cbir"}),
        (CbirError, "takes binary vectors, not float ones", {"out": "y", "codecs": [{"name": "raw"}]}),
    ]
    for error, message, changed in cases:
        with pytest.raises(error, match=message):
            build(**changed)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pictures", "x.cbir"]


def test_other_weights_are_refused_with_both(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build()
    monkeypatch.setattr("cbir_faiss.extractors.hog.Hog._weights_digest", lambda self: "changed")
    before = read_manifest(tmp_path / "x.cbir").fingerprint[:12]
    with pytest.raises(CbirError, match=f"made by an extractor {before}, the config now gives"):
        build()


def test_two_builds_at_once(build: Any, tmp_path: Path) -> None:
    (tmp_path / "x.cbir.building").mkdir()
    with writer_lock(tmp_path / "x.cbir.building"), pytest.raises(CbirError, match="another process is writing"):
        build()
    assert build().items == 36


def test_a_failed_build_leaves_nothing(build: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise OSError(28, "No space left on device", "items.sqlite")

    monkeypatch.setattr("cbir_faiss.storage.segment.write_catalogue", fails)
    with pytest.raises(CbirError, match="cannot be written: No space left on device"):
        build()
    assert [p.name for p in tmp_path.iterdir()] == ["pictures"]
    monkeypatch.undo()


@pytest.mark.parametrize("limit", [3_000, 30_000, 45_000])
def test_a_full_disk_is_one_line_and_nothing_is_lost(build: Any, pictures: Path, tmp_path: Path, limit: int) -> None:
    """A limit on the size of files stands for the disk: the writes fail in the same places."""
    build("small.cbir")
    with Image.open(pictures / "blob" / "00.png") as image:
        for angle in range(40):
            image.rotate(angle * 9 + 1).save(pictures / "blob" / f"r{angle}.png")
    before = contents(tmp_path / "small.cbir")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(CbirError) as caught:
            build("new.cbir")
        with pytest.raises(CbirError):
            build("small.cbir")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new.cbir").exists()
    assert not (tmp_path / "new.cbir.building").exists()
    assert {name: content for name, content in contents(tmp_path / "small.cbir").items() if name in before} == before
    assert build("small.cbir").items == 76


def test_links_in_a_circle_and_files_that_vanish(build: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (pictures / "blob" / "loop").symlink_to(pictures)
    (pictures / "blob" / "self.png").symlink_to("self.png")

    def vanishing(source: Any, extractor: Any, rows: Any, **options: Any) -> Iterator[Any]:
        (pictures / "checks" / "05.png").unlink(missing_ok=True)
        return stream(source, extractor, rows, **options)

    monkeypatch.setattr("cbir_faiss.pipeline.extraction.stream", vanishing)
    report = build()
    assert report.items == 35
    assert {f.path: f.reason for f in report.failed}["checks/05.png"] == "No such file or directory"


@pytest.mark.slow
def test_two_thousand_files_of_which_a_tenth_is_broken(build: Any, pictures: Path) -> None:
    good = (pictures / "blob" / "00.png").read_bytes()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(pictures / "one.jpg")
    jpeg = (pictures / "one.jpg").read_bytes()
    bomb = pictures / "bomb.png"
    Image.new("1", (20_000, 10_000)).save(bomb)
    ways = {
        "empty": b"",
        "text": b"hello",
        "cut": good[: len(good) // 2],
        "head": good[:30],
        "cutjpeg": jpeg[:-200],
        "bomb": bomb.read_bytes(),
        "flipped": good[:40] + bytes(8) + good[48:],
        "gif": b"GIF89a" + bytes(20),
    }
    for path in (pictures / "one.jpg", bomb):
        path.unlink()
    rng, broken = np.random.default_rng(0), set()
    for i in range(2000 - 36):
        name = f"many/{i:04}.png"
        (pictures / name).parent.mkdir(exist_ok=True)
        if i % 10 == 0:
            way = list(ways)[(i // 10) % len(ways)]
            (pictures / name).write_bytes(ways[way])
            broken.add(name)
        else:
            noise = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(noise).save(pictures / name)
    report = build()
    assert {failure.path for failure in report.failed} == broken
    assert all(failure.reason and "\n" not in failure.reason for failure in report.failed)
    assert report.items == 2000 - len(broken)
    assert any("200" in failure.reason or "limit" in failure.reason for failure in report.failed)


# -- killed


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures enough for a build that takes a while."""
    root, rng = tmp_path_factory.mktemp("many"), np.random.default_rng(0)
    for label in ("a", "b"):
        (root / label).mkdir()
        for i in range(80):
            small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            small.resize((128, 128), Image.Resampling.BICUBIC).save(root / label / f"{i:03}.png")
    (root / "a" / "broken.png").write_bytes(b"no picture")
    shutil.copy(root / "a" / "000.png", root / "b" / "copy.png")
    return root


class Processes:
    """Real processes, forked from a server that has imported everything, so that killing one hits the work."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["_builds", "faiss"])

    def run(self, work: Callable[..., None], *arguments: Any, kill_after: float | None = None) -> bool:
        """Whether it ended by itself."""
        process = self._context.Process(target=work, args=arguments)
        process.start()
        if kill_after is not None:
            process.join(kill_after)
            process.kill()
        process.join()
        assert process.exitcode in (0, -9)
        return process.exitcode == 0


@pytest.fixture(scope="module")
def processes() -> Processes:
    return Processes()


def moments(count: int, seconds: float) -> list[float]:
    """So many moments within so many seconds: one in each of as many equal parts, drawn at random."""
    return ((np.arange(count) + np.random.default_rng().random(count)) * seconds / count).tolist()


def seconds_of(work: Callable[[], bool]) -> float:
    began = time.perf_counter()
    assert work()
    return time.perf_counter() - began


@pytest.mark.slow
def test_a_build_killed_at_50_moments_goes_on_and_ends_the_same(
    many: Path, tmp_path: Path, processes: Processes
) -> None:
    config, out = document(many), tmp_path / "x.cbir"
    processes.run(_builds.build, config, out, tmp_path / "warm")  # the first one also pays for the server
    shutil.rmtree(out)
    takes = seconds_of(lambda: processes.run(_builds.build, config, out, tmp_path / "cache"))
    expected, killed, resumed = contents(out), 0, 0
    shutil.rmtree(out)
    for number, moment in enumerate(moments(50, takes)):
        own = tmp_path / f"cache{number}"
        ended = processes.run(_builds.build, config, out, own, kill_after=moment)
        killed += not ended
        assert not out.exists() or contents(out) == expected
        parsed = parse_config(config)
        with Collection.build(parsed, out, cache=own) as collection:
            assert collection.report is not None
            resumed += 0 < collection.report.resumed_items < collection.report.items
            assert collection.verify() == []
        assert contents(out) == expected
        assert sorted(path.name for path in tmp_path.glob("x.cbir*")) == [out.name]
        shutil.rmtree(out)
        shutil.rmtree(own, ignore_errors=True)
    assert killed > 25
    assert resumed > 5


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["add", "delete"])
def test_a_change_killed_at_any_moment_happens_or_does_not(
    many: Path, tmp_path: Path, processes: Processes, verb: str
) -> None:
    rest = tmp_path / "rest"
    shutil.copytree(many / "b", rest)
    for path in rest.iterdir():
        with Image.open(path) as image:
            image.rotate(90).save(path)
    start = tmp_path / "start.cbir"
    processes.run(_builds.build, document(many), start, tmp_path / "cache")
    work: tuple[Any, ...] = (
        (_builds.add, rest, tmp_path / "cache") if verb == "add" else (_builds.delete, 'label = "a"')
    )
    after = tmp_path / "after.cbir"
    shutil.copytree(start, after)
    takes = seconds_of(lambda: processes.run(work[0], after, *work[1:]))
    shutil.rmtree(after)
    shutil.copytree(start, after)
    takes = seconds_of(lambda: processes.run(work[0], after, *work[1:]))  # warm now
    counts = {len(Collection.open(start)), len(Collection.open(after))}
    assert len(counts) == 2
    met = set()
    for number, moment in enumerate(moments(20, 1.1 * takes)):
        out = tmp_path / f"{number}.cbir"
        shutil.copytree(start, out)
        processes.run(work[0], out, *work[1:], kill_after=moment)
        with Collection.open(out) as collection:
            met.add(len(collection))
            assert collection.verify() == []
            assert len(collection.search([many / "b" / "003.png"], k=1000)[0]) == len(collection)
        processes.run(work[0], out, *work[1:])
        assert len(Collection.open(out)) == len(Collection.open(after))
        assert contents(out).keys() >= read_manifest(out).files.keys()
        shutil.rmtree(out)
    assert met <= counts
