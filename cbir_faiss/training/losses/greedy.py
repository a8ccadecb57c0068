"""Unsupervised: codes as similar to each other as a teacher's embeddings are."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from cbir_faiss.training.contract import Batch, Loss, Need, Task


class Greedy(Loss):
    """Mean over pairs of (cos(b₁, b₂) - cos(t₁, t₂))², b = sign(code), t the teacher's embedding less its mean.

    The sign is taken forwards and passed over backwards; ``penalty`` draws the code to ±1. From the unsupervised part
    of: Su, Zhang, Han and Tian, "Greedy Hash: Towards Fast Optimization for Accurate Hash Coding in CNN", NeurIPS 2018.
    """

    name: ClassVar[str] = "greedy"
    needs: ClassVar[frozenset[Need]] = frozenset({"teacher", "code"})

    class Options(Loss.Options):
        """penalty: weight of the mean of |x - sign(x)|³."""

        penalty: float = Field(default=0.1, ge=0)

    options: Options

    def _start(self, task: Task) -> Any:
        assert task.teacher is not None  # the public method saw to it
        return _Greedy(torch.from_numpy(task.teacher.mean(0)), self.options.penalty)


class _Greedy(nn.Module):  # type: ignore[misc]
    def __init__(self, mean: Any, penalty: float) -> None:
        super().__init__()
        self.penalty = penalty
        self.register_buffer("mean", mean)

    def forward(self, outputs: dict[str, Any], batch: Batch) -> Any:
        code = outputs["code"]
        signs = torch.where(code > 0, 1.0, -1.0)
        passed = code + (signs - code).detach()
        similar = _cosines(passed) - _cosines(batch.teacher - self.mean)
        return similar.square().mean() + self.penalty * (code - signs).abs().pow(3).mean()


def _cosines(x: Any) -> Any:
    x = nn.functional.normalize(x)
    return x @ x.T
