"""Supervised greedy hash: classes told apart by the signs of a code, which gradients pass over."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from cbir_faiss.base.loss import Loss, Need, Task


class GreedySupervised(Loss):
    """Cross-entropy of a linear layer over b = sign(x), + ``penalty`` times the mean of |x - b|³.

    The sign is taken forwards and passed over backwards. The layer is trained with the code, and not stored. From: Su,
    Zhang, Han and Tian, "Greedy Hash: Towards Fast Optimization for Accurate Hash Coding in CNN", NeurIPS 2018.
    """

    name: ClassVar[str] = "greedy-supervised"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels", "code"})

    class Options(Loss.Options):
        """penalty: weight of the mean of |x - sign(x)|³."""

        penalty: float = Field(default=0.1, ge=0)

    options: Options

    def _start(self, task: Task) -> Any:
        from cbir_faiss.training.losses._greedy import GreedySupervisedModule

        assert task.bits is not None  # the public method saw to it
        return GreedySupervisedModule(task.bits, len(task.classes), self.options.penalty, task.seed)
