"""Unsupervised: codes as similar to each other as a teacher's embeddings are."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from cbir_faiss.base.loss import Loss, Need, Task


class Greedy(Loss):
    """Mean over pairs of (cos(b₁, b₂) - cos(t₁, t₂))², b = sign(code), t the teacher's embedding less its mean.

    The sign is taken forwards and passed over backwards; ``penalty`` draws the code to ±1. From the unsupervised part
    of: Su, Zhang, Han and Tian, "Greedy Hash: Towards Fast Optimization for Accurate Hash Coding in CNN", NeurIPS 2018.
    """

    name: ClassVar[str] = "greedy"
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "code"})
    of_pairs: ClassVar[bool] = True

    class Options(Loss.Options):
        """penalty: weight of the mean of |x - sign(x)|³."""

        penalty: float = Field(default=0.1, ge=0)

    options: Options

    def _start(self, task: Task) -> Any:
        from cbir_faiss.training.losses._greedy import GreedyModule

        assert task.teacher is not None  # the public method saw to it
        return GreedyModule(task.teacher.mean(0), self.options.penalty)
