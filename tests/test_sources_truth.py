"""Sources with a ground truth of their own, on tiny files in the formats of Oxford5k, Paris6k and INRIA Holidays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cbir_faiss.comparison.run import run
from cbir_faiss.config import load_config
from cbir_faiss.errors import BadImage, ConfigError, InputError
from cbir_faiss.sources.holidays import Holidays
from cbir_faiss.sources.oxford import Oxford
from cbir_faiss.testing import SourceContract

TRUTH = {
    # as in the data: the first query's own picture is good, and what is junk to one landmark is plain to the other
    "all_souls_1": (
        "oxc1_all_souls_000013 2.4 1.5 20 14.0",
        ["all_souls_000013"],
        ["all_souls_000026"],
        ["radcliffe_1"],
    ),
    "all_souls_2": ("oxc1_all_souls_000026 0 0 32 24", ["all_souls_000013"], ["all_souls_000026"], ["radcliffe_1"]),
    "radcliffe_1": ("oxc1_radcliffe_2 5 5 30 20", ["radcliffe_1", "radcliffe_2"], [], []),
}
IMAGES = ("all_souls_000013", "all_souls_000026", "radcliffe_1", "radcliffe_2", "christ_church_7")


def oxford(place: Path) -> Path:
    rng = np.random.default_rng(0)
    (place / "jpg" / "deeper").mkdir(parents=True)
    for number, name in enumerate(IMAGES):
        folder = place / "jpg" / ("deeper" if number == 4 else "")
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    (place / "gt").mkdir()
    for name, (query, *lists) in TRUTH.items():
        (place / "gt" / f"{name}_query.txt").write_text(query + "\n")
        for kind, images in zip(("good", "ok", "junk"), lists, strict=True):
            (place / "gt" / f"{name}_{kind}.txt").write_text("".join(f"{image}\n" for image in images))
    return place


def holidays(place: Path, numbers: tuple[int, ...] = (100000, 100001, 100002, 100100, 100101)) -> Path:
    rng = np.random.default_rng(0)
    place.mkdir(exist_ok=True)
    for number in numbers:
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(place / f"{number}.jpg")
    return place


def options(place: Path, **more: Any) -> dict[str, Any]:
    return {"images": str(place / "jpg"), "truth": str(place / "gt"), **more}


class TestOxfordContract(SourceContract):
    plugin = Oxford

    def place_options(self, place: Path) -> Mapping[str, Any]:
        return options(oxford(place / "here") if not (place / "here").exists() else place / "here")


class TestOxfordQueriesContract(SourceContract):
    plugin = Oxford

    def place_options(self, place: Path) -> Mapping[str, Any]:
        return options(oxford(place / "here") if not (place / "here").exists() else place / "here", part="queries")


class TestHolidaysContract(SourceContract):
    plugin = Holidays

    def place_options(self, place: Path) -> Mapping[str, Any]:
        return {"root": str(holidays(place / "here"))}


# ------------------------------------------------------------------------------------------------------------- oxford


def test_labels_are_the_queries_an_image_answers(tmp_path: Path) -> None:
    items = Oxford(**options(oxford(tmp_path))).items()
    assert [(item.path, item.labels, item.ignored) for item in items] == [
        ("all_souls_000013.png", ("all_souls_1", "all_souls_2"), ()),
        ("all_souls_000026.png", ("all_souls_1", "all_souls_2"), ()),
        ("deeper/christ_church_7.png", (), ()),
        ("radcliffe_1.png", ("radcliffe_1",), ("all_souls_1", "all_souls_2")),
        ("radcliffe_2.png", ("radcliffe_1",), ()),
    ]


def test_a_query_is_the_box_of_its_picture(tmp_path: Path) -> None:
    place = oxford(tmp_path)
    cropped, whole = (Oxford(**options(place, part="queries", crop=crop)) for crop in (True, False))
    assert [(item.path, item.labels) for item in cropped.items()] == [(name, (name,)) for name in TRUTH]
    assert cropped.items()[0].payload == {"image": "all_souls_000013", "box": [2.4, 1.5, 20.0, 14.0]}
    pixels = np.asarray(whole.read(0))
    assert pixels.shape == (24, 32, 3)
    np.testing.assert_array_equal(cropped.read(0), pixels[2:14, 2:20])
    np.testing.assert_array_equal(cropped.read(0, min_side=4), pixels[2:14, 2:20])
    np.testing.assert_array_equal(cropped.read(1), whole.read(1))  # its box is all of it
    assert cropped.content_key(0) != whole.content_key(0)
    assert cropped.stamp(0) == whole.stamp(0)
    assert whole.content_key(0) == Oxford(**options(place)).content_key(0)


def test_a_box_reaches_beyond_the_picture(tmp_path: Path) -> None:
    place = oxford(tmp_path)
    (place / "gt" / "all_souls_1_query.txt").write_text("oxc1_all_souls_000013 -3 10 99 99\n")
    (place / "gt" / "all_souls_2_query.txt").write_text("all_souls_000026 40 0 60 9\n")
    source = Oxford(**options(place, part="queries"))
    assert source.read(0).size == (32, 14)
    with pytest.raises(BadImage, match="lies outside of its 32 x 24 pixels"):
        source.read(1)


def test_an_image_in_two_lists(tmp_path: Path) -> None:
    """Good and ok is right once; junk wins, as in the data's own evaluation."""
    place = oxford(tmp_path)
    (place / "gt" / "all_souls_1_ok.txt").write_text("all_souls_000013\nall_souls_000013\nradcliffe_1\n")
    items = {item.path: item for item in Oxford(**options(place)).items()}
    assert items["all_souls_000013.png"].labels == ("all_souls_1", "all_souls_2")
    assert "all_souls_1" in items["radcliffe_1.png"].ignored


@pytest.mark.parametrize("kind", ["good", "ok", "junk"])
def test_a_list_is_missing(tmp_path: Path, kind: str) -> None:
    place = oxford(tmp_path)
    (place / "gt" / f"all_souls_2_{kind}.txt").unlink()
    with pytest.raises(InputError, match=f"cannot read .*all_souls_2_{kind}.txt: No such file"):
        Oxford(**options(place)).items()


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("all_souls_1_query.txt", "", "one line 'image x1 y1 x2 y2', got 0 lines"),
        ("all_souls_1_query.txt", "a 1 2 3 4\nb 1 2 3 4", "got 2 lines"),
        ("all_souls_1_query.txt", "oxc1_all_souls_000013 1 2 3", "must be 'image x1 y1 x2 y2', not"),
        ("all_souls_1_query.txt", "oxc1_all_souls_000013 1 2 3 x", "must be 'image x1 y1 x2 y2', not"),
        ("all_souls_1_query.txt", "oxc1_all_souls_000013 9 2 3 4", "a box with x1 < x2"),
        ("all_souls_1_query.txt", "oxc1_all_souls_000013 1 2 nan 4", "a box with x1 < x2"),
        ("all_souls_1_good.txt", "two names", "one image name a line, not 'two names'"),
        ("all_souls_1_junk.txt", "nowhere_1\nnowhere_0\n", "'all_souls_1' names 2 images .*'nowhere_0' first"),
        ("all_souls_1_query.txt", "oxc1_nowhere 1 2 3 4", "names 1 images .*'nowhere' first; missing: skip"),
    ],
)
def test_a_file_of_another_form(tmp_path: Path, file: str, text: str, message: str) -> None:
    place = oxford(tmp_path)
    (place / "gt" / file).write_text(text)
    for part in ("database", "queries"):
        with pytest.raises(InputError, match=message):
            Oxford(**options(place, part=part)).items()


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    place = oxford(tmp_path)
    (place / "gt" / "all_souls_1_ok.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"all_souls_1_ok.txt: not UTF-8 text"):
        Oxford(**options(place)).items()


def test_missing_pictures_can_be_left_out(tmp_path: Path) -> None:
    place = oxford(tmp_path)
    (place / "jpg" / "radcliffe_2.png").unlink()
    database, queries = (Oxford(**options(place, part=part, missing="skip")) for part in ("database", "queries"))
    assert len(database.items()) == 4
    assert [item.path for item in queries.items()] == ["all_souls_1", "all_souls_2"]
    assert database.items()[-1].labels == ()  # nobody asks for the radcliffe any more


def test_a_wrong_place(tmp_path: Path) -> None:
    place = oxford(tmp_path)
    with pytest.raises(InputError, match=r"no such folder: .*nowhere"):
        Oxford(images=str(place / "nowhere"), truth=str(place / "gt")).items()
    with pytest.raises(InputError, match=r"not a folder: .*all_souls_1_ok.txt"):
        Oxford(images=str(place / "jpg"), truth=str(place / "gt" / "all_souls_1_ok.txt")).items()
    with pytest.raises(InputError, match=r"no \*_query.txt in"):
        Oxford(images=str(place / "jpg"), truth=str(place / "jpg")).items()
    with pytest.raises(ConfigError, match="part"):
        Oxford(**options(place, part="junk"))
    shutil.copy(place / "jpg" / "radcliffe_1.png", place / "jpg" / "deeper" / "radcliffe_1.jpg")
    with pytest.raises(InputError, match="two pictures are called 'radcliffe_1'"):
        Oxford(**options(place)).items()
    shutil.rmtree(place / "jpg")
    (place / "jpg").mkdir()
    with pytest.raises(InputError, match="is empty: no image file"):
        Oxford(**options(place, missing="skip")).items()


# ---------------------------------------------------------------------------------------------------------- revisited


def revisited(place: Path, **changed: Any) -> dict[str, Any]:
    """Four images of the database, two queries; the fifth picture is in no list."""
    oxford(place)
    gnd = [
        {"bbx": [2.4, 1.5, 20.0, 14.0], "easy": [0], "hard": [1, 2], "junk": [3]},
        {"bbx": [0, 0, 32, 24], "easy": [], "hard": [2], "junk": []},
    ]
    content = {"imlist": [*IMAGES[1:3], *IMAGES[3:]], "qimlist": [IMAGES[0], IMAGES[1]], "gnd": gnd, **changed}
    (place / "gnd.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return {"images": str(place / "jpg"), "truth": str(place / "gnd.json")}


class TestRevisitedContract(SourceContract):
    plugin = Oxford

    def place_options(self, place: Path) -> Mapping[str, Any]:
        if (place / "here").exists():
            return {"images": str(place / "here/jpg"), "truth": str(place / "here/gnd.json")}
        return revisited(place / "here")


@pytest.mark.parametrize(
    ("protocol", "right", "ignored", "queries"),
    [
        ("easy", {0: "13"}, {1: "13", 2: "13", 3: "13"}, ["all_souls_000013"]),
        ("medium", {0: "13", 1: "13", 2: "13 26"}, {3: "13"}, ["all_souls_000013", "all_souls_000026"]),
        ("hard", {1: "13", 2: "13 26"}, {0: "13", 3: "13"}, ["all_souls_000013", "all_souls_000026"]),
    ],
)
def test_the_protocols_of_revisited_oxford(
    protocol: str, right: dict[int, str], ignored: dict[int, str], queries: list[str], tmp_path: Path
) -> None:
    """Radenović et al.: what is right, and what neither right nor wrong; queries with nothing to find are left out."""
    place = revisited(tmp_path)
    database, asked = (Oxford(**place, protocol=protocol, part=part) for part in ("database", "queries"))
    names = [*IMAGES[1:3], *IMAGES[3:]]
    items = {Path(item.path).stem: item for item in database.items()}
    assert set(items) == set(names)  # the first query's picture is not in the database
    for number, name in enumerate(names):
        assert items[name].labels == tuple(f"all_souls_0000{q}" for q in right.get(number, "").split())
        assert items[name].ignored == tuple(f"all_souls_0000{q}" for q in ignored.get(number, "").split())
    assert [item.path for item in asked.items()] == queries
    assert asked.read(0).size == (18, 12)
    if protocol == "medium":
        assert Oxford(**place).items() == database.items()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gnd": None}, "no 'gnd'"),
        ({"imlist": None}, "no 'imlist'"),
        ({"gnd": []}, "zip"),
        ({"gnd": [1, 2]}, "not the ground truth"),
        ({"gnd": [{"bbx": [0, 0, 1, 1], "easy": [0], "hard": []}] * 2}, "no 'junk'"),
        ({"gnd": [{"bbx": [0, 0, 1, 1], "easy": [9], "hard": [], "junk": []}] * 2}, "lists an image that is no number"),
        ({"gnd": [{"bbx": [0, 0, 1], "easy": [0], "hard": [], "junk": []}] * 2}, "not the ground truth"),
        ({"gnd": [{"bbx": [5, 0, 1, 1], "easy": [0], "hard": [], "junk": []}] * 2}, "must have x1 < x2 and y1 < y2"),
        ({"imlist": ["nowhere"] * 4}, "1 of 1 images of imlist .*: 'nowhere'; missing: skip"),
    ],
)
def test_a_revisited_truth_of_another_form(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Oxford(**revisited(tmp_path, **changed)).items()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["database", "queries"])
def test_images_of_the_revisited_database_without_a_picture(part: str, tmp_path: Path) -> None:
    """Those that are in no query's lists too: half of the distractors may be absent."""
    lost = [f"distractor_{number}" for number in range(5)]
    place = revisited(tmp_path, imlist=[*IMAGES[1:3], *IMAGES[3:], *lost])
    message = (
        "5 of 9 images of imlist are not below .*: 'distractor_0', 'distractor_1', 'distractor_2', …; missing: skip"
    )
    with pytest.raises(InputError, match=message):
        Oxford(**place, part=part).items()
    found = Oxford(**place, part=part, missing="skip").items()
    assert len(found) == {"database": 4, "queries": 2}[part]
    with pytest.raises(InputError, match=r"query 'nobody' names 1 images .*'nobody' first; missing: skip"):
        Oxford(**revisited(tmp_path / "other", qimlist=["nobody", IMAGES[1]]), part=part).items()


def test_a_revisited_truth_that_is_not_there(tmp_path: Path) -> None:
    place = revisited(tmp_path)
    for content, message in (
        ("{", "not the ground truth of revisited"),
        (None, "cannot read .*gnd.json: No such file"),
    ):
        (tmp_path / "gnd.json").unlink() if content is None else (tmp_path / "gnd.json").write_text(content)
        with pytest.raises(InputError, match=message):
            Oxford(**place).items()
    with pytest.raises(ConfigError, match=r"a protocol is of the revisited data, whose truth is a \.json file"):
        Oxford(**options(tmp_path, protocol="hard"))


# ----------------------------------------------------------------------------------------------------------- holidays


def test_the_first_of_a_group_asks_for_the_rest(tmp_path: Path) -> None:
    root = holidays(tmp_path / "jpg")
    items = Holidays(root=str(root)).items()
    assert [(item.path, item.labels, item.ignored) for item in items] == [
        ("100000.jpg", ("1000",), ("1000",)),
        ("100001.jpg", ("1000",), ()),
        ("100002.jpg", ("1000",), ()),
        ("100100.jpg", ("1001",), ("1001",)),
        ("100101.jpg", ("1001",), ()),
    ]
    queries = Holidays(root=str(root), part="queries").items()
    assert [(item.path, item.labels) for item in queries] == [("100000.jpg", ("1000",)), ("100100.jpg", ("1001",))]


def test_holidays_of_another_form(tmp_path: Path) -> None:
    root = holidays(tmp_path / "jpg")
    for name, message in (("sunset.jpg", "is a number such as 100000.jpg, not sunset.jpg"), ("²00.jpg", "is a number")):
        shutil.copy(root / "100000.jpg", root / name)
        with pytest.raises(InputError, match=message):
            Holidays(root=str(root)).items()
        (root / name).unlink()
    shutil.copy(root / "100000.jpg", root / "100000.png")
    with pytest.raises(InputError, match="two pictures have the number 100000"):
        Holidays(root=str(root)).items()
    (root / "100000.png").unlink()
    (root / "100100.jpg").unlink()
    for part in ("database", "queries"):
        with pytest.raises(InputError, match=r"1 groups have no query, 1001 first: 100100.jpg is not below"):
            Holidays(root=str(root), part=part).items()
    with pytest.raises(InputError, match="no such folder"):
        Holidays(root=str(root / "x")).items()
    with pytest.raises(InputError, match="not a folder"):
        Holidays(root=str(root / "100000.jpg")).items()
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="is empty: no image file"):
        Holidays(root=str(tmp_path / "none")).items()


# -------------------------------------------------------------------------------------------------------- comparisons

CONFIG = """\
source: {{name: {source}}}
queries: {{source: {{name: {source}, part: queries}}}}
extractors: [{{name: histogram}}]
codecs: [{{name: raw}}, {{name: lsh, bits: 512}}]
backends: [{{name: faiss-flat}}, {{name: faiss-binary-flat}}]
metrics: {{k: [1, 50]}}
"""


@pytest.mark.usefixtures("only_measured")
def test_holidays_compared(tmp_path: Path) -> None:
    """No query finds itself, and what it finds instead is counted from the first rank."""
    root = holidays(tmp_path / "jpg")
    for path in root.iterdir():
        Image.new("RGB", (32, 24), (250, 10, 10) if path.name < "1001" else (10, 10, 250)).save(path)
    (tmp_path / "c.yaml").write_text(CONFIG.format(source="holidays, root: jpg"))
    results = run(load_config(tmp_path / "c.yaml"), tmp_path / "out")
    for row in results["rows"]:
        assert (row["items"], row["queries"]) == (5, 2)
        ids = np.load(tmp_path / "out" / row["raw"])["ids"]
        assert 0 in ids[0]  # the hits are stored as they were found, the query's own picture among them
        assert row["metrics"]["precision@1"] == row["metrics"]["map_full@50"] == 1.0
        assert row["metrics"]["recall@50"] == 1.0
        assert row["metrics"]["precision@50"] == pytest.approx((2 + 1) / 2 / 50)
    (gallery,) = json.loads((tmp_path / "out" / "gallery.json").read_text())
    for query in gallery["queries"]:
        shown = [gallery["pictures"][place] for hits in query["found"].values() for place, _ in hits]
        assert shown
        assert all(shot["path"] != query["path"] for shot in shown)


def compute_ap(ranking: list[str], right: set[str]) -> float:
    """As the program that comes with Oxford5k has it, line by line; ``ranking`` is without junk."""
    old_recall, old_precision, ap, intersect_size = 0.0, 1.0, 0.0, 0
    for j, name in enumerate(ranking):
        intersect_size += name in right
        recall, precision = intersect_size / len(right), intersect_size / (j + 1.0)
        ap += (recall - old_recall) * ((old_precision + precision) / 2.0)
        old_recall, old_precision = recall, precision
    return ap


@pytest.mark.usefixtures("only_measured")
def test_oxford_compared(tmp_path: Path) -> None:
    """By hand: whole pictures as queries find their own first, so that AP follows from the order of the rest."""
    oxford(tmp_path)
    source = "oxford, images: jpg, truth: gt"
    (tmp_path / "c.yaml").write_text(
        CONFIG.format(source=source).replace("part: queries", "part: queries, crop: false")
    )
    row = run(load_config(tmp_path / "c.yaml"), tmp_path / "out")["rows"][0]
    ids = np.load(tmp_path / "out" / row["raw"])["ids"]
    names = ["all_souls_000013", "all_souls_000026", "christ_church_7", "radcliffe_1", "radcliffe_2"]
    expected, official = [], []
    for query, (_, good, ok, junk) in enumerate(TRUTH.values()):
        ranking = [names[i] for i in ids[query] if i >= 0 and names[i] not in junk]
        right = [name in good + ok for name in ranking]
        precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        expected.append((precision * right).sum() / len(good + ok))
        official.append(compute_ap(ranking, set(good + ok)))
    assert row["metrics"]["map_full@50"] == pytest.approx(np.mean(expected))
    assert row["metrics"]["map_trapezoid@50"] == pytest.approx(np.mean(official))
    assert row["metrics"]["map@1"] == 1.0
