"""A joint colour histogram: the oldest global descriptor, with no network and nothing to download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss import base
from cbir_faiss.types import Columns, Floats

_Bins = tuple[int, int, int]


class Histogram(base.Extractor):
    """Joint histogram of hue, saturation and value, over the image or over each tile of a grid.

    Each tile's histogram is divided by its sum, and the square root is taken: the Euclidean distance of two such
    vectors is then (up to a factor) the Hellinger distance of the histograms (Arandjelović and Zisserman, CVPR 2012).
    """

    name: ClassVar[str] = "histogram"

    class Options(base.Options):
        """bins: of hue, saturation and value. grid: tiles a side. size: images are first reduced (never enlarged) to
        at most this many pixels a side."""

        bins: _Bins = (16, 4, 4)
        grid: int = Field(1, ge=1, le=16)
        size: int = Field(256, ge=16)

    options: Options

    @property
    def outputs(self) -> Mapping[str, tuple[int, str]]:
        return {"embedding": (int(np.prod(self.options.bins)) * self.options.grid**2, "float32")}

    def _prepare(self, item: Any) -> Floats:
        from PIL import Image

        # The histogram is made here, one image at a time in the decoding threads: images differ in shape.
        side = self.options.size
        if max(item.size) > side:
            item = item.copy()
            item.thumbnail((side, side), Image.Resampling.BOX)
        cells = _cell_of_pixel(np.asarray(item.convert("HSV")), self.options.bins)
        tiles = [
            tile
            for band in np.array_split(cells, self.options.grid, axis=0)
            for tile in np.array_split(band, self.options.grid, axis=1)
        ]
        counts = np.stack([np.bincount(tile.ravel(), minlength=int(np.prod(self.options.bins))) for tile in tiles])
        shares: Floats = np.sqrt(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).astype(np.float32)
        return shares.ravel()

    def _extract(self, batch: NDArray[Any]) -> Columns:
        return {"embedding": batch}


def _cell_of_pixel(hsv: NDArray[np.uint8], bins: _Bins) -> NDArray[np.int64]:
    """The number of the joint bin of each pixel, int64 ``(h, w)``, of ``hsv`` uint8 ``(h, w, 3)``."""
    hue, saturation, value = ((hsv[..., i].astype(np.int64) * bins[i]) // 256 for i in range(3))
    return (hue * bins[1] + saturation) * bins[2] + value
