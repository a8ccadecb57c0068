"""A float codec that keeps the directions in which the vectors vary most: fewer floats before any backend."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss.codecs._training import TrainingOptions, Turned, principal_components
from cbir_faiss.errors import ConfigError, InputError
from cbir_faiss.types import Floats


class Pca(Turned):
    """The first ``dim`` principal components, not whitened: L2 distances are those of the embeddings, less what lies
    in the directions left out.

    ``rotate`` turns them at random afterwards, so that no dimension has more of the variance than another: for an
    engine that gives each dimension as many bits. For cosine use ``normalise: true`` and search by L2.
    """

    name: ClassVar[str] = "pca"
    min_train: ClassVar[int] = 2

    class Options(TrainingOptions):
        dim: int = Field(ge=1, description="floats that are left")
        rotate: bool = Field(False, description="turn them at random afterwards")

    def _float_width(self) -> int:
        super()._float_width()
        return int(self.options.dim)

    def _learn(self, x: Floats, labels: NDArray[Any] | None) -> None:
        (n, width), dim = x.shape, self.options.dim
        if dim > width:
            raise ConfigError(f"codec '{self.name}' keeps at most the {width} dimensions there are", path="dim")
        if n < dim:
            raise InputError(f"codec '{self.name}' needs at least {dim} training vectors for {dim} dimensions, got {n}")
        matrix = principal_components(x)[1][:, :dim]
        if self.options.rotate:
            turn = np.random.default_rng(self.options.seed).standard_normal((dim, dim))
            matrix = matrix @ np.linalg.qr(turn)[0]
        self.state["matrix"] = matrix.astype(np.float32)
