"""Each dimension of the embedding cut at its own median or mean."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from cbir_faiss import base
from cbir_faiss._lib.sampling import sample_rows
from cbir_faiss.codecs._training import Seed, TrainSize
from cbir_faiss.types import Floats, Kind


class Threshold(base.Codec):
    """Bit i is 1 where dimension i is above its median (balanced bits) or mean; as many bits as dimensions."""

    name: ClassVar[str] = "threshold"
    kind: ClassVar[Kind] = "binary"

    class Options(base.Options):
        at: Literal["median", "mean"] = "median"
        seed: Seed = 0
        train_size: TrainSize = 50_000

    @property
    def bits(self) -> int | None:
        return self.dim

    def _fit(self, x: Floats, labels: NDArray[Any] | None) -> None:
        x = x[sample_rows(len(x), self.options.train_size, self.options.seed)]
        cut = np.median(x, axis=0) if self.options.at == "median" else x.mean(axis=0, dtype=np.float64)
        self.state = {"threshold": cut.astype(np.float32)}

    def _project(self, x: Floats) -> Floats:
        above: Floats = x - self.state["threshold"]
        return above
