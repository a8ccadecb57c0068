"""Random hyperplanes: bit i says on which side of hyperplane i a vector lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss.base.options import Bits
from cbir_faiss.codecs._hadamard import HadamardRotation
from cbir_faiss.codecs._training import Centred, TrainingOptions
from cbir_faiss.errors import CorruptCollection
from cbir_faiss.types import Floats, Kind

_ROWS = 256  # encoded at a time: what is in between stays in the cache, and never exists all at once


class LSH(Centred):
    """Any number of bits from any dimension; it learns nothing but the mean.

    ``dense``: normals drawn from a Gaussian (Charikar 2002). ``orthogonal``: the same, orthonormal within every ``dim``
    bits: super-bits of full depth (Ji et al. 2012), whose Hamming distance estimates the angle with less variance.
    ``hadamard``: rows of a structured rotation, O(d log d) and several times as fast, with the quality of ``dense``.

    The state is the mean and 16 numbers: the hyperplanes are drawn again from the seed.
    """

    name: ClassVar[str] = "lsh"
    kind: ClassVar[Kind] = "binary"

    class Options(TrainingOptions):
        bits: Bits
        projection: Literal["dense", "orthogonal", "hadamard"] = Field("dense", description="how normals are drawn")

    def _learn(self, x: Floats, labels: NDArray[Any] | None) -> None:
        """The mean is all."""

    def _ready(self) -> None:
        dim, bits, seed = len(self.state["mean"]), self.options.bits, self.options.seed
        self._turned: Callable[[Floats], Floats]
        if self.options.projection == "hadamard":
            self._turned = HadamardRotation(dim, bits, seed).apply
        else:
            draw = _orthogonal if self.options.projection == "orthogonal" else _normals
            normals = draw(dim, bits, seed)
            self._turned = lambda x: np.asarray(x @ normals)
        # NumPy may change its generators: then the same seed gives other hyperplanes, and old codes are worthless.
        probe = self._turned(np.cos(np.arange(dim, dtype=np.float32))[None])[0, :: -(-bits // 16)]
        known = self.state.setdefault("probe", probe)
        if known.shape != probe.shape or not np.allclose(known, probe, rtol=1e-3, atol=1e-3):
            raise CorruptCollection(
                f"codec '{self.name}': seed {seed} gives other hyperplanes than when it was saved; "
                "it was made with another version of NumPy: encode the collection again"
            )

    def _project(self, x: Floats) -> Floats:
        projected = np.empty((len(x), self.options.bits), np.float32)
        for rows, part in self._parts(x):
            projected[rows] = part
        return projected

    def _encode_bits(self, x: Floats) -> NDArray[np.uint8]:
        codes = np.empty((len(x), self.options.bits // 8), np.uint8)
        for rows, part in self._parts(x):
            codes[rows] = np.packbits(part > 0, axis=1)
        return codes

    def _parts(self, x: Floats) -> Iterator[tuple[slice, Floats]]:
        for start in range(0, len(x), _ROWS):
            rows = slice(start, start + _ROWS)
            yield rows, self._turned(self._prepared(x[rows]))


def _normals(dim: int, bits: int, seed: int) -> Floats:
    """Standard normal float32 ``(dim, bits)``."""
    return np.random.default_rng(seed).standard_normal((dim, bits), dtype=np.float32)


def _orthogonal(dim: int, bits: int, seed: int) -> Floats:
    """``_normals``, each block of up to ``dim`` columns made orthonormal."""
    normals = _normals(dim, bits, seed)
    for start in range(0, bits, dim):
        columns, triangle = np.linalg.qr(normals[:, start : start + dim])
        # With the signs of the diagonal taken out, the directions are those of Gram-Schmidt, and uniformly distributed.
        normals[:, start : start + dim] = columns * np.sign(np.diag(triangle))
    return normals
