"""What codecs that learn share: options, length and centre, principal components."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss import base
from cbir_faiss._lib.sampling import sample_rows
from cbir_faiss.errors import ConfigError, InputError
from cbir_faiss.types import Floats, Kind, Metric

Seed = Annotated[int, Field(ge=0)]
TrainSize = Annotated[int, Field(ge=1)]


class TrainingOptions(base.Options):
    """normalise: scale vectors to length 1 first (zero vectors stay zero). center: subtract the training mean.

    train_size: learn from at most so many vectors, drawn with the seed.
    """

    normalise: bool = False
    center: bool = True
    seed: Seed = 0
    train_size: TrainSize = 50_000


class Centred(base.Codec):
    """A codec of vectors that are (scaled and) centred; its state has the ``mean`` float32 ``(dim,)``."""

    Options = TrainingOptions

    @abstractmethod
    def _learn(self, x: Floats, labels: NDArray[Any] | None) -> None:
        """Put into ``state`` what the projection needs; x is the sample, scaled and centred."""

    def _fit(self, x: Floats, labels: NDArray[Any] | None) -> None:
        rows = sample_rows(len(x), self.options.train_size, self.options.seed)
        x = self._scaled(x[rows])
        mean = x.mean(axis=0, dtype=np.float64).astype(np.float32)
        self.state = {"mean": mean if self.options.center else np.zeros_like(mean)}
        self._learn(x - self.state["mean"], None if labels is None else labels[rows])

    def _prepared(self, x: Floats) -> Floats:
        """x float32 ``(n, dim)``, scaled and centred; a copy."""
        prepared: Floats = self._scaled(x) - self.state["mean"]
        return prepared

    def _scaled(self, x: Floats) -> Floats:
        return unit_lengths(x) if self.options.normalise else x


class OneBitEach(Centred):
    """As many bits as dimensions, and nothing to learn but the mean, taken off only where ``center`` says so."""

    class Options(TrainingOptions):
        center: bool = False

    @property
    def bits(self) -> int | None:
        return self.dim

    def _learn(self, x: Floats, labels: NDArray[Any] | None) -> None:
        """The mean is all."""


class Linear(Centred):
    """A codec that is one matrix: ``state["matrix"]`` float32 ``(dim, width)``."""

    def _project(self, x: Floats) -> Floats:
        projected: Floats = self._prepared(x) @ self.state["matrix"]
        return projected


class Turned(Linear):
    """A float codec whose matrix has orthonormal columns: of what they span, L2 distances stay what they were."""

    kind: ClassVar[Kind] = "float"

    def metric_of(self, metric: Metric) -> Metric:
        # Of vectors of one length, squared L2 is twice the cosine distance.
        return "cosine" if self.options.normalise and metric == "l2" else metric


def unit_lengths(x: Floats) -> Floats:
    """Rows scaled to length 1; a zero vector stays zero, so that one black image does not stop a build."""
    lengths = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
    scaled: Floats = (x / np.where(lengths > 0, lengths, 1)[:, None]).astype(np.float32)
    return scaled


def check_bits(name: str, bits: int, x: Floats) -> None:
    """Raises ConfigError or InputError where ``bits`` principal components of x ``(n, dim)`` cannot exist."""
    n, dim = x.shape
    if bits > dim:
        raise ConfigError(f"codec '{name}' gives at most {dim // 8 * 8} bits of {dim} dimensions", path="bits")
    if n < bits:
        raise InputError(f"codec '{name}' needs at least {bits} training vectors for {bits} bits, got {n}")


def principal_components(x: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Variances ``(dim,)``, largest first, directions ``(dim, dim)`` in columns, and how many are above rounding.

    Each direction points where its largest element is positive, so that bits do not depend on the LAPACK at hand.
    """
    # The matrix product in float32 is twice as fast; its rounding is far below what a sign bit can tell.
    variances, directions = np.linalg.eigh((x.T @ x).astype(np.float64) / max(1, len(x)))
    variances, directions = np.maximum(variances[::-1], 0), directions[:, ::-1]
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.where(directions[largest, np.arange(len(largest))] < 0, -1, 1)
    rank = int((variances > variances[0] * 1e-6).sum())
    return variances, directions, min(rank, len(x))


def check_varied(name: str, rank: int) -> None:
    """Raises InputError where the centred sample has no variance at all."""
    if rank == 0:
        raise InputError(f"codec '{name}': all training vectors are equal, there is nothing to learn from them")
