"""What is trained on: prepared pictures in memory, their classes, and a teacher's embeddings of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cbir_faiss import base
from cbir_faiss.errors import ConfigError, InputError
from cbir_faiss.images.preprocess import Preprocess
from cbir_faiss.pipeline.extraction import Failure, Progress, extract
from cbir_faiss.training.config import TrainingConfig
from cbir_faiss.training.views import ViewedSource
from cbir_faiss.types import Columns


@dataclass(frozen=True)
class Data:
    """Rows of pictures, with what is known of each.

    pixels: uint8 ``(n, h, w, 3)``. labels: int64 ``(n,)``, or None where an item has none. teacher: float32
    ``(n, width)``, or None. training, held_out: int64, the rows that are trained and validated on. failed: items that
    cannot be read.
    """

    pixels: NDArray[np.uint8]
    classes: tuple[str, ...]
    labels: NDArray[np.int64] | None
    teacher: NDArray[np.float32] | None
    training: NDArray[np.int64]
    held_out: NDArray[np.int64]
    failed: tuple[Failure, ...]

    def __len__(self) -> int:
        return len(self.pixels)


def load_data(
    config: TrainingConfig, preprocess: Preprocess, cache: Path | None, progress: Progress | None = None
) -> Data:
    """Read every picture that is no query; ``cache`` is where a teacher's embeddings are kept.

    The prepared pictures stay in memory: 49 kB each at 128 x 128.

    Raises:
        InputError: items of several labels, no item that can be read, too few to train on and to validate on.
        ConfigError: the source yields vectors, or the teacher does not read what it yields.
    """
    source: base.Source = config.source.make()
    if source.yields != "image":
        what = f"source '{source.name}' yields {source.yields}s, and networks are trained on images"
        raise ConfigError(what, path="source")
    chosen = np.arange(len(source.items()))
    if config.every:
        chosen = chosen[chosen % config.every != 0]
    views = ViewedSource(source, chosen, config.views, config.fit.seed)
    items, rows = views.items(), np.arange(len(views.items()))
    taught = None
    if config.teacher:
        teacher = config.teacher.make()
        taught = extract(views, teacher, cache=cache, progress=progress, rows=rows)
        rows = taught.rows
    pictures = extract(views, _Pixels(preprocess), cache=None, progress=progress, rows=rows)
    failed = (*(() if taught is None else taught.failed), *pictures.failed)
    if not len(pictures):
        why = f"; {failed[0].path}: {failed[0].reason}" if failed else ""
        raise InputError(f"not one of {len(items)} pictures can be trained on{why}")
    pixels = pictures.columns["pixels"].reshape(-1, *preprocess.size, 3)
    answers = None
    if taught is not None:
        answers = taught.columns[teacher.embeddings[0]][np.isin(taught.rows, pictures.rows)]
    classes, labels = _classes([items[i].labels for i in pictures.rows.tolist()])
    training, held_out = _split(pictures.rows, labels, config.views.count, config.fit.held_out)
    if min(len(training), len(held_out)) < 2:
        raise InputError(f"{len(pixels)} pictures are too few to train on and to hold one in {config.fit.held_out} out")
    return Data(pixels, classes, labels, answers, training, held_out, failed)


def _classes(labels: list[tuple[str, ...]]) -> tuple[tuple[str, ...], NDArray[np.int64] | None]:
    """The names of the classes, sorted, and each item's number; nothing where an item has no label."""
    if any(len(some) > 1 for some in labels):
        raise InputError("training takes one label an item, and here are items of several")
    if not all(labels):
        return (), None
    names, numbers = np.unique([some[0] for some in labels], return_inverse=True)
    return tuple(map(str, names)), numbers.astype(np.int64)


def _split(
    rows: NDArray[np.int64], labels: NDArray[np.int64] | None, views: int, one_in: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which pictures are trained on, and which, by their first views, validated on: one in so many of each class.

    ``rows`` of the viewed source; positions in them are returned.
    """
    pictures, first = np.unique(rows // views, return_index=True)
    # Items come sorted by path, so mostly by class; sorting makes sure of it.
    order = np.arange(len(pictures)) if labels is None else np.argsort(labels[first], kind="stable")
    held_out = np.zeros(len(pictures), np.bool_)
    held_out[order[one_in // 2 :: one_in]] = True
    training = ~held_out[np.searchsorted(pictures, rows // views)]
    return np.flatnonzero(training), first[held_out]


class _Pixels(base.Extractor):
    """Prepared pictures as a column: reading in parallel, and passing over bad files, is that of extraction."""

    name: ClassVar[str] = "pixels"

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self._how = preprocess

    @property
    def outputs(self) -> Mapping[str, tuple[int, str]]:
        height, width = self._how.size
        return {"pixels": (height * width * 3, "uint8")}

    @property
    def min_side(self) -> int | None:
        return self._how.min_side

    def _prepare(self, item: Any) -> NDArray[np.uint8]:
        return self._how.pixels(item)

    def _extract(self, batch: NDArray[Any]) -> Columns:
        return {"pixels": batch.reshape(len(batch), -1)}
