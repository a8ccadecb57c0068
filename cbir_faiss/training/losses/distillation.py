"""Features like a teacher's embeddings."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.loss import Loss, Need, Task


class Distillation(Loss):
    """1 - the cosine of the features to the teacher's embedding: less its mean, on its principal axes if it is wider.

    Pictures need no labels. Many views of each picture, with the teacher's answer to every one of them, and long
    training are what lets a small network come near: Beyer et al., "Knowledge distillation: A good teacher is patient
    and consistent", CVPR 2022.
    """

    name: ClassVar[str] = "distillation"
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher"})

    def _start(self, task: Task) -> Any:
        from cbir_faiss.training.losses._distillation import DistillationModule

        assert task.teacher is not None  # the public method saw to it
        return DistillationModule(*_axes(task.teacher, task.dim))


def _axes(teacher: NDArray[np.float32], dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The mean ``(width,)`` and the principal axes ``(width, dim)``; zeros where the features are wider."""
    mean = teacher.mean(0)
    covariance = np.cov(teacher, rowvar=False).astype(np.float64)
    _, vectors = np.linalg.eigh(covariance)
    axes = np.zeros((teacher.shape[1], dim), np.float32)
    kept = min(dim, teacher.shape[1])
    axes[:, :kept] = vectors[:, ::-1][:, :kept]
    return mean.astype(np.float32), axes
