"""The pairwise loss of deep supervised hashing."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from cbir_faiss.base.loss import Loss, Need, Task


class Pairwise(Loss):
    """Over the pairs of a batch, with y = 0 for the same class and 1 for another, the mean of

        ½ (1 - y) ‖b₁ - b₂‖² + ½ y max(m - ‖b₁ - b₂‖², 0) + α (‖|b₁| - 1‖₁ + ‖|b₂| - 1‖₁)

    From: Liu et al., "Deep Supervised Hashing for Fast Image Retrieval", CVPR 2016; equation 1 of Zeng, Hu and Xiao
    2019.
    """

    name: ClassVar[str] = "pairwise"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels", "code"})
    of_pairs: ClassVar[bool] = True

    class Options(Loss.Options):
        """alpha: weight of what draws the code to ±1. margin: m; twice the bits where left out."""

        alpha: float = Field(default=0.01, ge=0)
        margin: float | None = Field(default=None, gt=0)

    options: Options

    def _start(self, task: Task) -> Any:
        from cbir_faiss.training.losses._pairwise import PairwiseModule

        assert task.bits is not None  # the public method saw to it
        return PairwiseModule(self.options.alpha, self.options.margin or 2.0 * task.bits)
