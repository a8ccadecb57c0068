"""Unsupervised: codes of half ones in every bit, as similar to each other as a teacher's embeddings are."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from cbir_faiss.base.loss import Loss, Need, Task


class BiHalf(Loss):
    """Mean over pairs of (cos(h₁, h₂) - cos(t₁, t₂))², t the teacher's embedding less its mean.

    h is the code, of which in every bit the greater half of the batch is 1 and the other -1: a bit says most where it
    is balanced. Backwards, the code is drawn to its h by ``gamma``. From: Li and van Gemert, "Deep Unsupervised Image
    Hashing by Maximizing Bit Entropy", AAAI 2021.
    """

    name: ClassVar[str] = "bihalf"
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "code"})
    of_pairs: ClassVar[bool] = True

    class Options(Loss.Options):
        """gamma: how strongly the code is drawn to its balanced signs."""

        gamma: float = Field(default=6.0, ge=0)

    options: Options

    def _start(self, task: Task) -> Any:
        from cbir_faiss.training.losses._bihalf import BiHalfModule

        assert task.teacher is not None  # the public method saw to it
        return BiHalfModule(task.teacher.mean(0), self.options.gamma)
