"""Codes by the cosine to fixed centres of the classes, as a softmax with a margin."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from cbir_faiss.base.loss import Loss, Need, Task
from cbir_faiss.training.losses.csq import hash_centers


class OrthoHash(Loss):
    """Cross-entropy of (cos(b, c) - margin of the own class) / temperature over the centres c of all classes.

    The centres are those of ``csq``. One number to be chosen less than there, because a cosine knows no length. From:
    Hoe et al., "One Loss for All: Deep Hashing with a Single Cosine Similarity based Learning Objective", NeurIPS 2021.
    """

    name: ClassVar[str] = "orthohash"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels", "code"})

    class Options(Loss.Options):
        """temperature: the reciprocal of the scale of cosines. margin: that the own class has to be nearer by."""

        temperature: float = Field(default=0.125, gt=0)
        margin: float = Field(default=0.2, ge=0, lt=2)

    options: Options

    def _start(self, task: Task) -> Any:
        from cbir_faiss.training.losses._orthohash import OrthoHashModule

        assert task.bits is not None  # the public method saw to it
        centers = hash_centers(len(task.classes), task.bits, task.seed)
        return OrthoHashModule(centers, self.options.temperature, self.options.margin)
