"""Images inside other files: zip, WebDataset and Hugging Face's data sets; vectors in npz and Parquet."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cbir_faiss.base import registry
from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config
from cbir_faiss.errors import BadImage, InputError, NoAccess
from cbir_faiss.sources.huggingface import HuggingFace
from cbir_faiss.sources.vectors import Vectors
from cbir_faiss.sources.webdataset import WebDataset
from cbir_faiss.sources.zip import Zip
from cbir_faiss.testing import SourceContract


def png(number: int, size: tuple[int, int] = (6, 4)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (number * 20 % 256, 0, 0)).save(file, "PNG")
    return file.getvalue()


def zipped(file: Path) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, name in enumerate(["cats/1.png", "cats/more/0.png", "dogs/2.PNG", "3.png"]):
            archive.writestr(name, png(number))
        for name in ["cats/notes.txt", ".hidden/4.png", "__MACOSX/cats/._1.png", "empty/"]:
            archive.writestr(name, b"x")
    return file


def tarred(file: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def shards(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(2):
        members: dict[str, bytes] = {}
        for sample in range(3):
            name = f"part/{shard}{sample}"
            members[f"{name}.png"] = png(10 * shard + sample)
            members[f"{name}.cls"] = f"{sample % 2}\n".encode()
            members[f"{name}.json"] = json.dumps({"year": 1990 + sample, "odd": float("nan"), "none": None}).encode()
            members[f"{name}.txt"] = b"a caption\n"
        tarred(folder / f"train-{shard:04}.tar", members)
    return folder


def parquet(folder: Path, files: int = 2) -> Path:
    """Parquet files as the hub has them, written by pyarrow alone."""
    arrow, write = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder.mkdir(parents=True, exist_ok=True)
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    schema = arrow.schema(
        [("image", image), ("label", arrow.int64()), ("name", arrow.string()), ("score", arrow.float64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    for part in range(files):
        rows = [
            {
                "image": {"bytes": png(10 * part + row), "path": f"scans/{part}{row}.png"},
                "label": row % 2,
                "name": f"item {9 - row} of {part}",
                "score": None if row else 0.5,
            }
            for row in range(3)
        ]
        table = arrow.Table.from_pylist(rows, schema=schema)
        write.write_table(table, folder / f"train-{part:05}-of-{files:05}.parquet", row_group_size=2)
    return folder


class TestZipContract(SourceContract):
    plugin = Zip

    def place_options(self, place: Path) -> Mapping[str, Any]:
        return {"file": str(zipped(place / "x.zip"))}


class TestWebDatasetContract(SourceContract):
    plugin = WebDataset

    def place_options(self, place: Path) -> Mapping[str, Any]:
        return {"shards": str(shards(place / "shards"))}


class TestHuggingFaceContract(SourceContract):
    plugin = HuggingFace

    def place_options(self, place: Path) -> Mapping[str, Any]:
        return {"path": str(parquet(place / "set"))}


# ------------------------------------------------------------------------------------------------------------------ zip


def test_zip(tmp_path: Path) -> None:
    source = Zip(file=str(zipped(tmp_path / "x.zip")))
    items = source.items()
    assert [item.path for item in items] == ["3.png", "cats/1.png", "cats/more/0.png", "dogs/2.PNG"]
    assert [item.labels for item in items] == [(), ("cats",), ("cats",), ("dogs",)]
    assert source.read(1).getpixel((0, 0)) == (0, 0, 0)
    assert source.read(0).getpixel((0, 0)) == (60, 0, 0)
    assert source.content(0).key == source.content_key(0)
    assert source.content(0).read(None).size == (6, 4)
    assert source.stamp(0) == source.stamp(3) is not None


def test_zip_bad_members(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", b"\0" * 2_000_000)
        archive.writestr("damaged.png", bytes(range(256)) * 9)
        archive.writestr("text.png", b"no image")
    content = (tmp_path / "x.zip").read_bytes().replace(b"damaged.png" + bytes(0), b"damaged.png", 1)
    at = content.index(b"damaged.png") + len(b"damaged.png")
    (tmp_path / "x.zip").write_bytes(content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :])
    source = Zip(file=str(tmp_path / "x.zip"), max_megapixels=0.01)
    for index, reason in enumerate(["more than the 80,000 bytes", "cannot be unpacked", "not an image"]):
        with pytest.raises(BadImage, match=reason):
            source.read(index)
    with pytest.raises(BadImage, match="more than"):
        source.content_key(0)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_damaged_member_of_any_method(method: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        archive.writestr("damaged.png", bytes(range(256)) * 9)
    content = bytearray((tmp_path / "x.zip").read_bytes())
    at = content.index(b"damaged.png") + len(b"damaged.png")
    content[at + 4 : at + 40] = b"\xff" * 36
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(BadImage, match="cannot be unpacked"):
        Zip(file=str(tmp_path / "x.zip")).read(0)


def test_zip_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"source 'zip': no such file: .*x\.zip"):
        Zip(file=str(tmp_path / "x.zip")).items()
    content = zipped(tmp_path / "whole.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"x\.zip is not a whole zip archive: "):
        Zip(file=str(tmp_path / "x.zip")).items()
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("readme.txt", b"nothing here")
    with pytest.raises(InputError, match=r"source 'zip' is empty: no image \(by suffix\) in .*none\.zip"):
        Zip(file=str(tmp_path / "none.zip")).items()


@pytest.mark.parametrize(("old", "new"), [(b"ab.png", b"\xff\xfe.png"), (b"PK\x01\x02", b"PK\x01\x02")])
def test_zip_that_python_cannot_list(old: bytes, new: bytes, tmp_path: Path) -> None:
    """A name that says it is UTF-8 and is not; an archive that wants a version to come."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("ab.png", png(1))
    content = bytearray((tmp_path / "x.zip").read_bytes().replace(old, new))
    entry = content.index(b"PK\x01\x02")
    if old == new:
        content[entry + 6] = 99  # the version that is needed to unpack it
    else:
        content[entry + 9] |= 0x08  # the flag of a name in UTF-8
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.zip is not a whole zip archive: ") as caught:
        Zip(file=str(tmp_path / "x.zip")).items()
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------------- webdataset


def test_webdataset(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards")
    source = WebDataset(shards=str(folder))
    items = source.items()
    assert items[0].path == "train-0000/part/00.png"
    assert items[4] == type(items[4])("train-0001/part/11.png", ("1",), {"caption": "a caption", "year": 1991})
    assert source.read(4).getpixel((0, 0)) == (220, 0, 0)
    one = WebDataset(shards=str(folder / "train-0001.tar"), label="year")
    assert [item.path for item in one.items()] == [item.path for item in items[3:]]
    for pattern in ("train-*.tar", "train-{0000..0001}.tar"):
        assert len(WebDataset(shards=str(folder / pattern)).items()) == 6
    stamps = [source.stamp(row) for row in range(6)]
    assert stamps[:3] == stamps[:1] * 3 != stamps[3:] == stamps[5:] * 3


def test_webdataset_is_what_webdataset_writes(tmp_path: Path) -> None:
    library = pytest.importorskip("webdataset")
    with library.TarWriter(str(tmp_path / "x.tar")) as out:
        for number in range(3):
            image = Image.new("RGB", (5, 5), (number, 0, 0))
            out.write({"__key__": f"k{number}", "png": image, "cls": number, "json": {"label": "no", "a": [1, 2]}})
    items = WebDataset(shards=str(tmp_path / "x.tar")).items()
    assert [(item.path, item.labels) for item in items] == [(f"x/k{n}.png", (str(n),)) for n in range(3)]
    assert items[0].payload == {"a": [1, 2], "payload.label": "no"}


def test_webdataset_with_several_images_a_sample(tmp_path: Path) -> None:
    both = {"0.depth.png": png(1), "0.png": png(2), "0.cls": b"1", "1.png": png(3), "1.depth.png": png(4)}
    file = str(tarred(tmp_path / "x.tar", both))
    source = WebDataset(shards=file)
    assert [(item.path, item.labels) for item in source.items()] == [("x/0.png", ("1",)), ("x/1.png", ())]
    assert [source.read(row).getpixel((0, 0))[0] for row in (0, 1)] == [40, 60]
    depth = WebDataset(shards=file, image="depth.PNG")
    assert [item.path for item in depth.items()] == ["x/0.depth.png", "x/1.depth.png"]
    assert [depth.read(row).getpixel((0, 0))[0] for row in (0, 1)] == [20, 80]
    alone = tarred(tmp_path / "x.tar", {"0.depth.png": png(1), "0.txt": b"deep"})
    assert [item.path for item in WebDataset(shards=str(alone)).items()] == ["x/0.depth.png"]
    for kinds in (["jpg", "png"], ["left.png", "right.png"]):
        tarred(tmp_path / "x.tar", {f"part/0.{kind}": png(1) for kind in kinds})
        message = rf"x\.tar: sample 'part/0' has several images: choose by option image: {', '.join(kinds)}$"
        with pytest.raises(InputError, match=message):
            WebDataset(shards=file).items()


def test_webdataset_in_part(tmp_path: Path) -> None:
    folder = shards(tmp_path / "shards")
    with pytest.raises(InputError, match=r"1 of 3 shards are not there: .*train-0002\.tar"):
        WebDataset(shards=str(folder / "train-{0000..0002}.tar")).items()
    whole = (folder / "train-0001.tar").read_bytes()
    first_member = 512 + 512  # a header and one block: cut there, nothing but the end is missing
    for cut in (first_member, len(whole) // 2, 700):
        (folder / "train-0001.tar").write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"train-0001\.tar is not a whole, uncompressed tar file: "):
            WebDataset(shards=str(folder)).items()
    with tarfile.open(folder / "train-0001.tar", "w:gz"):
        pass
    with pytest.raises(InputError, match=r"is not a whole, uncompressed tar file"):
        WebDataset(shards=str(folder)).items()
    with pytest.raises(InputError, match="no tar file"):
        WebDataset(shards=str(tmp_path / "*.tar")).items()
    with pytest.raises(InputError, match=r"1 of 1 shards are not there"):
        WebDataset(shards=str(tmp_path / "x.tar")).items()


def test_webdataset_bad_samples(tmp_path: Path) -> None:
    tarred(tmp_path / "x.tar", {"a.png": png(1), "a.json": b"[1]"})
    with pytest.raises(InputError, match=r"source 'webdataset': x/a\.png: its JSON is no object"):
        WebDataset(shards=str(tmp_path / "x.tar")).items()
    tarred(tmp_path / "x.tar", {"a.png": png(1), "a.json": b'{"label": {"b": 1}}'})
    with pytest.raises(InputError, match=r"x/a\.png: a document's path is a text and its label"):
        WebDataset(shards=str(tmp_path / "x.tar")).items()
    tarred(tmp_path / "x.tar", {"a.png": png(1), "a.json": b"[" * 100_000})
    with pytest.raises(InputError, match=r"source 'webdataset': x/a\.png: "):
        WebDataset(shards=str(tmp_path / "x.tar")).items()
    tarred(tmp_path / "x.tar", {os.fsdecode(b"a\xff.png"): png(1), "b.png": png(2), "b.cls": b""})
    odd = WebDataset(shards=str(tmp_path / "x.tar"))
    assert [(item.path, item.labels) for item in odd.items()] == [("x/a\\xff.png", ()), ("x/b.png", ())]
    assert odd.read(0).getpixel((0, 0)) == (20, 0, 0)
    tarred(tmp_path / "x.tar", {"a.png": png(1), "b.cls": b"1", ".png": png(2)})
    source = WebDataset(shards=str(tmp_path / "x.tar"))
    assert [item.path for item in source.items()] == ["x/a.png"]
    (tmp_path / "x.tar").unlink()
    with pytest.raises(NoAccess, match="No such file"):
        source.read(0)


# ---------------------------------------------------------------------------------------------------------- huggingface


def test_huggingface_parquet(tmp_path: Path) -> None:
    source = HuggingFace(path=str(parquet(tmp_path / "set")))
    items = source.items()
    assert [item.path for item in items] == [f"{number:09}" for number in range(6)]
    assert items[3].labels == ("cat",)
    assert items[3].payload == {"file": "10.png", "name": "item 9 of 1", "score": 0.5}
    assert "score" not in items[4].payload
    assert [source.read(number).getpixel((0, 0))[0] for number in range(6)] == [0, 20, 40, 200, 220, 240]
    named = HuggingFace(path=str(tmp_path / "set"), key="name", label="score")
    assert [item.path for item in named.items()][:2] == ["item 7 of 0", "item 7 of 1"]
    assert named.read(1).getpixel((0, 0)) == (240, 0, 0)
    assert named.items()[-1].labels == ("0.5",)


def test_what_a_row_itself_calls_path_and_label_is_payload(tmp_path: Path) -> None:
    arrow, write = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    own = {"path": "own/1.png", "label": "own"}
    table = arrow.table({"image": [png(1)], "class": ["cat"], **{key: [value] for key, value in own.items()}})
    write.write_table(table, tmp_path / "train.parquet")
    (item,) = HuggingFace(path=str(tmp_path), label="class").items()
    kept = {"payload.path": "own/1.png", "payload.label": "own"}
    assert (item.path, item.labels, item.payload) == ("000000000", ("cat",), kept)
    sample = {"0.png": png(1), "0.json": json.dumps({**own, "class": "cat"}).encode()}
    (item,) = WebDataset(shards=str(tarred(tmp_path / "x.tar", sample)), label="class").items()
    assert (item.path, item.labels, item.payload) == ("x/0.png", ("cat",), kept)


def test_huggingface_saved_by_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "tags": datasets.Sequence(datasets.Value("string")),
        }
    )
    rows = {
        "image": [{"bytes": png(number), "path": None} for number in range(5)],
        "label": [0, 1, 0, 1, 0],
        "tags": [["a", "b"]] * 5,
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    both = datasets.DatasetDict({"train": made, "test": made.select([4, 0])})
    both.save_to_disk(tmp_path / "both", num_shards={"train": 2, "test": 1})
    source = HuggingFace(path=str(tmp_path / "both"), split="train")
    assert [item.labels for item in source.items()] == [("cat",), ("dog",), ("cat",), ("dog",), ("cat",)]
    assert source.items()[2].payload == {"tags": ["a", "b"]}
    assert [source.read(number).getpixel((0, 0))[0] for number in range(5)] == [0, 20, 40, 60, 80]
    test = HuggingFace(path=str(tmp_path / "both" / "test"))
    assert [test.read(number).getpixel((0, 0))[0] for number in range(2)] == [80, 0]
    with pytest.raises(InputError, match="has several splits; choose one by option split: train, test"):
        HuggingFace(path=str(tmp_path / "both")).items()
    with pytest.raises(InputError, match="has no split 'val', but train, test"):
        HuggingFace(path=str(tmp_path / "both"), split="val").items()
    gone = sorted((tmp_path / "both" / "train").glob("*.arrow"))[1]
    gone.rename(tmp_path / "kept")
    with pytest.raises(InputError, match=r"train was copied or downloaded in part: 1 of 2 files are there"):
        HuggingFace(path=str(tmp_path / "both"), split="train").items()
    content = (tmp_path / "kept").read_bytes()
    gone.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"source 'huggingface': .*arrow is cut short or damaged"):
        HuggingFace(path=str(tmp_path / "both"), split="train").items()
    shutil.rmtree(tmp_path / "both" / "train")
    with pytest.raises(InputError, match=r"was copied in part: there is no state\.json"):
        HuggingFace(path=str(tmp_path / "both"), split="train").items()


def test_huggingface_bad_input(tmp_path: Path) -> None:
    folder = parquet(tmp_path / "set")
    for options, message in (
        ({"image": "picture"}, "has no column 'picture': give option image; it has image, label, name, score"),
        ({"label": "class"}, "has no column 'class': give option label"),
        ({"key": "id"}, "has no column 'id': give option key"),
        ({"split": "test"}, "has no split 'test', but train"),
        ({"path": str(tmp_path / "nowhere")}, "source 'huggingface': no such folder: .*nowhere"),
        ({"path": str(tmp_path / "empty")}, "no Arrow or Parquet files below .*empty"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=message):
            HuggingFace(**{"path": str(folder), **options}).items()
    twice = parquet(tmp_path / "twice", files=1)
    with pytest.raises(InputError, match="'0' is there twice"):
        HuggingFace(path=str(twice), key="label").items()
    (tmp_path / "saved").mkdir()
    for state in ("{}", '{"_data_files": [{"name": "x"}]}', '{"_data_files": 3}', '{"_data_files": []}'):
        (tmp_path / "saved" / "state.json").write_text(state)
        with pytest.raises(InputError, match=r"saved (is damaged: its state\.json|was copied or downloaded in part)"):
            HuggingFace(path=str(tmp_path / "saved")).items()
    tables, file = pytest.importorskip("pyarrow.parquet"), twice / "train-00000-of-00001.parquet"
    for noted in (b"no JSON", b"3", b'{"info": 3}', b'{"info": {"features": 3}}'):
        tables.write_table(tables.read_table(file).replace_schema_metadata({b"huggingface": noted}), file)
        with pytest.raises(InputError, match="what it says of its columns cannot be read"):
            HuggingFace(path=str(twice)).items()
    (folder / "train-00001-of-00002.parquet").rename(tmp_path / "kept")
    with pytest.raises(InputError, match="set was copied or downloaded in part: 1 of 2 files are there"):
        HuggingFace(path=str(folder)).items()
    (folder / "train-00001-of-00002.parquet").write_bytes((tmp_path / "kept").read_bytes()[:-50])
    with pytest.raises(InputError, match=r"train-00001-of-00002\.parquet is cut short or damaged"):
        HuggingFace(path=str(folder)).items()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/0000", "train/0002"], "downloaded in part: 2 of 3 files are there"),
        (["train/0001"], "downloaded in part: 1 of 2 files are there"),
        (
            ["train-00000-of-00002", "train-00001-of-00003"],
            "several data sets with a split 'train'; .*: train-0000",
        ),
        (["small/train-00000-of-00002", "large/train-00001-of-00002"], "give the folder of one as path: large/train-"),
        (["small/train/0000", "large/train/0001"], "give the folder of one as path: large/train/0001.parquet, small/"),
        (["train-00000-of-00002-0123456789abcdef"], "downloaded in part: 1 of 2 files are there"),
        (["train/0000", "train/0001"], None),
        (["train-00001-of-00002-0123456789abcdef", "train-00000-of-00002-fedcba9876543210"], None),
    ],
)
def test_huggingface_takes_whole_data_sets_alone(names: list[str], message: str | None, tmp_path: Path) -> None:
    whole = parquet(tmp_path / "made", files=1) / "train-00000-of-00001.parquet"
    for name in names:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole, tmp_path / "set" / f"{name}.parquet")
    source = HuggingFace(path=str(tmp_path / "set"), split="train")
    if message is None:
        assert len(source.items()) == 6
        return
    with pytest.raises(InputError, match=message):
        source.items()


def test_huggingface_rows_without_a_label_or_a_name(tmp_path: Path) -> None:
    arrow, write = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    rows = {"image": [png(1)] * 3, "label": [1, -1, None], "name": ["a", "b", None], "count": [-1, 2, 3]}
    table = arrow.table(rows).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    write.write_table(table, tmp_path / "train.parquet")
    assert [item.labels for item in HuggingFace(path=str(tmp_path)).items()] == [("dog",), (), ()]
    counted = HuggingFace(path=str(tmp_path), label="count").items()
    assert [item.labels for item in counted] == [("-1",), ("2",), ("3",)]
    for options, message in (
        ({"key": "image"}, "the column 'image' holds images or bytes: give option key another"),
        ({"label": "image"}, "the column 'image' holds images or bytes: give option label another"),
        ({"key": "name"}, "row 3 has no text or number in column 'name', which is to name it: None"),
    ):
        with pytest.raises(InputError, match=message):
            HuggingFace(path=str(tmp_path), **options).items()


def test_huggingface_rows_without_an_image(tmp_path: Path) -> None:
    arrow, write = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "beside.png").write_bytes(png(3))
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    rows = [{"bytes": None, "path": "beside.png"}, {"bytes": None, "path": "gone.png"}, None]
    write.write_table(arrow.table({"image": arrow.array(rows, kind)}), tmp_path / "train.parquet")
    source = HuggingFace(path=str(tmp_path))
    assert source.read(0).getpixel((0, 0)) == (60, 0, 0)
    with pytest.raises(NoAccess, match=r"gone\.png: No such file"):
        source.read(1)
    with pytest.raises(BadImage, match="the row has no image"):
        source.read(2)


@pytest.mark.parametrize("name", ["zip", "webdataset", "huggingface"])
def test_a_collection_is_built_and_follows(name: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "zip": lambda: {"file": str(zipped(tmp_path / "x.zip"))},
        "webdataset": lambda: {"shards": str(shards(tmp_path / "shards"))},
        "huggingface": lambda: {"path": str(parquet(tmp_path / "set"))},
    }[name]()
    document = {
        "source": {"name": name, **options},
        "extractors": [{"name": "histogram"}],
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss-flat", "metric": "l2"}],
    }
    with Collection.build(parse_config(document), tmp_path / "x.cbir") as collection:
        count = len(registry.make("sources", name, **options).items())
        assert len(collection) == count
    with Collection.build(parse_config(document), tmp_path / "x.cbir") as again:
        assert (len(again), again.manifest.generation) == (count, collection.manifest.generation)


# -------------------------------------------------------------------------------------------------------------- vectors


def test_vectors_in_npz_and_parquet(tmp_path: Path) -> None:
    arrow, write = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    x = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", embedding=x, other=x[:3])
    assert np.array_equal(Vectors(file=str(tmp_path / "x.npz")).matrix(), x)
    assert len(Vectors(file=str(tmp_path / "x.npz"), key="other").items()) == 3
    lists = [row.tolist() for row in x]
    fixed = arrow.FixedSizeListArray.from_arrays(arrow.array(x.ravel()), 4)
    facts = {"path": [f"{n}.png" for n in range(5)], "label": ["a", None, "b", "a", "a"], "year": [1, 2, 3, 4, None]}
    for name, column in (("lists", arrow.array(lists, arrow.list_(arrow.float32()))), ("fixed", fixed)):
        write.write_table(arrow.table({"embedding": column, **facts}), tmp_path / f"{name}.parquet", row_group_size=2)
        source = Vectors(file=str(tmp_path / f"{name}.parquet"))
        assert np.array_equal(source.matrix(), x)
        assert np.array_equal(source.read(3), x[3])
        assert [item.path for item in source.items()] == facts["path"]
        assert [item.labels for item in source.items()[:3]] == [("a",), (), ("b",)]
        assert [item.payload for item in source.items()][3:] == [{"year": 4}, {}]


def test_vectors_in_hdf5_that_are_no_array(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_group("train")
        file["nothing"] = h5py.Empty("f4")
    for options in ({}, {"key": "nothing"}):
        with pytest.raises(InputError, match=r"x\.h5: '\w+' is no array: say which by option key"):
            Vectors(file=str(tmp_path / "x.h5"), **options).items()


def test_vectors_of_one_path_are_refused(tmp_path: Path) -> None:
    arrow, write = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    paths = ["a.png", "b.png", None, "a.png"]
    table = arrow.table({"embedding": [[1.0], [2.0], [3.0], [4.0]], "path": paths})
    write.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    with pytest.raises(InputError, match=r"x\.parquet: rows 1 and 4 have one path, 'a\.png'"):
        Vectors(file=str(tmp_path / "x.parquet")).items()
    np.save(tmp_path / "x.npy", np.eye(4))
    lines = "".join(json.dumps({"path": path} if path else {}) + "\n" for path in paths)
    for text, message in ((lines, "rows 1 and 4 have one path, 'a.png'"), (lines.replace("a.png", "b", 1), None)):
        (tmp_path / "x.jsonl").write_text(text)
        source = Vectors(file=str(tmp_path / "x.npy"), documents=str(tmp_path / "x.jsonl"))
        if message is None:
            assert [item.path for item in source.items()] == ["b", "b.png", "000000002", "a.png"]
        else:
            with pytest.raises(InputError, match=message):
                source.items()


def test_vectors_bad_parquet_and_npz(tmp_path: Path) -> None:
    arrow, write = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    ragged, holes = [[1.0, 2.0], [3.0]], [[1.0, 2.0], None]
    table = arrow.table({"ragged": ragged, "holes": holes, "texts": ["a", "b"], "words": [["a"], ["b"]]})
    write.write_table(table, tmp_path / "x.parquet")
    for key in ("ragged", "holes", "texts", "words"):
        with pytest.raises(InputError, match=r"x\.parquet: its column holds .*, not one vector a row"):
            Vectors(file=str(tmp_path / "x.parquet"), key=key).items()
    with pytest.raises(
        InputError, match="has no 'embedding', but ragged, holes, texts, words: say which by option key"
    ):
        Vectors(file=str(tmp_path / "x.parquet")).items()
    content = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(content[:-20])
    with pytest.raises(InputError, match=r"x\.parquet is not a whole Parquet file"):
        Vectors(file=str(tmp_path / "x.parquet")).items()
    np.savez(tmp_path / "x.npz", a=np.zeros(3), b=np.array([{}], object))
    with pytest.raises(InputError, match="has no 'embedding', but a, b"):
        Vectors(file=str(tmp_path / "x.npz")).items()
    for key in ("a", "b"):
        with pytest.raises(InputError, match=r"x\.npz"):
            Vectors(file=str(tmp_path / "x.npz"), key=key).items()
    np.save(tmp_path / "x.npy", np.zeros((2, 2)))
    for content in ((tmp_path / "x.npz").read_bytes()[:-30], (tmp_path / "x.npy").read_bytes(), b""):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.npz is not a whole \.npz file"):
            Vectors(file=str(tmp_path / "x.npz")).items()
