"""Signs of the principal components: the simplest learned code."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.options import Bits
from cbir_faiss.codecs._training import Linear, TrainingOptions, check_bits, check_varied, principal_components
from cbir_faiss.types import Floats, Kind


class PcaSign(Linear):
    """Bit i is the sign of the i-th principal component; components without variance give 0."""

    name: ClassVar[str] = "pca-sign"
    kind: ClassVar[Kind] = "binary"
    min_train: ClassVar[int] = 2

    class Options(TrainingOptions):
        bits: Bits

    def _learn(self, x: Floats, labels: NDArray[Any] | None) -> None:
        bits = self.options.bits
        check_bits(self.name, bits, x)
        _, directions, rank = principal_components(x)
        check_varied(self.name, rank)
        matrix = directions[:, :bits].astype(np.float32)
        matrix[:, rank:] = 0
        self.state["matrix"] = matrix
