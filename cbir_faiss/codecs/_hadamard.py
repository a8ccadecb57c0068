"""A seeded pseudo-random rotation made of sign flips and small Hadamard transforms.

The vector is seen as an ``(a, b)`` array, b a power of two. With H the orthonormal Walsh–Hadamard matrix of order b, D
random diagonal signs and M an orthonormal matrix of order a (Hadamard where a is a power of two, else the DCT-II):

    y = (H·D₄·H·D₃ on each row) · (M across the rows) · (H·D₂·H·D₁ on each row) x

so every output depends on every input and each factor is orthogonal. It follows the H·D·H·D·H·D of Andoni et al.,
"Practical and Optimal LSH for Angular Distance" (2015), with the transform cut into radix-b steps: what happens on a
row is one small matrix, so that the whole is three matrix products that BLAS runs at full speed, which beats
butterflies bound by memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.types import Floats

_RADIX = 64
_ROWS = 128  # rows at a time: the intermediate arrays then stay in the second-level cache


def hadamard(order: int) -> Floats:
    """The orthonormal Walsh–Hadamard matrix float32 ``(order, order)``; order is a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix *= np.float32(order**-0.5)
    return matrix


class HadamardRotation:
    """A random linear map of ``dim`` to ``outputs`` dimensions with flat, near-Gaussian rows of length 1.

    Up to ``capacity`` outputs the rows are orthogonal (up to rounding and, for padded dimensions, nearly so); more are
    made by stacking independent rotations. With ``outputs >= padded(dim)`` and at most ``capacity`` it keeps L2.
    """

    def __init__(self, dim: int, outputs: int, seed: int) -> None:
        self.dim, self.outputs = dim, outputs
        radix = _radix(dim)
        rows_in = -(-dim // radix)
        capacity = radix * _power_of_two(rows_in)
        blocks = -(-outputs // capacity)
        rows_out = -(-outputs // (blocks * radix))
        self._middle = _orthonormal(max(rows_in, rows_out))[:rows_out, :rows_in]
        signs = _signs(seed, blocks * (rows_in + rows_out) * 2 * radix).reshape(blocks, rows_in + rows_out, 2, radix, 1)
        small = hadamard(radix)
        on_rows = (signs[:, :, 0] * small) @ (signs[:, :, 1] * small)  # (blocks, rows_in + rows_out, radix, radix)
        self._first, self._last = on_rows[:, :rows_in], on_rows[:, rows_in:]

    @staticmethod
    def padded(dim: int) -> int:
        """The fewest outputs that keep L2 exactly: ``dim`` rounded up to a multiple of the radix (64, for most)."""
        return -(-dim // _radix(dim)) * _radix(dim)

    def apply(self, x: Floats) -> Floats:
        """float32 ``(n, outputs)`` of float32 ``(n, dim)``."""
        result = np.empty((len(x), self.outputs), np.float32)
        for rows, piece in self.pieces(x):
            result[rows] = piece
        return result

    def pieces(self, x: Floats) -> Iterator[tuple[slice, Floats]]:
        """``apply`` a few rows at a time, for callers that keep less than the floats: (rows, float32 piece).

        A piece is overwritten by the next one.
        """
        blocks, rows_out, radix, _ = self._last.shape
        piece = np.empty((min(_ROWS, len(x)), blocks * rows_out * radix), np.float32)
        for start in range(0, len(x), _ROWS):
            part = x[start : start + _ROWS]
            # (n, rows, radix) seen as rows x (n, radix): each slice is a matrix that BLAS reads and writes in place.
            wide = piece[: len(part)].reshape(len(part), blocks, rows_out, radix).transpose(1, 2, 0, 3)
            for block in range(blocks):
                self._rotate(part, block, wide[block])
            yield slice(start, start + len(part)), piece[: len(part), : self.outputs]

    def _rotate(self, part: Floats, block: int, out: NDArray[np.float32]) -> None:
        first, last = self._first[block], self._last[block]
        n, (rows_in, radix, _) = len(part), first.shape
        if part.shape[1] < rows_in * radix:
            part = np.pad(part, ((0, 0), (0, rows_in * radix - part.shape[1])))
        mixed = part.reshape(n, rows_in, radix).transpose(1, 0, 2) @ first
        mixed = (self._middle @ mixed.reshape(rows_in, n * radix)).reshape(-1, n, radix)
        np.matmul(mixed, last, out=out)


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def _radix(dim: int) -> int:
    """Two steps of b and one of dim / b operations an element: b near sqrt(dim / 2), but large enough for BLAS."""
    return min(_power_of_two(dim), max(_RADIX, _power_of_two(round((dim / 2) ** 0.5))))


def _orthonormal(order: int) -> Floats:
    """A flat orthonormal matrix: Walsh–Hadamard where the order allows it, else the DCT-II."""
    if order == _power_of_two(order):
        return hadamard(order)
    k, i = np.ogrid[:order, :order]
    matrix = np.cos(np.pi * k * (2 * i + 1) / (2 * order)) * (2 / order) ** 0.5
    matrix[0] *= 0.5**0.5
    return np.asarray(matrix, np.float32)


def _signs(seed: int, n: int) -> Floats:
    """n values ±1. Raw words of PCG64, because NumPy promises their stream and not that of its distributions."""
    words = np.random.PCG64(seed).random_raw(-(-n // 64)).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=n)
    signs: Floats = bits.astype(np.float32) * 2 - 1
    return signs
