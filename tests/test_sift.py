"""Extractor `sift`: the vocabulary it learns, the words it counts, and images that have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cbir_faiss.base import registry
from cbir_faiss.base.state import write_state
from cbir_faiss.config import load_config
from cbir_faiss.errors import ConfigError, InputError
from cbir_faiss.extractors._vocabulary import Vocabulary, kmeans, learn, nearest
from cbir_faiss.extractors.sift import Sift
from cbir_faiss.testing import ExtractorContract

pytest.importorskip("cv2")


def scene(seed: int, size: int = 96) -> Image.Image:
    """A picture with corners and blobs at several scales."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
    return coarse.resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    for i in range(10):
        scene(i).save(root / f"{i}.png")
    return root


def make(scenes: Path, **options: Any) -> Sift:
    return Sift(**{"learn_from": {"name": "folder", "root": str(scenes)}, "words": 16, **options})


class TestSiftContract(ExtractorContract):
    plugin = Sift
    options = {}

    @pytest.fixture(autouse=True)
    def learned(self, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        options = {"learn_from": {"name": "folder", "root": str(scenes)}, "words": 16}
        monkeypatch.setattr(type(self), "options", options)


class TestHellingerContract(TestSiftContract):
    @pytest.fixture(autouse=True)
    def weighted(self, learned: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "options", {**self.options, "weighting": "hellinger"})


# -------------------------------------------------------------------------------------------------------------- k-means


def test_kmeans_finds_clusters() -> None:
    centres = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    x = np.concatenate([centre + np.random.default_rng(0).normal(0, 0.3, (40, 2)) for centre in centres])
    found = kmeans(x.astype(np.float32), 3, seed=1)
    assert np.abs(np.sort(found.sum(axis=1)) - [0, 10, 10]).max() < 0.5
    assert np.array_equal(found, kmeans(x.astype(np.float32), 3, seed=1))


def test_kmeans_leaves_no_centre_empty() -> None:
    x = np.repeat(np.arange(5, dtype=np.float32)[:, None], 20, axis=0)
    assert np.sort(kmeans(x, 5, seed=0)[:, 0]).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="6 visual words need as many different descriptors, and there are 5"):
        kmeans(x, 6, seed=0)


def test_nearest_is_the_nearest() -> None:
    rng = np.random.default_rng(0)
    x, centres = rng.random((50, 4), np.float32), rng.random((7, 4), np.float32)
    all_distances = ((x[:, None] - centres) ** 2).sum(axis=2)
    which, distances = nearest(x, centres)
    assert np.array_equal(which, all_distances.argmin(axis=1))
    np.testing.assert_allclose(distances, all_distances.min(axis=1), atol=1e-5)
    assert [len(part) for part in nearest(x[:0], centres)] == [0, 0]


def test_idf_counts_images() -> None:
    a, b = np.zeros((1, 2), np.float32), np.full((1, 2), 9, np.float32)
    vocabulary = learn([np.concatenate([a, a, b]), a, np.empty((0, 2), np.float32), a], 2, seed=0)
    order = vocabulary.words.sum(axis=1).argsort()
    np.testing.assert_allclose(vocabulary.idf[order], np.log([4 / 3, 4 / 1]), rtol=1e-6)
    assert vocabulary.counts(np.concatenate([a, a, b]))[order].tolist() == [2, 1]


# ----------------------------------------------------------------------------------------------------------- vocabulary


def test_an_image_without_keypoints_is_the_uniform_vector(scenes: Path) -> None:
    for weighting in ("tf-idf", "hellinger"):
        x = make(scenes, weighting=weighting)([Image.new("RGB", size) for size in ((60, 60), (1, 1), (300, 2))])
        np.testing.assert_allclose(x["embedding"], 0.25, rtol=1e-6)


def test_vectors_have_length_one_and_know_a_turned_picture(scenes: Path) -> None:
    extractor = make(scenes, words=64)
    x = extractor([scene(i) for i in range(10)])["embedding"]
    turned = extractor([scene(i).rotate(90, expand=True) for i in range(10)])["embedding"]
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, rtol=1e-5)
    assert (turned @ x.T).argmax(axis=1).tolist() == list(range(10))


def test_the_vocabulary_is_learned_once_and_kept(scenes: Path, own_cache: Path) -> None:
    first = make(scenes)
    (file,) = (own_cache / "vocabularies").glob("*.npz") if first.outputs else ()
    again = make(scenes, weighting="hellinger")
    again.load()
    assert len(list((own_cache / "vocabularies").glob("*.npz"))) == 1
    # What decides the words decides the name; every one of these is learned anew.
    for other in ({"seed": 1}, {"words": 8}, {"descriptors": 50}, {"size": 64}, {"except_every": 5}):
        assert make(scenes, **other).fingerprint() != first.fingerprint()
    assert len(list((own_cache / "vocabularies").glob("*.npz"))) == 6
    content = file.read_bytes()
    file.write_bytes(content[:500])
    assert make(scenes).fingerprint() == first.fingerprint()  # a damaged file is made again, with the same words
    # The file is a vocabulary of its own, and the same one by whatever way it is named.
    assert Sift(vocabulary=str(file)).fingerprint() == first.fingerprint()


def test_queries_take_no_part(scenes: Path, tmp_path: Path) -> None:
    for i in range(10):
        if i % 5:
            scene(i).save(tmp_path / f"{i}.png")
    assert make(scenes, except_every=5).fingerprint() == make(tmp_path).fingerprint()


def test_images_that_cannot_be_read_are_passed_over(scenes: Path, tmp_path: Path) -> None:
    for i in range(10):
        scene(i).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    assert make(tmp_path).outputs == {"embedding": (16, "float32")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either vocabulary: PATH, or learn_from"),
        ({"vocabulary": "x.npz", "learn_from": {"name": "digits"}}, "give either"),
        ({"learn_from": {"name": "foldr"}}, r"learn_from.name: no source named 'foldr'; did you mean 'folder'"),
        ({"learn_from": {"name": "digits"}, "words": 1}, "words: must be greater than or equal to 2"),
        ({"learn_from": {"name": "digits"}, "words": 64, "descriptors": 32}, "32 descriptors are fewer than 64 words"),
        ({"learn_from": {"name": "digits"}, "except_every": 1}, "except_every"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sift(**options)


def test_wrong_vocabularies(tmp_path: Path, scenes: Path) -> None:
    with pytest.raises(ConfigError, match=r"vocabulary: .*gone.npz: missing"):
        Sift(vocabulary=str(tmp_path / "gone.npz")).load()
    write_state(tmp_path / "other.npz", {"format": "something"}, {"words": np.zeros((3, 128), np.float32)})
    narrow = Vocabulary(np.zeros((3, 64), np.float32), np.zeros(3, np.float32))
    narrow.save(tmp_path / "narrow.npz")
    for name in ("other", "narrow"):
        with pytest.raises(ConfigError, match="not a vocabulary of visual words of 128 values"):
            Sift(vocabulary=str(tmp_path / f"{name}.npz")).load()
    np.save(tmp_path / "vectors.npy", np.zeros((3, 4), np.float32))
    with pytest.raises(ConfigError, match=r"learn_from\.name: takes a source of images"):
        Sift(learn_from={"name": "vectors", "file": str(tmp_path / "vectors.npy")}).load()


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "nothing")
    with pytest.raises(InputError, match="no image to learn a vocabulary from"):
        make(tmp_path).load()
    (tmp_path / "a.png").unlink()
    Image.new("RGB", (60, 60)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="16 visual words need as many different descriptors, and there are 0"):
        make(tmp_path).load()


def test_in_a_config(scenes: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "source: {name: folder, root: pictures}\n"
        "extractors: [{name: sift, learn_from: {name: folder, root: scenes}, words: [16, 32]}]\n"
        "codecs: [{name: raw}]\nbackends: [{name: faiss-flat}]\n"
    )
    first, second = load_config(file).extractors
    assert first.options["learn_from"] == {"name": "folder", "root": str(tmp_path / "scenes")}
    assert (first.options["words"], second.options["words"]) == (16, 32)
    assert registry.load("extractors", "sift") is Sift
