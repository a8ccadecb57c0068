"""Data sets that FiftyOne has exported, written here as it writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cbir_faiss.collection import Collection
from cbir_faiss.config import parse_config
from cbir_faiss.errors import BadImage, InputError
from cbir_faiss.sources.fiftyone import FiftyOne
from cbir_faiss.testing import SourceContract

LABEL = "fiftyone.core.labels."


def classification(label: str | None, **more: Any) -> dict[str, Any]:
    return {"_id": {"$oid": "66a0"}, "_cls": "Classification", "tags": [], "label": label, "logits": None, **more}


def detections(*labels: str) -> dict[str, Any]:
    boxes = [
        {
            "_id": {"$oid": "66b0"},
            "_cls": "Detection",
            "label": label,
            "bounding_box": [0.1, 0.1, 0.5, 0.5],
            "index": None,
        }
        for label in labels
    ]
    return {"_cls": "Detections", "detections": boxes}


def sample(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "_id": {"$oid": f"{number:024x}"},
        "_media_type": "image",
        "_rand": 0.9 / (number + 1),
        "_dataset_id": {"$oid": "f" * 24},
        "filepath": f"data/{number:06}.png",
        "tags": ["validation"] if number % 2 else [],
        "metadata": {"_cls": "ImageMetadata", "size_bytes": {"$numberLong": "99"}, "width": 6, "height": 4},
        "created_at": {"$date": "2024-07-22T14:19:31.123Z"},
        "last_modified_at": {"$date": 1_721_657_971_123},
        **fields,
    }


def exported(folder: Path, samples: list[dict[str, Any]] | None = None) -> Path:
    if samples is None:
        samples = [sample(n, ground_truth=classification(["cat", "dog"][n % 2]), uniqueness=n / 4) for n in range(4)]
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(samples):
        if str(one.get("filepath", "")).startswith("data/"):
            Image.new("RGB", (6, 4), (number * 20, 0, 0)).save(folder / one["filepath"])
    fields = [{"name": "ground_truth", "ftype": "EmbeddedDocumentField", "embedded_doc_type": f"{LABEL}Classification"}]
    metadata = {"_id": {"$oid": "f" * 24}, "version": "1.0.1", "media_type": "image", "sample_fields": fields}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    (folder / "samples.json").write_text(json.dumps({"samples": samples}))
    return folder


class TestFiftyOneContract(SourceContract):
    plugin = FiftyOne

    def place_options(self, place: Path) -> Mapping[str, Any]:
        return {"path": str(exported(place / "set"))}


def test_fields_called_path_and_label_are_payload(tmp_path: Path) -> None:
    made = sample(0, ground_truth=classification("cat"), path="own/1.png", label="own")
    (item,) = FiftyOne(path=str(exported(tmp_path, [made]))).items()
    assert (item.path, item.labels) == ("data/000000.png", ("cat",))
    assert (item.payload["payload.path"], item.payload["payload.label"]) == ("own/1.png", "own")


def test_what_samples_bring(tmp_path: Path) -> None:
    source = FiftyOne(path=str(exported(tmp_path)))
    items = source.items()
    assert [(item.path, item.labels) for item in items] == [
        (f"data/{n:06}.png", (["cat", "dog"][n % 2],)) for n in range(4)
    ]
    assert items[1].payload == {
        "id": f"{1:024x}",
        "tags": ["validation"],
        "created_at": "2024-07-22T14:19:31.123Z",
        "last_modified_at": "2024-07-22T14:19:31.123000+00:00",
        "uniqueness": 0.25,
    }
    assert source.root == tmp_path
    assert source.read(2).getpixel((0, 0)) == (40, 0, 0)
    assert source.stamp(0) is not None


def test_fields_of_labels(tmp_path: Path) -> None:
    several = {"_cls": "Classifications", "classifications": [classification("red"), classification("wet")]}
    given = sample(
        0, ground_truth=detections("car", "bus", "car"), weather=several, species="fox", none=classification(None)
    )
    folder = exported(tmp_path, [given, sample(1, ground_truth=None, weather=None, species=None, none=None)])
    for field, labels in (
        (None, ("car", "bus")),
        ("weather", ("red", "wet")),
        ("species", ("fox",)),
        ("none", ()),
        ("tags", ()),
    ):
        first, second = FiftyOne(path=str(folder), label_field=field).items()
        assert first.labels == labels
        assert second.labels == (("validation",) if field == "tags" else ())
        assert (field or "ground_truth") not in first.payload
    assert first.payload["ground_truth"] == ["car", "bus", "car"]
    assert first.payload["weather"] == ["red", "wet"]


def test_the_only_field_of_classifications_is_the_labels(tmp_path: Path) -> None:
    only = exported(tmp_path / "only", [sample(n, kind=classification("cat"), boxes=detections("x")) for n in range(2)])
    assert [item.labels for item in FiftyOne(path=str(only)).items()] == [("cat",)] * 2
    none = exported(tmp_path / "none", [sample(0, boxes=detections("x"))])
    assert FiftyOne(path=str(none)).items()[0].labels == ()
    two = exported(tmp_path / "two", [sample(0, b=classification("x")), sample(1, a=classification("y"))])
    with pytest.raises(InputError, match="several fields of classifications: give option label_field: a, b"):
        FiftyOne(path=str(two)).items()


def test_values_that_json_does_not_have(tmp_path: Path) -> None:
    values = {
        "embedding": {"$binary": {"base64": "AAAA", "subType": "00"}},
        "mask": {"_cls": "Segmentation", "mask": {"$binary": "AAAA", "$type": "00"}, "path": "fields/m.png"},
        "count": {"$numberLong": str(2**60)},
        "score": {"$numberDouble": "NaN"},
        "plain": float("nan"),
        "broken": {"$numberInt": "many"},
        "late": {"$date": {"$numberLong": "9" * 30}},
        "box": {"_cls": "DynamicEmbeddedDocument", "_id": {"$oid": "1"}, "corner": [1, {"$numberInt": "2"}]},
        "label": "a field of this name",
    }
    (item,) = FiftyOne(path=str(exported(tmp_path, [sample(0, **values)]))).items()
    kept = {key: item.payload[key] for key in values if key in item.payload}
    assert kept == {"mask": {"path": "fields/m.png"}, "count": 2**60, "box": {"corner": [1, 2]}}


def test_other_ways_to_export(tmp_path: Path) -> None:
    """A file for each sample; images that were left where they are; videos among them."""
    folder, images = exported(tmp_path / "set", []), tmp_path / "images"
    images.mkdir()
    for name in "ab":
        Image.new("RGB", (6, 4)).save(images / f"{name}.png")
    video = {**sample(2, filepath="c.mp4"), "_media_type": "video"}
    samples = [sample(0, filepath="b.png"), sample(1, filepath=str(images / "a.png")), video]
    (folder / "samples.json").unlink()
    (folder / "samples").mkdir()
    for number, one in enumerate(samples):
        (folder / "samples" / f"{number:06}-{one['_id']['$oid']}.json").write_text(json.dumps(one))
    source = FiftyOne(path=str(folder), root=str(images))
    assert [item.path for item in source.items()] == [str(images / "a.png"), "b.png"]
    assert [source.read(n).size for n in range(2)] == [(6, 4)] * 2


def test_a_build_from_it(tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "source": {"name": "fiftyone", "path": str(exported(tmp_path / "set"))},
        "extractors": [{"name": "histogram"}],
        "codecs": [{"name": "raw"}],
        "backends": [{"name": "faiss-flat"}],
    }
    with Collection.build(parse_config(document), tmp_path / "x.cbir") as collection:
        (hits,) = collection.search([tmp_path / "set" / "data" / "000001.png"], 4, where={"tags": "validation"})
        assert {hit.path for hit in hits} == {"data/000001.png", "data/000003.png"}


def test_a_missing_file_is_one_that_fails(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    (folder / "data" / "000001.png").unlink()
    source = FiftyOne(path=str(folder))
    assert len(source.items()) == 4
    with pytest.raises(BadImage, match="No such file"):
        source.content_key(1)


def wrote(folder: Path, samples: Any = None, metadata: str = "{}") -> None:
    (folder / "metadata.json").write_text(metadata)
    (folder / "samples.json").write_text(samples if isinstance(samples, str) else json.dumps(samples))


@pytest.mark.parametrize(
    ("samples", "options", "told"),
    [
        ('{"samples": [{"filepath"', {}, "samples.json is not whole: "),
        ("[" * 100_000, {}, "samples.json is not whole: "),
        ("\udcff\udcfe", {}, "samples.json is not whole: "),
        ([1], {}, "samples.json must be a JSON object, not list"),
        ({"items": []}, {}, "samples.json has no list 'samples'"),
        ({"samples": ["a.png"]}, {}, "samples.json has no list 'samples'"),
        ({"samples": [{"tags": []}]}, {}, "sample 1: 'filepath' must be the path of an image, not None"),
        ({"samples": [{"filepath": "a\0"}]}, {}, "sample 1: 'filepath' must be the path of an image"),
        ({"samples": [{"filepath": "a"}] * 2}, {}, "sample 2: 'a' is there twice"),
        ({"samples": [{"filepath": "a", "tags": ["\ud800"]}]}, {}, "sample 1: it holds a lone surrogate"),
        ({"samples": []}, {}, "is empty: no sample that is an image"),
        ({"samples": [sample(0, ground_truth=None)]}, {"label_field": "grund_truth"}, "did you mean ground_truth?"),
        ({"samples": [sample(0)]}, {"label_field": "x"}, "no sample has a field 'x'"),
    ],
)
def test_damaged_exports(samples: Any, options: dict[str, Any], told: str, tmp_path: Path) -> None:
    wrote(tmp_path)
    text = samples if isinstance(samples, str) else json.dumps(samples)
    (tmp_path / "samples.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as error:
        FiftyOne(path=str(tmp_path), **options).items()
    assert told in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_folders_that_are_no_export(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name, told in (("nowhere", "no such folder"), ("file", "not a folder"), ("", "no metadata.json there")):
        with pytest.raises(InputError, match=told):
            FiftyOne(path=str(tmp_path / name)).items()
    (tmp_path / "metadata.json").write_text("{}")
    with pytest.raises(InputError, match=r"no samples\.json there: give the folder of an export as FiftyOneDataset"):
        FiftyOne(path=str(tmp_path)).items()
    wrote(tmp_path, {"samples": []}, "{")
    with pytest.raises(InputError, match=r"metadata\.json is not whole"):
        FiftyOne(path=str(tmp_path)).items()
