"""What is trained on: prepared pictures in memory, their classes, and a teacher's embeddings of them."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cbir_faiss import base
from cbir_faiss.errors import ConfigError, InputError
from cbir_faiss.images.preprocess import Preprocess
from cbir_faiss.pipeline.extraction import Failure, Progress, extract, stream
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
    config: TrainingConfig,
    preprocess: Preprocess,
    cache: Path | None,
    progress: Progress | None = None,
    scratch: Path | None = None,
) -> Data:
    """Read every picture that is no query; ``cache`` is where a teacher's embeddings are kept.

    The prepared pictures stay in memory, 49 kB each at 128 x 128, as far as ``fit.memory`` goes; more than that are
    mapped from a file in ``scratch`` (else the system's folder for such files), which is gone with them.

    Raises:
        InputError: items of several labels, no item that can be read, too few to train on and to validate on.
        ConfigError: the source yields vectors, or the teacher does not read what it yields.
    """
    source: base.Source = config.source.make()
    if source.yields != "image":
        what = f"source '{source.name}' yields {source.yields}s, and networks are trained on images"
        raise ConfigError(what, path="source")
    chosen = _chosen(source, config)
    views = ViewedSource(source, chosen, config.views, config.fit.seed)
    items, rows = views.items(), np.arange(len(views.items()))
    taught = None
    if config.teacher:
        teacher = config.teacher.make()
        taught = extract(views, teacher, cache=cache, progress=progress, rows=rows)
        rows = taught.rows
    pixels, rows, unread = _prepared(views, preprocess, rows, config.fit.memory, progress, scratch)
    failed = (*(() if taught is None else taught.failed), *unread)
    if not len(pixels):
        why = f"; {failed[0].path}: {failed[0].reason}" if failed else ""
        raise InputError(f"not one of {len(items)} pictures can be trained on{why}")
    answers = None
    if taught is not None:
        answers = taught.columns[teacher.embeddings[0]][np.isin(taught.rows, rows)]
    classes, labels = _classes([items[i].labels for i in rows.tolist()])
    training, held_out = _split(rows, labels, config.views.count, config.fit.held_out)
    if min(len(training), len(held_out)) < 2:
        raise InputError(f"{len(pixels)} pictures are too few to train on and to hold one in {config.fit.held_out} out")
    return Data(pixels, classes, labels, answers, training, held_out, failed)


def training_and_held_out(config: TrainingConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of the source that are trained and validated on, both ascending, where every picture can be read."""
    source: base.Source = config.source.make()
    chosen = _chosen(source, config)
    _, labels = _classes([source.items()[row].labels for row in chosen.tolist()])
    training, held_out = _split(np.arange(len(chosen)), labels, 1, config.fit.held_out)
    return chosen[training], chosen[held_out]


def _chosen(source: base.Source, config: TrainingConfig) -> NDArray[np.int64]:
    """The rows that are no queries."""
    rows = np.arange(len(source.items()))
    return rows[rows % config.every != 0] if config.every else rows


def _prepared(
    source: base.Source,
    how: Preprocess,
    wanted: NDArray[np.int64],
    megabytes: int,
    progress: Progress | None,
    scratch: Path | None,
) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[Failure]]:
    """Prepared pictures uint8 ``(n, h, w, 3)`` of the rows ``(n,)`` that can be read, and what cannot."""
    shape = (len(wanted), *how.size, 3)
    pixels = _room(shape, scratch, mapped=math.prod(shape) > megabytes << 20)
    places: dict[bytes, int] = {}
    rows: list[int] = []
    failed: list[Failure] = []
    for part in stream(source, _Pixels(how), wanted.tolist(), known=places):
        new = dict(zip(part.rows, part.columns.get("pixels", ()), strict=True))
        for seen in part.seen:
            # The same picture again is not prepared again.
            known = new[seen.row].reshape(shape[1:]) if seen.row in new else pixels[places[seen.origin.digest]]
            pixels[len(rows)] = known
            places.setdefault(seen.origin.digest, len(rows))
            rows.append(seen.row)
        failed += part.failed
        if progress:
            progress(len(rows) + len(failed), len(wanted))
    return pixels[: len(rows)], np.array(rows, np.int64), sorted(failed, key=lambda failure: failure.path)


def _room(shape: tuple[int, ...], scratch: Path | None, *, mapped: bool) -> NDArray[np.uint8]:
    if not mapped:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile(dir=scratch) as file:
        try:
            # Without its blocks the file would be cut short by a full disk in the middle of an epoch.
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        except OSError as error:
            raise InputError(
                f"no room in {scratch or tempfile.gettempdir()} for {math.prod(shape) >> 20:,} MB of prepared pictures "
                f"({error.strerror}): make some, or raise fit.memory"
            ) from error
        return np.memmap(file, np.uint8, "r+", shape=shape)


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
