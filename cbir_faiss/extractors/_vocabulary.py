"""A vocabulary of visual words: k-means centres of local descriptors, learned once and kept in one file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.state import read_state, write_state
from cbir_faiss.errors import CorruptCollection, InputError
from cbir_faiss.types import Floats

_FORMAT = "visual words 1"
_ITERATIONS = 25
_BLOCK = 1 << 22  # distances held at a time


@dataclass(frozen=True)
class Vocabulary:
    """words: float32 ``(w, dim)``. idf: float32 ``(w,)``, log(N / n_i) of N images of which n_i have word i."""

    words: Floats
    idf: Floats

    def counts(self, descriptors: Floats) -> NDArray[np.int64]:
        """How many of ``descriptors (n, dim)`` are nearest to each word, int64 ``(w,)``."""
        return np.bincount(nearest(descriptors, self.words)[0], minlength=len(self.words))

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of its content."""
        return hashlib.sha256(self.words.tobytes() + self.idf.tobytes()).hexdigest()

    def save(self, path: Path) -> None:
        write_state(path, {"format": _FORMAT}, {"words": self.words, "idf": self.idf})

    @classmethod
    def read(cls, path: Path, dim: int) -> Vocabulary:
        """What ``save`` wrote, of words of ``dim`` values.

        Raises:
            CorruptCollection: missing, cut short, altered, or not a vocabulary of such words.
        """
        meta, state = read_state(path)
        words = state.get("words")
        if meta.get("format") != _FORMAT or words is None or words.shape[1:] != (dim,):
            raise CorruptCollection(f"{path}: not a vocabulary of visual words of {dim} values")
        return cls(words, state["idf"])


def learn(descriptors: Sequence[Floats], words: int, seed: int) -> Vocabulary:
    """A vocabulary of ``descriptors``, one array ``(n_i, dim)`` for each of the images; the same for the same seed.

    Raises:
        InputError: fewer different descriptors than words.
    """
    pool: Floats = np.concatenate(descriptors)
    centres = kmeans(pool, words, seed)
    which, _ = nearest(pool, centres)
    image = np.repeat(np.arange(len(descriptors)), [len(d) for d in descriptors])
    pairs = np.unique(image * words + which)
    images_with = np.bincount(pairs % words, minlength=words)
    idf = np.log(len(descriptors) / np.maximum(images_with, 1)).astype(np.float32)
    return Vocabulary(centres, idf)


def kmeans(x: Floats, k: int, seed: int) -> Floats:
    """Centres float32 ``(k, dim)`` by Lloyd's algorithm from k different rows of ``x (n, dim)`` drawn with ``seed``.

    A centre that nothing is nearest to moves to the row that is farthest from its own.
    """
    different = np.unique(x, axis=0)
    if len(different) < k:
        raise InputError(f"{k} visual words need as many different descriptors, and there are {len(different)}")
    rng = np.random.default_rng(seed)
    centres: Floats = different[rng.choice(len(different), k, replace=False)].astype(np.float32)
    before: Any = None
    for _ in range(_ITERATIONS):
        which, distances = nearest(x, centres)
        if before is not None and np.array_equal(which, before):
            break
        before = which
        sizes = np.bincount(which, minlength=k)
        order = np.argsort(which, kind="stable")
        starts = np.cumsum(sizes) - sizes
        filled = sizes > 0
        sums = np.add.reduceat(x[order], starts[filled], axis=0, dtype=np.float64)
        centres[filled] = sums / sizes[filled, None]
        empty = np.flatnonzero(~filled)
        centres[empty] = x[np.argsort(-distances, kind="stable")[: len(empty)]]
    return centres


def nearest(x: Floats, centres: Floats) -> tuple[NDArray[np.int64], Floats]:
    """The row of ``centres (k, dim)`` nearest to each of ``x (n, dim)``, and its squared distance, both ``(n,)``."""
    which = np.empty(len(x), np.int64)
    distances = np.empty(len(x), np.float32)
    lengths = np.einsum("ij,ij->i", centres, centres)
    step = max(1, _BLOCK // len(centres))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        scores = lengths - 2 * (x[rows] @ centres.T)
        which[rows] = scores.argmin(axis=1)
        distances[rows] = scores[np.arange(len(scores)), which[rows]] + np.einsum("ij,ij->i", x[rows], x[rows])
    return which, distances
