"""The rotation of iterative quantization: Gong and Lazebnik, "Iterative Quantization" (CVPR 2011).

It minimises |sign(ZR) - ZR|² over orthogonal R, that is, it maximises Σ|ZR|, by R ← polar(Zᵀ sign(ZR)). Two things make
that fast. The polar factor comes from matrix products and solves (Halley's iteration with dynamic weights, Nakatsukasa,
Bai, Gygi 2010) and not from an SVD. And the step is lengthened: |ZR|² does not depend on R, so that Σ|ZR| - γ|ZR|²/2
has the same maximum, and its step, polar(Zᵀsign(ZR) - γZᵀZR), forgets the old R sooner; ZᵀZ is diagonal in principal
axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.types import Floats

_ROWS = 8192
_SHIFT = 0.5  # of Σ|V| / ΣV², the γ at which Gaussian columns would stand still; from 0.65 on it overshoots
_LOOSE, _TIGHT = 0.05, 1e-3


def itq_rotation(z: Floats, bits: int, iterations: int, seed: int) -> NDArray[np.float64]:
    """Orthonormal rows float64 ``(r, bits)``, r ≤ bits, for principal components z float32 ``(n, r)``, r > 0."""
    start = np.linalg.qr(np.random.default_rng(seed).standard_normal((bits, bits)))[0]
    rotation: Floats = start[: z.shape[1]].astype(np.float32)
    energy = np.einsum("ij,ij->j", z, z, dtype=np.float64)
    shift, best = _SHIFT, 0.0
    for _ in range(iterations):
        pull, total = _pull(z, rotation)
        if total < best:  # the longer step went too far
            shift = 0.0
        best = total
        inertia = np.float32(shift * total / energy.sum()) * energy.astype(np.float32)
        rotation = polar(pull - inertia[:, None] * rotation, _LOOSE)
    return _orthonormalised(rotation)


def _pull(z: Floats, rotation: Floats) -> tuple[Floats, float]:
    """Zᵀ sign(ZR) float32 ``(r, bits)`` and Σ|ZR|, a few rows at a time."""
    pull, total = np.zeros_like(rotation), 0.0
    for start in range(0, len(z), _ROWS):
        rows = z[start : start + _ROWS]
        signs = rows @ rotation
        total += float(np.abs(signs).sum(dtype=np.float64))
        pull += rows.T @ np.copysign(np.float32(1), signs, out=signs)
    return pull, total


def polar(matrix: Floats, tolerance: float = _TIGHT) -> Floats:
    """The orthonormal factor float32 ``(r, b)``, r ≤ b, of a matrix of the same shape.

    ``tolerance`` bounds the elements of |XXᵀ - 1|; the iteration converges cubically, so that 0.05 is near.
    """
    x = matrix / np.float32(1.05 * _largest_singular(matrix))
    one = np.eye(len(x), dtype=np.float32)
    lower = 1e-4
    for _ in range(12):
        gram = x @ x.T
        error = float(np.abs(gram - one).max())
        if error < tolerance:
            return x
        if error < 0.3:  # every singular value is near 1: Newton–Schulz needs no solve
            x = 1.5 * x - 0.5 * (gram @ x)
            continue
        a, b, c = _halley_weights(lower)
        lower = min(1.0, lower * (a + b * lower**2) / (1 + c * lower**2))
        x = np.float32(b / c) * x + np.float32(a - b / c) * np.linalg.solve(one + np.float32(c) * gram, x)
    # Singular to working precision: any completion will do, and the SVD gives one.
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    exact: Floats = u @ vt
    return exact


def _halley_weights(lower: float) -> tuple[float, float, float]:
    """The weights that lift singular values in [lower, 1] nearest to 1 by x(a + bx²) / (1 + cx²)."""
    if lower > 0.999:
        return 3.0, 1.0, 3.0
    square = lower**2
    d = (4 * (1 - square) / square**2) ** (1 / 3)
    root = (1 + d) ** 0.5
    a = root + 0.5 * (8 - 4 * d + 8 * (2 - square) / (square * root)) ** 0.5
    b = (a - 1) ** 2 / 4
    return a, b, a + b - 1


def _largest_singular(matrix: Floats) -> float:
    """Its largest singular value, from below, by the power method."""
    v: NDArray[Any] = np.ones(matrix.shape[1], np.float32)
    length = 0.0
    for _ in range(10):
        v = matrix.T @ (matrix @ (v / np.linalg.norm(v)))
        length = float(np.linalg.norm(v))
        if length == 0:
            return 1.0
    return float(np.sqrt(length))


def _orthonormalised(rotation: Floats) -> NDArray[np.float64]:
    """The nearest orthonormal rows, in double precision."""
    x = polar(rotation).astype(np.float64)
    for _ in range(2):
        x = 1.5 * x - 0.5 * (x @ x.T @ x)
    return x
