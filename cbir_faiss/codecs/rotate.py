"""A float codec that only turns the vectors, so that an engine's own binary quantization works on them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss.codecs._hadamard import HadamardRotation
from cbir_faiss.codecs._itq import itq_rotation
from cbir_faiss.codecs._training import TrainingOptions, Turned, principal_components
from cbir_faiss.types import Floats


class Rotate(Turned):
    """Centre, then rotate; L2 distances stay exactly what they were.

    Pooled features behind a ReLU are never negative, so that their signs say nothing; after centring and a rotation
    they say a lot. For cosine use ``normalise: true``, which scales to length 1 first, and search by L2.

    ``itq`` makes the signs fit best, ``pca`` puts the variance first, ``hadamard`` learns nothing but the mean and is
    by far the fastest; it pads the width to a multiple of 64 (or, below 64, to a power of two).
    """

    name: ClassVar[str] = "rotate"

    class Options(TrainingOptions):
        rotation: Literal["itq", "pca", "hadamard"] = "itq"
        iterations: Annotated[int, Field(ge=1)] = 20

    def _float_width(self) -> int:
        dim = super()._float_width()
        return HadamardRotation.padded(dim) if self.options.rotation == "hadamard" else dim

    def _learn(self, x: Floats, labels: NDArray[Any] | None) -> None:
        if self.options.rotation != "hadamard":
            _, directions, rank = principal_components(x)
            self.state["matrix"] = (directions @ self._turn(x, directions, rank)).astype(np.float32)

    def _turn(self, x: Floats, directions: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
        """The orthogonal ``(dim, dim)`` that follows the principal axes."""
        if self.options.rotation == "pca" or rank == 0:
            return np.eye(len(directions))
        z = x @ directions[:, :rank].astype(np.float32)
        varied = itq_rotation(z, len(directions), self.options.iterations, self.options.seed)
        # Axes without variance in the sample are not learned, but a rotation must keep what later vectors have there.
        rest = np.linalg.qr(varied.T, mode="complete")[0][:, rank:].T
        return np.concatenate([varied, rest])

    def _ready(self) -> None:
        if self.options.rotation == "hadamard":
            dim = len(self.state["mean"])
            self._hadamard = HadamardRotation(dim, HadamardRotation.padded(dim), self.options.seed)

    def _project(self, x: Floats) -> Floats:
        if self.options.rotation == "hadamard":
            return self._hadamard.apply(self._prepared(x))
        return super()._project(x)
