"""SIFT descriptors as a histogram of visual words (Sivic and Zisserman, ICCV 2003): local structure, no network."""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cbir_faiss import base
from cbir_faiss._lib import threads
from cbir_faiss.base import registry
from cbir_faiss.base.options import RelativePath, need
from cbir_faiss.errors import BadImage, ConfigError, CorruptCollection, InputError
from cbir_faiss.extractors._vocabulary import Vocabulary, learn
from cbir_faiss.pipeline.cache import default_cache
from cbir_faiss.types import Columns, Floats

if TYPE_CHECKING:
    from PIL import Image

_DIM = 128
_FILE = "vocabulary.npz"
_LEARNING = "1"  # part of the name of cached vocabularies: to be raised when learning changes


class Sift(base.Extractor):
    """How often each visual word occurs in the image, weighted and scaled to length 1.

    A visual word is a centre of k-means over SIFT descriptors (Lowe 2004) of the images that the vocabulary is learned
    from. ``tf-idf``: the share of the image's descriptors times log(N / n_i), N images of which n_i have the word
    (counted among the descriptors that were sampled). ``hellinger``: the square root of the share. An image in which
    nothing counts, because it has no keypoint, gets the same positive value for every word: a vector of length 1 too,
    so that cosine is defined, and equal to that of every other such image.
    """

    name: ClassVar[str] = "sift"
    # What the vocabulary is decides, not how it came to be.
    free_options: ClassVar[frozenset[str]] = frozenset(
        {"vocabulary", "learn_from", "except_every", "words", "descriptors", "seed"}
    )

    class Options(base.Options):
        """vocabulary: a file that this extractor wrote; or learn_from: a source section whose images it is learned
        from when it is first needed, and then kept in the cache folder.

        except_every: item i of that source takes no part when i % except_every == 0, as in ``queries: {every: …}``.
        words: visual words to learn. descriptors: how many are sampled for it, about as many from each image.
        seed: of the sample and of k-means. A vocabulary that is given needs none of these four.
        size: images are first reduced (never enlarged) to at most this many pixels a side.
        """

        vocabulary: RelativePath | None = None
        learn_from: Annotated[dict[str, Any], registry.section("sources")] | None = None
        except_every: int | None = Field(None, ge=2)
        words: int = Field(500, ge=2, le=1_000_000)
        descriptors: int = Field(100_000, ge=2)
        seed: int = Field(0, ge=0)
        weighting: Literal["tf-idf", "hellinger"] = "tf-idf"
        size: int = Field(384, ge=16)

        @model_validator(mode="after")
        def _one_vocabulary(self) -> Sift.Options:
            if (self.vocabulary is None) == (self.learn_from is None):
                raise ValueError("give either vocabulary: PATH, or learn_from: a source of images to learn it from")
            if self.descriptors < self.words:
                raise ValueError(f"{self.descriptors} descriptors are fewer than {self.words} words")
            return self

    options: Options

    def _setup(self) -> None:
        self._lock = threading.Lock()
        self._ready: Vocabulary | None = None

    @property
    def outputs(self) -> Mapping[str, tuple[int, str]]:
        return {"embedding": (len(self._vocabulary().words), "float32")}

    @property
    def min_side(self) -> int:
        return self.options.size

    def freeze(self, folder: Path) -> tuple[str, dict[str, Any]]:
        """Writes the vocabulary, so that what it was learned from is not needed again."""
        self._vocabulary().save(folder / _FILE)
        kept = self.options.model_dump(mode="json", include={"weighting", "size"})
        return self.name, {"vocabulary": _FILE, **kept}

    def _load(self) -> None:
        self._vocabulary()

    def _weights_digest(self) -> str:
        return self._vocabulary().digest

    def _prepare(self, item: Any) -> Floats:
        # Counted here, one image at a time in the decoding threads: images differ in how many descriptors they have.
        vocabulary = self._vocabulary()
        counts = vocabulary.counts(_descriptors(item, self.options.size)).astype(np.float64)
        shares = counts / max(1.0, counts.sum())
        weights = shares * vocabulary.idf if self.options.weighting == "tf-idf" else np.sqrt(shares)
        length = float(np.linalg.norm(weights))
        unit = weights / length if length else np.full(len(weights), len(weights) ** -0.5)
        return np.asarray(unit, np.float32)

    def _extract(self, batch: NDArray[Any]) -> Columns:
        return {"embedding": batch}

    def _vocabulary(self) -> Vocabulary:
        with self._lock:
            if self._ready is None:
                file = self.options.vocabulary
                self._ready = _stored(file) if file else self._learned(self.options.learn_from or {})
            return self._ready

    def _learned(self, section: Mapping[str, Any]) -> Vocabulary:
        """From the cache, or learned now: the file is named by the digest of everything that decides it."""
        o = self.options
        source: base.Source = registry.make_section("sources", section)
        if source.yields != "image":
            raise ConfigError(f"takes a source of images, and '{source.name}' yields vectors", path="learn_from.name")
        rows = [row for row in range(len(source.items())) if o.except_every is None or row % o.except_every]
        readable = _readable(source, rows)
        decides = [_LEARNING, need("cv2", "opencv").__version__, o.words, o.descriptors, o.seed, o.size]
        digest = hashlib.sha256(json.dumps(decides).encode() + b"".join(readable.values())).hexdigest()
        file = default_cache() / "vocabularies" / f"{digest}.npz"
        if file.is_file():
            try:
                return Vocabulary.read(file, _DIM)
            except CorruptCollection:
                file.unlink()  # a damaged file in the cache is made again
        with threads.phase("fit"):
            vocabulary = learn(_sample(source, list(readable), o.descriptors, o.size, o.seed), o.words, o.seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Written aside and renamed, because several processes may do this at once.
        with tempfile.TemporaryDirectory(dir=file.parent) as aside:
            vocabulary.save(Path(aside, _FILE))
            Path(aside, _FILE).replace(file)
        return vocabulary


def _stored(file: Path) -> Vocabulary:
    try:
        return Vocabulary.read(file, _DIM)
    except CorruptCollection as error:
        raise ConfigError(str(error), path="vocabulary") from error


def _readable(source: base.Source, rows: list[int]) -> dict[int, bytes]:
    """The content keys of the files that can be read, by row."""
    keys: dict[int, bytes] = {}
    for row in rows:
        try:
            keys[row] = source.content_key(row)
        except BadImage:
            continue  # an item that cannot be used is reported where it is indexed
    if not keys:
        raise InputError("sift: there is no image to learn a vocabulary from")
    return keys


def _sample(source: base.Source, rows: list[int], total: int, size: int, seed: int) -> list[Floats]:
    """Descriptors ``(n_i, 128)`` of each image, about ``total`` in all; an image that cannot be read gives none."""
    most = -(-total // len(rows))

    def some(row: int) -> Floats:
        try:
            found = _descriptors(source.read(row, size), size)
        except BadImage:
            return np.empty((0, _DIM), np.float32)
        if len(found) <= most:
            return found
        # Seeded by image, so that the sample does not depend on the order in which threads finish.
        picked = np.random.default_rng([seed, row]).choice(len(found), most, replace=False)
        return found[np.sort(picked)]

    with ThreadPoolExecutor(threads.available()) as pool:
        return list(pool.map(some, rows))


def _descriptors(image: Image.Image, size: int) -> Floats:
    """SIFT descriptors float32 ``(n, 128)`` of the grey image; none where it has no keypoint."""
    from PIL import Image

    cv2 = need("cv2", "opencv")
    if max(image.size) > size:
        image = image.copy()
        image.thumbnail((size, size), Image.Resampling.BOX)
    _, found = cv2.SIFT_create().detectAndCompute(np.asarray(image.convert("L")), None)
    return np.empty((0, _DIM), np.float32) if found is None else np.asarray(found, np.float32)
