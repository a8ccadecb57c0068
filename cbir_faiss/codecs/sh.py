"""Spectral hashing: Weiss, Torralba, Fergus, "Spectral Hashing" (NIPS 2008)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.options import Bits
from cbir_faiss.codecs._training import Centred, TrainingOptions, check_varied, principal_components
from cbir_faiss.types import Floats, Kind


class SpectralHashing(Centred):
    """Bit i is the sign of an eigenfunction of the Laplacian over a uniform box along the principal components.

    Along component j, from lⱼ to lⱼ + rⱼ (the 5th and the 95th percentile), those are cos(kπ(v - lⱼ) / rⱼ) with
    eigenvalue (kπ / rⱼ)², k = 1, 2, …; the code takes the ``bits`` smallest. Long components give several bits, so that
    there may be more bits than dimensions.
    """

    name: ClassVar[str] = "sh"
    kind: ClassVar[Kind] = "binary"
    min_train: ClassVar[int] = 2

    class Options(TrainingOptions):
        bits: Bits

    def _learn(self, x: Floats, labels: NDArray[Any] | None) -> None:
        bits = self.options.bits
        _, directions, rank = principal_components(x)
        check_varied(self.name, rank)
        matrix = directions[:, : min(bits, rank)].astype(np.float32)
        low, high = np.percentile(x @ matrix, [5, 95], axis=0)
        # A component that is constant between the percentiles has no length to cut.
        long = high > low
        check_varied(self.name, int(long.sum()))
        matrix, low, length = matrix[:, long], low[long], (high - low)[long]
        frequencies = np.pi * np.arange(1, bits + 1) / length[:, None]
        smallest = np.argsort(frequencies, axis=None, kind="stable")[:bits]
        component, frequency = smallest // bits, frequencies.ravel()[smallest]
        self.state |= {
            "matrix": matrix,
            "component": component.astype(np.int32),
            "frequency": frequency.astype(np.float32),
            "phase": (frequency * low[component]).astype(np.float32),
        }

    def _project(self, x: Floats) -> Floats:
        along = self._prepared(x) @ self.state["matrix"]
        angles = along[:, self.state["component"]] * self.state["frequency"] - self.state["phase"]
        projected: Floats = np.cos(angles, out=angles)
        return projected
