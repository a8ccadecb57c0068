"""Iterative quantization: the rotation of the principal components that its signs approximate best."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss.base.options import Bits
from cbir_faiss.codecs._itq import itq_rotation
from cbir_faiss.codecs._training import Linear, TrainingOptions, check_bits, check_varied, principal_components
from cbir_faiss.types import Floats, Kind


class Itq(Linear):
    """Signs of the first ``bits`` principal components after the rotation of Gong and Lazebnik (CVPR 2011).

    One iteration here does about as much as two or three of the usual ones (see ``_itq``).
    """

    name: ClassVar[str] = "itq"
    kind: ClassVar[Kind] = "binary"
    min_train: ClassVar[int] = 2

    class Options(TrainingOptions):
        bits: Bits
        iterations: Annotated[int, Field(ge=1)] = 20
        normalise: bool = True

    def _learn(self, x: Floats, labels: NDArray[Any] | None) -> None:
        options = self.options
        check_bits(self.name, options.bits, x)
        _, directions, rank = principal_components(x)
        check_varied(self.name, rank)
        # Components without variance are left out; the others still fill all bits.
        axes = directions[:, : min(rank, options.bits)]
        rotation = itq_rotation(x @ axes.astype(np.float32), options.bits, options.iterations, options.seed)
        self.state["matrix"] = (axes @ rotation).astype(np.float32)
