"""Kernel supervised hashing: Liu, Wang, Ji, Jiang, Chang, "Supervised Hashing with Kernels" (CVPR 2012)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss.base.options import Bits
from cbir_faiss.codecs._training import Centred, TrainingOptions, TrainSize, check_varied
from cbir_faiss.errors import InputError
from cbir_faiss.types import Floats, Kind

_Array = NDArray[np.float64]
_ROWS = 4096  # rows at a time, so that the kernel of a large batch is never held whole


class KernelSupervisedHashing(Centred):
    """Bit i is the sign of aᵢ·k(x), k(x) the centred Gaussian kernel of x with ``anchors`` training vectors.

    With H the codes (±1) of the training vectors and S their similarity (1 where two share a label, else -1), the aᵢ
    minimise |HHᵀ - bits·S|², one after another: each maximises hᵀRh, R what the bits before left of bits·S. It starts
    from the largest eigenvector (the spectral relaxation) and climbs the objective with tanh for the sign.

    Labels are int64 ``(n,)``, negative where unknown (such rows are left out), or bool ``(n, classes)``.
    """

    name: ClassVar[str] = "ksh"
    kind: ClassVar[Kind] = "binary"
    min_train: ClassVar[int] = 2

    class Options(TrainingOptions):
        bits: Bits
        anchors: Annotated[int, Field(ge=1)] = 300
        steps: Annotated[int, Field(ge=0)] = 30
        train_size: TrainSize = 5_000

    @property
    def needs_labels(self) -> bool:
        return True

    def _learn(self, x: Floats, labels: NDArray[Any] | None) -> None:
        x, similar = _supervision(x, np.asarray(labels))
        rng = np.random.default_rng(self.options.seed)
        anchors = x[np.sort(rng.permutation(len(x))[: self.options.anchors])]
        spread = float(_squared_distances(x, anchors).mean(dtype=np.float64))
        check_varied(self.name, int(spread > 0))
        self.state |= {"anchors": anchors, "spread": np.array(spread, np.float32)}
        kernel = self._kernel(x).astype(np.float64)
        mean = kernel.mean(axis=0)
        kernel -= mean
        whitener = _whitener(kernel)
        check_varied(self.name, whitener.shape[1])
        directions = _greedy(kernel @ whitener, similar, self.options.bits, self.options.steps)
        self.state |= {
            "kernel_mean": mean.astype(np.float32),
            "matrix": (whitener @ directions).astype(np.float32),
        }

    def _project(self, x: Floats) -> Floats:
        projected = np.empty((len(x), self.options.bits), np.float32)
        for start in range(0, len(x), _ROWS):
            rows = slice(start, start + _ROWS)
            kernel = self._kernel(self._prepared(x[rows])) - self.state["kernel_mean"]
            np.matmul(kernel, self.state["matrix"], out=projected[rows])
        return projected

    def _kernel(self, x: Floats) -> Floats:
        """exp(-|x - anchor|² / 2σ²) float32 ``(n, anchors)``; σ² is the mean squared distance in training."""
        kernel: Floats = np.exp(_squared_distances(x, self.state["anchors"]) / (-2 * self.state["spread"]))
        return kernel


Similarity = Callable[[_Array], _Array]
"""``S @ v`` of float64 ``(n, …)``."""


def _supervision(x: Floats, labels: NDArray[Any]) -> tuple[Floats, Similarity]:
    """The labelled rows of x and the product with their similarity matrix.

    Raises:
        InputError: labels of another form, or all items are similar (or none is to another).
    """
    if labels.ndim == 2 and labels.dtype == np.bool_:
        known = labels.any(axis=1)
        members = labels[known].astype(np.float32)
        matrix = np.where(members @ members.T > 0, np.float32(1), np.float32(-1))
        alike = bool((matrix > 0).all())
        return _two_kinds(x[known], alike), lambda v: np.asarray(matrix @ v.astype(np.float32), np.float64)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"codec 'ksh' takes int labels (n,) or bool (n, classes), got {labels.dtype} {labels.shape}")
    known = labels >= 0
    classes, own = np.unique(labels[known], return_inverse=True)
    # 2YYᵀ - 1 with Y the memberships: the n x n matrix itself is never needed.
    memberships = np.eye(len(classes))[own]
    return _two_kinds(x[known], len(classes) < 2), lambda v: 2 * memberships @ (memberships.T @ v) - v.sum(axis=0)


def _two_kinds(x: Floats, alike: bool) -> Floats:
    if alike:
        raise InputError("codec 'ksh' needs labelled items of at least two classes")
    return x


def _squared_distances(x: Floats, y: Floats) -> Floats:
    squares: Floats = np.einsum("ij,ij->i", x, x)[:, None] - 2 * (x @ y.T) + np.einsum("ij,ij->i", y, y)
    return np.maximum(squares, 0, out=squares)


def _whitener(kernel: _Array) -> _Array:
    """``(m, r)``: kernel @ it has r orthogonal columns of mean square 1, the directions without variance left out."""
    variances, directions = np.linalg.eigh(kernel.T @ kernel / len(kernel))
    kept = variances > max(variances[-1] * 1e-6, np.finfo(np.float32).tiny)
    whitener: _Array = directions[:, kept] / np.sqrt(variances[kept])
    return whitener


def _greedy(kernel: _Array, similar: Similarity, bits: int, steps: int) -> _Array:
    """Directions ``(r, bits)`` for a whitened kernel ``(n, r)``, each fitted to what those before it left over."""
    n, r = kernel.shape
    codes, directions = np.empty((n, bits)), np.empty((r, bits))
    relaxed = bits * kernel.T @ similar(kernel)
    for bit in range(bits):
        done = codes[:, :bit]

        def residue(v: _Array, done: _Array = done) -> _Array:
            return bits * similar(v) - done @ (done.T @ v)

        start = np.linalg.eigh(relaxed)[1][:, -1]
        direction = max(start, _climb(kernel, residue, start, steps), key=lambda u: _value(_signs(kernel @ u), residue))
        directions[:, bit], codes[:, bit] = direction, _signs(kernel @ direction)
        explained = kernel.T @ codes[:, bit]
        relaxed -= np.outer(explained, explained)
    return directions


def _climb(kernel: _Array, residue: Similarity, direction: _Array, steps: int) -> _Array:
    """Gradient ascent of φᵀRφ, φ = tanh(kernel @ direction / 2); a step that does not help is halved."""
    step = 0.5
    soft = np.tanh(kernel @ direction / 2)
    against = residue(soft)
    for _ in range(steps):
        slope = kernel.T @ (against * (1 - soft * soft))
        trial = direction + slope * (step / max(float(np.linalg.norm(slope)), 1e-30))
        trial_soft = np.tanh(kernel @ trial / 2)
        trial_against = residue(trial_soft)
        if trial_soft @ trial_against > soft @ against:
            direction, soft, against, step = trial, trial_soft, trial_against, step * 1.5
        else:
            step /= 2
    return direction


def _signs(v: _Array) -> _Array:
    return np.where(v > 0, 1.0, -1.0)


def _value(v: _Array, residue: Similarity) -> float:
    return float(v @ residue(v))
