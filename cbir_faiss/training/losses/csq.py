"""Central similarity quantization: every class has a code, far from the others', that its images are drawn to."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss.base.loss import Loss, Need, Task
from cbir_faiss.errors import ConfigError

_TRIES = 200


class CentralSimilarity(Loss):
    """Binary cross-entropy of the code, squashed by tanh, to the centre of its class, and its distance to ±1.

    Centres are rows of a Hadamard matrix (half their bits differ) where the bits are a power of 2 and there are enough,
    drawn at random, because the first few of many bits are the same short code over and over;
    else random balanced ones, those of the largest least distance among many draws (where there are too many classes
    for them to differ, random ones that do). From: Yuan et al., "Central
    Similarity Quantization for Efficient Image and Video Retrieval", CVPR 2020.
    """

    name: ClassVar[str] = "csq"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels", "code"})

    class Options(Loss.Options):
        """quantization: weight of (1 - |b|)², which draws the code to ±1."""

        quantization: float = Field(default=1e-4, ge=0)

    options: Options

    def _start(self, task: Task) -> Any:
        from cbir_faiss.training.losses._csq import CentralSimilarityModule

        assert task.bits is not None  # the public method saw to it
        return CentralSimilarityModule(hash_centers(len(task.classes), task.bits, task.seed), self.options.quantization)


def hash_centers(classes: int, bits: int, seed: int) -> NDArray[np.int8]:
    """±1 ``(classes, bits)``, far from each other.

    Raises:
        ConfigError: more classes than there are codes of so few bits.
    """
    if classes > 2**bits:
        raise ConfigError(f"{classes} classes need more than {bits} bits to have a code each", path="bits")
    generator = np.random.default_rng(seed)
    if bits & (bits - 1) == 0 and classes <= 2 * bits:
        hadamard = np.ones((1, 1), np.int8)
        while len(hadamard) < bits:
            hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
        rows = generator.permutation(bits)[:classes]
        # More classes than rows: their opposites, too.
        return np.concatenate([hadamard[rows], -hadamard[: classes - len(rows)]]).astype(np.int8)
    best = max((_balanced(classes, bits, generator) for _ in range(_TRIES)), key=_least_distance)
    # So many classes for so few bits that two of them would share a centre: any codes, as long as they differ.
    return best if _least_distance(best) > 0 else _distinct(classes, bits, generator)


def _balanced(classes: int, bits: int, generator: np.random.Generator) -> NDArray[np.int8]:
    row = np.where(np.arange(bits) < bits // 2, 1, -1).astype(np.int8)
    return generator.permuted(np.tile(row, (classes, 1)), axis=1)


def _distinct(classes: int, bits: int, generator: np.random.Generator) -> NDArray[np.int8]:
    numbers = generator.choice(2**bits, classes, replace=False)
    return np.where(numbers[:, None] >> np.arange(bits) & 1, 1, -1).astype(np.int8)


def _least_distance(centers: NDArray[np.int8]) -> int:
    products = centers.astype(np.int32) @ centers.T.astype(np.int32)
    np.fill_diagonal(products, -centers.shape[1])
    return int((centers.shape[1] - products.max()) // 2)
