"""Several views of every picture: parts cut out at random, once and for all, for a teacher to be asked about each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import Field, field_validator

from cbir_faiss import base
from cbir_faiss.base import Item
from cbir_faiss.base.options import Options

_TRIES = 10


class Views(Options):
    """count: of views of each picture; the first is all of it. scale: side of a view, as a share of the picture's,
    before its shape changes. aspect: by which it may be wider or higher than the picture. flip: left to right, half of
    them."""

    count: int = Field(default=1, ge=1, le=1000)
    scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.55, 1.0)
    aspect: float = Field(default=4 / 3, ge=1, le=4)
    flip: bool = True

    @field_validator("scale")
    @classmethod
    def _ascends(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if scale[0] > scale[1]:
            raise ValueError("must be the smallest and the largest, in that order")
        return scale


class ViewedSource(base.Source):
    """``count`` items for each of ``rows`` of another source: item i is view ``i % count`` of row ``i // count``."""

    name: ClassVar[str] = "views"

    def __init__(self, source: base.Source, rows: NDArray[np.int64], views: Views, seed: int) -> None:
        super().__init__()
        self._source, self._rows, self._views, self._seed = source, rows, views, seed

    def _items(self) -> Sequence[Item]:
        return self._viewed

    @cached_property
    def _viewed(self) -> list[Item]:
        items = self._source.items()
        return [
            Item(f"{items[row].path}#{view:03d}", items[row].labels)
            for row in self._rows.tolist()
            for view in range(self._views.count)
        ]

    def _read(self, index: int) -> Image.Image:
        return self._cut(self._source.read(self._row(index)), index)

    def _read_reduced(self, index: int, min_side: int) -> Image.Image:
        # A part of the picture has to be as large as the whole would have been.
        min_side = math.ceil(min_side / self._views.scale[0] * self._views.aspect)
        return self._cut(self._source.read(self._row(index), min_side), index)

    def _content_key(self, index: int) -> bytes:
        key = self._source.content_key(self._row(index))
        view = index % self._views.count
        if view == 0:
            return key
        # What is cut out depends on the row, which another picture of the folder may have next time.
        how = f"{self._views.model_dump_json()} {self._seed} {self._row(index)} {view}"
        return hashlib.sha256(key + how.encode()).digest()

    def _row(self, index: int) -> int:
        return int(self._rows[index // self._views.count])

    def _cut(self, image: Image.Image, index: int) -> Image.Image:
        row, view = self._row(index), index % self._views.count
        if view == 0:
            return image
        generator = np.random.default_rng((self._seed, row, view))
        image = image.crop(_box(image.size, self._views, generator))
        return ImageOps.mirror(image) if self._views.flip and generator.random() < 0.5 else image


def _box(size: tuple[int, int], views: Views, generator: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a part that lies in the picture and has at least a pixel."""
    width, height = size
    cut_width = cut_height = 1.0
    for _ in range(_TRIES):
        scale = generator.uniform(*views.scale)
        stretch = math.exp(generator.uniform(-1, 1) * math.log(views.aspect) / 2)
        cut_width, cut_height = scale * stretch, scale / stretch
        if max(cut_width, cut_height) <= 1:
            break
    w, h = max(1, round(min(1, cut_width) * width)), max(1, round(min(1, cut_height) * height))
    left, top = int(generator.integers(0, width - w + 1)), int(generator.integers(0, height - h + 1))
    return left, top, left + w, top + h
