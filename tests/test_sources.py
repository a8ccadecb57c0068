"""Sources: where images, vectors and labels come from, and what a wrong place or a wrong table gets."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cbir_faiss.base import Item, registry
from cbir_faiss.base.options import parse_options
from cbir_faiss.errors import BadImage, ConfigError, InputError
from cbir_faiss.sources.digits import Digits
from cbir_faiss.sources.folder import Folder
from cbir_faiss.sources.list import List
from cbir_faiss.sources.torchvision import Torchvision
from cbir_faiss.sources.vectors import Vectors
from cbir_faiss.testing import SourceContract

SHARED = Path(__file__).parents[1].parent / "shared"


def save(path: Path, colour: Any = (200, 0, 0), size: tuple[int, int] = (6, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def paths(source: Any) -> list[str]:
    return [item.path for item in source.items()]


def tables(place: Path) -> Path:
    for i in range(3):
        save(place / f"{i}.png", (i * 40, 0, 0))
    (place / "list.csv").write_text("path,label\n2.png,a\n0.png,b\n1.png,a\n")
    return place / "list.csv"


def mnist(root: Path, n: int = 5) -> Path:
    """A tiny data set in the files that torchvision's MNIST reads."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (n, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        head = b"".join(int(v).to_bytes(4, "big") for v in (0x803, n, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        labels = b"".join(int(v).to_bytes(4, "big") for v in (0x801, n)) + bytes(i % 10 for i in range(n))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    return root


def coco(root: Path) -> Path:
    for name in ("b.jpg", "a.jpg", "c.jpg"):
        save(root / name, (ord(name[0]), 0, 0))
    content = {
        "images": [{"id": 7, "file_name": "b.jpg"}, {"id": 8, "file_name": "a.jpg"}, {"id": 9, "file_name": "c.jpg"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [{"image_id": i, "category_id": c} for i, c in ((7, 3), (7, 1), (7, 3), (8, 3))],
    }
    (root / "ann.json").write_text(json.dumps(content))
    return root


class TestFolderContract(SourceContract):
    plugin = Folder

    def place_options(self, place: Path) -> Mapping[str, Any]:
        return {"root": str(tables(place).parent)}


class TestListContract(SourceContract):
    plugin = List

    def place_options(self, place: Path) -> Mapping[str, Any]:
        return {"file": str(tables(place))}


class TestVectorsContract(SourceContract):
    plugin = Vectors

    def place_options(self, place: Path) -> Mapping[str, Any]:
        np.save(place / "x.npy", np.random.default_rng(0).normal(size=(12, 5)))
        return {"file": str(place / "x.npy")}


class TestDigitsContract(SourceContract):
    plugin = Digits


class TestTorchvisionContract(SourceContract):
    plugin = Torchvision

    def place_options(self, place: Path) -> Mapping[str, Any]:
        return {"dataset": "MNIST", "root": str(mnist(place / "mnist"))}


class TestCocoContract(SourceContract):
    plugin = Torchvision

    def place_options(self, place: Path) -> Mapping[str, Any]:
        return {"dataset": "CocoDetection", "root": str(coco(place)), "args": {"annFile": str(place / "ann.json")}}


def test_all_are_registered() -> None:
    assert {"digits", "folder", "list", "torchvision", "vectors"} <= set(registry.names("sources"))


# ------------------------------------------------------------------------------------------------------------- folder


def test_folder_labels_and_order(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/deep/er/1.JPG", "a/1.png", "top.webp", "käse/ü.png"):
        save(tmp_path / name)
    items = Folder(root=str(tmp_path)).items()
    assert [(item.path, item.labels) for item in items] == [
        ("a/1.png", ("a",)),
        ("b/2.png", ("b",)),
        ("b/deep/er/1.JPG", ("b",)),
        ("käse/ü.png", ("käse",)),
        ("top.webp", ()),
    ]
    assert all(item.payload == {} for item in items)


def test_folder_passes_over_what_is_no_image(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for name in ("notes.txt", "Thumbs.db", ".hidden.png", "table.csv", ".git/x.png", "no_suffix"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    assert paths(Folder(root=str(tmp_path))) == ["a.png"]


def test_folder_of_failures_goes_on(tmp_path: Path) -> None:
    save(tmp_path / "good.png")
    (tmp_path / "text.jpg").write_text("text")
    (tmp_path / "zero.png").write_bytes(b"")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nothing.png")
    source = Folder(root=str(tmp_path))
    results = {}
    for index, item in enumerate(source.items()):
        try:
            results[item.path] = str(source.read(index).size)
        except BadImage as error:
            results[item.path] = str(error)
    assert results == {
        "broken.png": "a symbolic link to nothing",
        "good.png": "(6, 4)",
        "text.jpg": "not an image, or of a format that Pillow does not know",
        "zero.png": "the file is empty",
    }
    with pytest.raises(BadImage, match="No such file"):
        source.content_key(0)


def test_folder_follows_links_but_not_round_in_circles(tmp_path: Path) -> None:
    save(tmp_path / "real" / "x.png")
    (tmp_path / "root" / "a").mkdir(parents=True)
    save(tmp_path / "root" / "a" / "1.png")
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "self").symlink_to(tmp_path / "root" / "self")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "real")
    assert paths(Folder(root=str(tmp_path / "root"))) == ["a/1.png", "linked/x.png"]


def test_folder_with_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        save(Path(os.fsdecode(name)))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    source = Folder(root=str(tmp_path))
    assert paths(source) == ["caf\\xe9.png"]
    assert source.read(0).size == (6, 4)


def test_folder_file_that_vanished(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png")
    source = Folder(root=str(tmp_path))
    source.items()
    path.unlink()
    with pytest.raises(BadImage, match="no such file"):
        source.read(0)


def test_folder_keys_are_of_the_content_and_follow_changes(tmp_path: Path) -> None:
    first = save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(first.read_bytes())
    source = Folder(root=str(tmp_path))
    assert source.content_key(0) == source.content_key(1) == hashlib.sha256(first.read_bytes()).digest()
    save(first, (1, 2, 3), (9, 9))
    assert source.content_key(0) != source.content_key(1)


def test_folder_limit(tmp_path: Path) -> None:
    save(tmp_path / "a.png", size=(100, 100))
    with pytest.raises(BadImage, match="megapixels"):
        Folder(root=str(tmp_path), max_megapixels=0.001).read(0)


def test_folder_errors(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"is empty: no image file \(by suffix\) below"):
        Folder(root=str(tmp_path)).items()
    with pytest.raises(InputError, match="no such folder"):
        Folder(root=str(tmp_path / "nowhere")).items()
    with pytest.raises(InputError, match="not a folder"):
        Folder(root=str(tmp_path / "notes.txt")).items()
    with pytest.raises(ConfigError, match="root: is required"):
        Folder()
    with pytest.raises(ConfigError, match="max_megapixels"):
        Folder(root=".", max_megapixels=0)


# --------------------------------------------------------------------------------------------------------------- list


def listing(tmp_path: Path, name: str, text: str, **options: Any) -> List:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return List(file=str(tmp_path / name), **options)


def test_list_csv(tmp_path: Path) -> None:
    source = listing(
        tmp_path,
        "x.csv",
        '\ufeffpath,label,year,price,code,note\nb.png,cat,1990,1.5,007,"two\nlines"\na.png,,2001,2,010,\n',
    )
    assert list(source.items()) == [
        Item("a.png", (), {"year": 2001, "price": 2.0, "code": "010"}),
        Item("b.png", ("cat",), {"year": 1990, "price": 1.5, "code": "007", "note": "two\nlines"}),
    ]


def test_list_numbers_that_are_too_long_stay_what_they_are(tmp_path: Path) -> None:
    """Two ids whose floats are one are two ids, and no number becomes infinite."""
    ids, longer = ("1729876543210987655", "1729876543210987656"), ("1" * 20, "2" * 400)
    lines = [f"{i}.jpg,{ids[i]},{longer[i]},{('0.5', ids[0])[i]},{('1e999', '2.5')[i]}" for i in (0, 1)]
    (tmp_path / "x.csv").write_text("\n".join(["path,id,longer,mixed,infinite", *lines]))
    first, second = (item.payload for item in List(file=str(tmp_path / "x.csv")).items())
    assert (first["id"], second["id"]) == tuple(map(int, ids))
    assert (first["longer"], second["longer"]) == longer
    assert (first["mixed"], second["mixed"]) == ("0.5", ids[0])
    assert (first["infinite"], second["infinite"]) == ("1e999", "2.5")


def test_list_several_labels(tmp_path: Path) -> None:
    source = listing(tmp_path, "x.csv", "path,label\na.png,cat| dog |cat\nb.png,|\n", label_separator="|")
    assert [item.labels for item in source.items()] == [("cat", "dog"), ()]
    source = listing(
        tmp_path, "x.jsonl", '{"path": "a", "label": ["x", 3]}\n\n{"path": "b", "label": 7, "tags": ["p"], "n": null}\n'
    )
    assert list(source.items()) == [Item("a", ("x", "3")), Item("b", ("7",), {"tags": ["p"], "n": None})]


def test_list_parquet(tmp_path: Path) -> None:
    import datetime

    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = {
        "path": ["b", "a"],
        "label": [["x", "y"], None],
        "when": [datetime.date(2020, 1, 2), None],
        "score": [float("nan"), 0.5],
        "box": [{"x": 1}, None],
    }
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    assert list(List(file=str(tmp_path / "x.parquet")).items()) == [
        Item("a", (), {"score": 0.5}),
        Item("b", ("x", "y"), {"when": "2020-01-02", "box": {"x": 1}}),
    ]
    pq.write_table(pa.table({"path": ["a"], "raw": [b"bytes"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="row 1: column 'raw': bytes has no form in JSON"):
        List(file=str(tmp_path / "x.parquet")).items()
    pq.write_table(pa.table({"file": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="column 'path'"):
        List(file=str(tmp_path / "x.parquet")).items()
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match="not a whole Parquet file"):
        List(file=str(tmp_path / "x.parquet")).items()


def test_list_roots(tmp_path: Path) -> None:
    save(tmp_path / "pictures" / "a.png")
    save(tmp_path / "a.png", size=(2, 2))
    source = listing(tmp_path, "x.csv", "path\na.png\n")
    assert source.read(0).size == (2, 2)
    source = listing(tmp_path, "x.csv", "path\na.png\n", root=str(tmp_path / "pictures"))
    assert source.read(0).size == (6, 4)
    source = listing(tmp_path, "x.csv", f"path\n{tmp_path}/pictures/a.png\ngone.png\n")
    assert source.read(0).size == (6, 4)
    with pytest.raises(BadImage, match="no such file"):
        source.read(1)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "", r"x\.csv: line 1: the header"),
        ("x.csv", "file,label\na,b\n", "line 1: the header"),
        ("x.csv", "path,path\na,b\n", "line 1: the header"),
        ("x.csv", "path\n", "is empty: no rows in"),
        ("x.csv", "path,label\na.png,x\nb.png\n", "line 3: 1 values for 2 columns"),
        ("x.csv", "path,label\n,x\n", "line 2: 'path' must be the path of an image"),
        ("x.csv", "path\na\nb\na\n", "line 4: 'a' stands in line 2 already"),
        ("x.csv", 'path\n"a\n', "line 2: "),
        ("x.jsonl", '{"path": "a"}\n{"path": \n', "line 2: not JSON"),
        ("x.jsonl", '{"path": "a", "x": NaN}\n', "line 1: not JSON: NaN"),
        ("x.jsonl", '["a"]\n', "line 1: must be a JSON object, not list"),
        ("x.jsonl", '{"path": 3}\n', "line 1: 'path' must be the path"),
        ("x.jsonl", '{"path": "a", "label": {"b": 1}}\n', "line 1: 'label' must be"),
        ("x.jsonl", '{"path": "a", "label": 1.5}\n', "line 1: 'label' must be"),
        ("x.txt", "a\n", r"the suffix must be one of \.csv"),
    ],
)
def test_list_errors(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        listing(tmp_path, name, text).items()
    assert "\n" not in str(caught.value)


def test_list_of_another_encoding_or_missing(tmp_path: Path) -> None:
    for name in ("x.csv", "x.jsonl"):
        (tmp_path / name).write_bytes(b"path\nk\xe4se.png\n" if name == "x.csv" else b'{"path": "k\xe4se"}')
        with pytest.raises(InputError, match="not UTF-8 text"):
            List(file=str(tmp_path / name)).items()
    with pytest.raises(InputError, match="no such file"):
        List(file=str(tmp_path / "gone.csv")).items()


# ------------------------------------------------------------------------------------------------------------ vectors


def vecs(path: Path, x: np.ndarray) -> Path:
    head = np.full((len(x), 1), x.shape[1], "<i4").view(np.uint8).reshape(len(x), 4)
    body = np.ascontiguousarray(x).view(np.uint8).reshape(len(x), -1)
    path.write_bytes(np.hstack([head, body]).tobytes())
    return path


@settings(max_examples=25, deadline=None, derandomize=True)
@given(n=st.integers(1, 30), dim=st.integers(1, 9), seed=st.integers(0, 99))
def test_vectors_survive_every_format(tmp_path_factory: pytest.TempPathFactory, n: int, dim: int, seed: int) -> None:
    h5py = pytest.importorskip("h5py")
    place = tmp_path_factory.mktemp("vectors")
    x = np.random.default_rng(seed).integers(0, 256, (n, dim)).astype(np.float32)
    np.save(place / "x.npy", x)
    vecs(place / "x.fvecs", x)
    vecs(place / "x.bvecs", x.astype(np.uint8))
    with h5py.File(place / "x.hdf5", "w") as file:
        file["train"] = x
        file.create_dataset("packed", data=x, compression="gzip")
    sources = [Vectors(file=str(place / f"x{suffix}")) for suffix in (".npy", ".fvecs", ".bvecs", ".hdf5")]
    sources.append(Vectors(file=str(place / "x.hdf5"), key="packed"))
    for source in sources:
        assert np.array_equal(source.matrix(), x)
        assert source.matrix().dtype == np.float32
        assert paths(source) == sorted(paths(source)) == [item.path for item in source.items()[:]]
        assert np.array_equal(source.read(n - 1), x[-1])
        assert source.content_key(0) == sources[0].content_key(0)
    for source in (sources[0], sources[1], sources[3]):
        assert not source.matrix().flags.owndata  # a view of the mapped file


def test_vectors_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(3, dtype=np.float16))
    np.save(tmp_path / "ints.npy", np.array([5, 5, 6]))
    np.save(tmp_path / "texts.npy", np.array(["a", "b", "b"]))
    (tmp_path / "lines.txt").write_text("a\nb c\nd\n")
    for name, expected in (("ints.npy", "5 5 6"), ("texts.npy", "a b b")):
        source = Vectors(file=str(tmp_path / "x.npy"), labels=str(tmp_path / name))
        assert [item.labels[0] for item in source.items()] == expected.split()
    source = Vectors(file=str(tmp_path / "x.npy"), labels=str(tmp_path / "lines.txt"))
    assert source.items()[1] == source.items()[-2] == Item("000000001", ("b c",))
    assert source.matrix().dtype == np.float16
    (tmp_path / "lines.txt").write_text("a\n")
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    for name, message in (("lines.txt", "1 labels for 3"), ("gone.npy", "cannot read"), ("objects.npy", "cannot read")):
        with pytest.raises(InputError, match=message):
            Vectors(file=str(tmp_path / "x.npy"), labels=str(tmp_path / name)).items()


def test_vectors_whose_label_is_not_there_have_none(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(3, dtype=np.float32))
    np.save(tmp_path / "floats.npy", np.array([1.0, np.nan, 2.0]))
    (tmp_path / "lines.txt").write_text("a\n\nb\n")
    for labels in ("floats.npy", "lines.txt"):
        source = Vectors(file=str(tmp_path / "x.npy"), labels=str(tmp_path / labels))
        assert [len(item.labels) for item in source.items()] == [1, 0, 1]
    (tmp_path / "x.jsonl").write_text('{"label": "a"}\n{"label": NaN, "x": Infinity}\n{"label": ["", "b"]}\n')
    told = list(Vectors(file=str(tmp_path / "x.npy"), documents=str(tmp_path / "x.jsonl")).items())
    assert [item.labels for item in told] == [("a",), (), ("b",)]
    assert told[1].payload == {"x": None}


def test_other_vectors_are_another_source_whatever_their_size_and_time(tmp_path: Path) -> None:
    x = np.eye(3, dtype=np.float32)
    np.savez(tmp_path / "both.npz", a=x, b=2 * x)
    for name, factor in (("one.npy", 1), ("two.npy", 2)):
        np.save(tmp_path / name, factor * x)
        os.utime(tmp_path / name, (1, 1))  # as an archive unpacks them
    sources = [
        *(Vectors(file=str(tmp_path / "both.npz"), key=key) for key in "ab"),
        *(Vectors(file=str(tmp_path / name)) for name in ("one.npy", "two.npy")),
    ]
    assert len({source.source_digest() for source in sources}) == 4
    assert Vectors(file=str(tmp_path / "one.npy")).source_digest() == sources[2].source_digest()


def test_vectors_row_with_nan(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[1, 2], [np.nan, 1], [np.inf, 1]]))
    source = Vectors(file=str(tmp_path / "x.npy"))
    assert source.read(0).tolist() == [1, 2]
    for row in (1, 2):
        with pytest.raises(BadImage, match="NaN or infinity"):
            source.read(row)


def test_vectors_errors(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["test"] = np.zeros((1, 1))
    good = vecs(tmp_path / "good.fvecs", np.ones((3, 4), np.float32)).read_bytes()
    (tmp_path / "cut.fvecs").write_bytes(good[:-3])
    (tmp_path / "tiny.bvecs").write_bytes(b"\1")
    (tmp_path / "foreign.fvecs").write_bytes(b"\xff" * 40)
    (tmp_path / "none.fvecs").write_bytes(b"")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\1\0")
    (tmp_path / "bad.h5").write_bytes(b"no")
    np.save(tmp_path / "flat.npy", np.zeros(3))
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    cases = {
        "x.h5": "has no 'train', but test",
        "cut.fvecs": "cut short",
        "tiny.bvecs": "cut short",
        "foreign.fvecs": "cut short or not a .fvecs",
        "none.fvecs": "is empty: no rows",
        "cut.npy": "not a whole .npy",
        "objects.npy": "not a whole .npy",
        "bad.h5": "not a whole HDF5",
        "flat.npy": r"float64 \(3,\), not numbers",
        "text.npy": "not numbers",
        "gone.npy": "no such file",
        "x.csv": "the suffix must be one of",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            Vectors(file=str(tmp_path / name)).items()


# ----------------------------------------------------------------------------------------------- digits and torchvision


def test_digits() -> None:
    source = Digits()
    items = source.items()
    assert len(items) == 1797
    assert sorted({item.labels[0] for item in items}) == [str(digit) for digit in range(10)]
    assert items[0] == Item("0/0000", ("0",))
    image = source.read(5)
    assert (image.mode, image.size) == ("RGB", (8, 8))
    assert max(np.asarray(source.read(i)).max() for i in range(20)) == 255


def test_torchvision_labels_and_pixels(tmp_path: Path) -> None:
    source = Torchvision(dataset="MNIST", root=str(mnist(tmp_path)), args={"train": False})
    assert source.items()[3] == Item("3", ("3 - three",))
    assert (source.read(3).mode, source.read(3).size) == ("RGB", (28, 28))


def test_torchvision_data_set_without_a_list_of_targets() -> None:
    args = {"size": 4, "image_size": [3, 8, 8], "num_classes": 3}
    source = Torchvision(dataset="FakeData", args=args)
    assert [len(item.labels) for item in source.items()] == [1] * 4
    assert {item.labels[0] for item in source.items()} <= {"0", "1", "2"}
    assert source.read(1).size == (8, 8)
    with pytest.raises(ConfigError, match=r"args: FakeData does not take root, but size"):
        Torchvision(dataset="FakeData", root=".", args=args).items()


def test_torchvision_class_names_and_a_damaged_item(tmp_path: Path) -> None:
    for name in ("train/ants/a.png", "train/bees/b.png", "train/bees/c.png"):
        save(tmp_path / name, (len(name), 1, 2))
    source = Torchvision(dataset="ImageFolder", root=str(tmp_path / "train"))
    assert [item.labels for item in source.items()] == [("ants",), ("bees",), ("bees",)]
    (tmp_path / "train/bees/c.png").write_bytes(b"no")
    with pytest.raises(BadImage, match="UnidentifiedImageError"):
        source.read(2)


def test_torchvision_coco(tmp_path: Path) -> None:
    coco(tmp_path / "data")
    options = {"dataset": "CocoDetection", "root": "data", "args": {"annFile": "data/ann.json"}}
    resolved = parse_options(Torchvision.Options, options, folder=str(tmp_path)).model_dump(mode="json")
    source = Torchvision(**resolved)
    assert list(source.items()) == [Item("a.jpg", ("dog",)), Item("b.jpg", ("cat", "dog")), Item("c.jpg", ())]
    assert source.read(0).getpixel((1, 1))[0] in range(90, 104)
    (tmp_path / "data/b.jpg").unlink()
    with pytest.raises(BadImage, match="no such file"):
        source.read(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "MNITS"}, "no data set 'MNITS'; did you mean 'MNIST'"),
        ({"dataset": "MNIST", "args": {"tarin": True}}, "does not take tarin, but root, train"),
        ({"dataset": "CocoDetection"}, "takes root and, in args, annFile"),
        ({"dataset": "MNIST"}, r"Dataset not found.*`download: true` gets it"),
        ({"dataset": "ImageFolder", "root": "/nowhere"}, "ImageFolder in /nowhere"),
        ({"dataset": "CocoDetection", "args": {"annFile": "gone.json"}}, "gone.json: No such file"),
    ],
)
def test_torchvision_errors(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, InputError), match=message) as caught:
        Torchvision(**{"root": str(tmp_path), **options}).items()
    assert "\n" not in str(caught.value)


def test_torchvision_wrong_annotations(tmp_path: Path) -> None:
    for text in ("{}", "no json", '{"images": 3, "categories": [], "annotations": []}'):
        (tmp_path / "ann.json").write_text(text)
        args = {"annFile": str(tmp_path / "ann.json")}
        source = Torchvision(dataset="CocoDetection", root=str(tmp_path), args=args)
        with pytest.raises(InputError, match="not a COCO annotation file"):
            source.items()


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "datasets/mnist").is_dir(), reason="../shared/datasets/mnist is not here")
def test_torchvision_mnist() -> None:
    source = Torchvision(dataset="MNIST", root=str(SHARED / "datasets/mnist"), args={"train": False})
    assert len(source.items()) == 10_000
    assert {item.labels[0] for item in source.items()} >= {"0 - zero", "9 - nine"}
    assert source.read(9_999).size == (28, 28)


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "datasets/corel1k").is_dir(), reason="../shared/datasets/corel1k is not here")
def test_folder_corel() -> None:
    source = Folder(root=str(SHARED / "datasets/corel1k"))
    assert len(source.items()) == 1000
    assert len({item.labels for item in source.items()}) == 10
