"""Source `altered`: what is done to each image, that nothing else changes, and what wrong options get."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cbir_faiss.comparison.run import run
from cbir_faiss.config import load_config
from cbir_faiss.errors import BadImage, ConfigError
from cbir_faiss.sources.altered import Altered
from cbir_faiss.sources.folder import Folder
from cbir_faiss.testing import SourceContract


def of(root: Path, **options: Any) -> Altered:
    return Altered(of={"name": "folder", "root": str(root)}, **options)


def pixels(image: Any) -> np.ndarray:
    return np.asarray(image).astype(int)


class TestAlteredContract(SourceContract):
    plugin = Altered

    def place_options(self, place: Path) -> Mapping[str, Any]:
        rng = np.random.default_rng(0)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (8, 6, 3), dtype=np.uint8)).save(place / f"{i}.png")
        return {"of": {"name": "folder", "root": str(place)}, "rotate": 30, "crop": 0.7, "brightness": 1.5}


@pytest.fixture
def corner(tmp_path: Path) -> Path:
    """One grey picture of 40 x 20, its upper left quarter white."""
    image = Image.new("RGB", (40, 20), (100, 100, 100))
    image.paste((255, 255, 255), (0, 0, 20, 10))
    image.save(tmp_path / "a.png")
    return tmp_path


def test_rotate(corner: Path) -> None:
    turned = of(corner, rotate=90).read(0)
    assert turned.size == (20, 40)
    assert np.array_equal(pixels(turned), np.rot90(pixels(Folder(root=str(corner)).read(0))))
    tilted = of(corner, rotate=30).read(0)
    assert tilted.width > 40
    assert pixels(tilted)[0, 0].tolist() == [0, 0, 0]
    assert (pixels(tilted).max(axis=2) > 90).sum() == pytest.approx(800, rel=0.05)  # nothing of it is lost


def test_crop(corner: Path) -> None:
    image = of(corner, crop=0.5).read(0)
    assert image.size == (20, 10)
    assert np.array_equal(pixels(image), pixels(Folder(root=str(corner)).read(0))[5:15, 10:30])
    assert of(corner, crop=0.001).read(0).size == (1, 1)
    assert np.array_equal(pixels(of(corner, crop=1).read(0)), pixels(Folder(root=str(corner)).read(0)))


def test_brightness(corner: Path) -> None:
    assert np.unique(pixels(of(corner, brightness=1.5).read(0))).tolist() == [150, 255]
    assert np.unique(pixels(of(corner, brightness=0.5).read(0))).tolist() == [50, 127]


def test_all_else_is_the_sources(pictures: Path) -> None:
    source, plain = of(pictures, crop=0.7), Folder(root=str(pictures))
    assert source.items() == plain.items()
    assert source.stamp(0) == plain.stamp(0)
    assert source.root is None  # what lies below the folder is not what was indexed


def test_the_content_key_is_of_the_alteration_too(pictures: Path) -> None:
    sources = [of(pictures, rotate=30), of(pictures, rotate=31), of(pictures, rotate=30, crop=0.9)]
    keys = [source.content_key(0) for source in [*sources, Folder(root=str(pictures))]]
    assert len(set(keys)) == 4
    assert {len(key) for key in keys} == {32}
    assert of(pictures, rotate=30.0).content_key(0) == keys[0]
    assert len({source.source_digest() for source in sources}) == 3


def test_a_reduced_picture_keeps_enough_pixels(tmp_path: Path) -> None:
    Image.new("RGB", (1600, 1600), (9, 9, 200)).save(tmp_path / "a.jpg")
    image = of(tmp_path, crop=0.25, rotate=45).read(0, 100)
    assert 100 <= min(image.size) < 400


def test_an_item_that_cannot_be_read(pictures: Path) -> None:
    (pictures / "a.png").write_bytes(b"no image")
    with pytest.raises(BadImage, match="not an image"):
        of(pictures, rotate=30).read(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing is altered: give rotate, crop or brightness"),
        ({"crop": 0}, "crop: must be greater than 0"),
        ({"crop": 1.1}, "crop: must be less than or equal to 1"),
        ({"brightness": -1}, "brightness: must be greater than 0"),
        ({"rotate": 400}, "rotate: must be less than 360"),
        ({"of": {"name": "folder"}, "crop": 0.5}, "of.root: is required"),
        ({"of": {"name": "vectors", "file": "x.npy"}, "crop": 0.5}, "of.name: takes a source of images"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Altered(**{"of": {"name": "folder", "root": "x"}, **options})


CONFIG = """
source: {name: folder, root: pictures}
queries: {source: {name: altered, of: {name: folder, root: queries}, rotate: 30}}
extractors: [{name: hog}]
codecs: [{name: raw}, {name: lsh, bits: 64}]
backends: [{name: faiss-flat, metric: l2}, {name: faiss-binary-flat}]
"""


@pytest.mark.usefixtures("only_measured")
def test_a_comparison_asks_altered_queries(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    for name in ("stripes", "checks"):
        (tmp_path / "queries" / name).mkdir(parents=True)
        (pictures / name / "00.png").rename(tmp_path / "queries" / name / "00.png")
    file = tmp_path / "config.yaml"
    file.write_text(CONFIG)
    results = run(load_config(file), tmp_path / "out")
    assert [(row["items"], row["queries"]) for row in results["rows"]] == [(34, 2), (34, 2)]
    assert '"queries"' in (tmp_path / "out" / "gallery.json").read_text()
    file.write_text(CONFIG.replace("rotate: 30", "rotat: 30"))
    with pytest.raises(ConfigError, match=r"config.yaml:3: queries.source.rotat: unknown key; did you mean 'rotate'"):
        load_config(file)
    file.write_text(CONFIG.replace("root: queries", "rot: queries"))
    with pytest.raises(ConfigError, match=r"config.yaml:3: queries.source.of.rot: unknown key; did you mean 'root'"):
        load_config(file)
