"""Histograms of oriented gradients (Dalal and Triggs, CVPR 2005): shape, with no network and nothing to download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cbir_faiss import base
from cbir_faiss.types import Columns, Floats

_EPSILON = 1e-3  # of L2-Hys: the gradients of a flat block must not be blown up to length 1
_CLIP = 0.2


class Hog(base.Extractor):
    """The image, resized to ``size`` x ``size`` whatever its shape, as one window of dense HOG.

    Square-root gamma; at each pixel the gradient of the colour channel where it is largest; unsigned orientations,
    each vote shared between the two nearest bins and the four nearest cells; blocks overlap by all but one cell and
    are normalised by L2-Hys (length 1, clipped at 0.2, length 1 again). A uniform image has no gradients and so gives
    a vector of zeros.
    """

    name: ClassVar[str] = "hog"

    class Options(base.Options):
        """size: pixels a side, a multiple of ``cell``. cell: pixels a side. block: cells a side.
        orientations: bins from 0 to 180 degrees."""

        size: int = Field(64, ge=8, le=1024)
        cell: int = Field(8, ge=2)
        block: int = Field(2, ge=1)
        orientations: int = Field(9, ge=2)

        @model_validator(mode="after")
        def _fits(self) -> Hog.Options:
            if self.size % self.cell:
                raise ValueError(f"size {self.size} must be a multiple of cell {self.cell}")
            if self.size // self.cell < self.block:
                raise ValueError(f"a block of {self.block} cells is larger than the {self.size // self.cell} there are")
            return self

    options: Options

    @property
    def outputs(self) -> Mapping[str, tuple[int, str]]:
        blocks = self.options.size // self.options.cell - self.options.block + 1
        return {"embedding": (blocks**2 * self.options.block**2 * self.options.orientations, "float32")}

    def _prepare(self, item: Any) -> NDArray[np.uint8]:
        from PIL import Image

        size = self.options.size
        return np.asarray(item.resize((size, size), Image.Resampling.BILINEAR))

    def _extract(self, batch: NDArray[Any]) -> Columns:
        cells = _cell_histograms(batch, self.options.cell, self.options.orientations)
        return {"embedding": _l2_hys(cells, self.options.block)}


def _cell_histograms(batch: NDArray[np.uint8], cell: int, orientations: int) -> Floats:
    """Votes float32 ``(n, rows, columns, orientations)`` of images uint8 ``(n, h, w, 3)``."""
    magnitude, angle = _gradients(np.sqrt(batch.astype(np.float32) / 255))
    position = angle * (orientations / np.pi) - 0.5
    lower = np.floor(position)
    share = magnitude * (position - lower)
    bin_below = lower.astype(np.int64) % orientations
    height, width = (_shares(side, cell) for side in batch.shape[1:3])
    out = np.empty((len(batch), height.shape[0], width.shape[0], orientations), np.float32)
    for orientation in range(orientations):
        votes = np.where(bin_below == orientation, magnitude - share, 0)
        votes += np.where(bin_below == (orientation - 1) % orientations, share, 0)
        # Sharing between the nearest cells is separable, so it is two small matrix products.
        out[..., orientation] = height @ votes @ width.T
    return out


def _gradients(x: Floats) -> tuple[Floats, Floats]:
    """Magnitude and angle (radians, 0 to pi) ``(n, h, w)`` of ``x (n, h, w, 3)``; the mask is [-1, 0, 1]."""
    down, across = np.zeros_like(x), np.zeros_like(x)
    down[:, 1:-1] = x[:, 2:] - x[:, :-2]
    across[:, :, 1:-1] = x[:, :, 2:] - x[:, :, :-2]
    channel = np.argmax(down**2 + across**2, axis=-1)[..., None]
    gy, gx = (np.take_along_axis(g, channel, axis=-1)[..., 0] for g in (down, across))
    return np.hypot(gx, gy), np.mod(np.arctan2(gy, gx), np.float32(np.pi))


def _shares(side: int, cell: int) -> Floats:
    """float32 ``(side / cell, side)``: how much each pixel gives to each cell, falling linearly with the distance."""
    pixels = (np.arange(side) + 0.5) / cell - 0.5
    distance = np.abs(pixels[None, :] - np.arange(side // cell)[:, None])
    shares: Floats = np.maximum(0, 1 - distance).astype(np.float32)
    return shares


def _l2_hys(cells: Floats, block: int) -> Floats:
    """Blocks of ``cells (n, rows, columns, bins)``, each normalised, as float32 ``(n, width)``."""
    windows = np.lib.stride_tricks.sliding_window_view(cells, (block, block), axis=(1, 2))
    blocks: Floats = windows.reshape(*windows.shape[:3], -1)
    blocks = _unit(np.minimum(_unit(blocks), _CLIP))
    return blocks.reshape(len(cells), -1)


def _unit(x: Floats) -> Floats:
    norms: Floats = np.sqrt((x**2).sum(axis=-1, keepdims=True) + np.float32(_EPSILON**2))
    return x / norms
