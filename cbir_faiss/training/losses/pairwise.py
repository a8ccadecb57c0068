"""The pairwise loss of deep supervised hashing."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from cbir_faiss.training.contract import Batch, Loss, Need, Task


class Pairwise(Loss):
    """Over the pairs of a batch, with y = 0 for the same class and 1 for another, the mean of

        ½ (1 - y) ‖b₁ - b₂‖² + ½ y max(m - ‖b₁ - b₂‖², 0) + α (‖|b₁| - 1‖₁ + ‖|b₂| - 1‖₁)

    From: Liu et al., "Deep Supervised Hashing for Fast Image Retrieval", CVPR 2016; equation 1 of Zeng, Hu and Xiao
    2019.
    """

    name: ClassVar[str] = "pairwise"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels", "code"})

    class Options(Loss.Options):
        """alpha: weight of what draws the code to ±1. margin: m; twice the bits where left out."""

        alpha: float = Field(default=0.01, ge=0)
        margin: float | None = Field(default=None, gt=0)

    options: Options

    def _start(self, task: Task) -> Any:
        assert task.bits is not None  # the public method saw to it
        return _Pairwise(self.options.alpha, self.options.margin or 2.0 * task.bits)


class _Pairwise(nn.Module):  # type: ignore[misc]
    def __init__(self, alpha: float, margin: float) -> None:
        super().__init__()
        self.alpha, self.margin = alpha, margin

    def forward(self, outputs: dict[str, Any], batch: Batch) -> Any:
        code = outputs["code"]
        first, second = torch.triu_indices(len(code), len(code), 1, device=code.device)
        squares = code.square().sum(1)
        # One product of matrices instead of a difference for each pair.
        distances = (squares[:, None] + squares - 2 * code @ code.T).clamp(min=0)[first, second]
        same = batch.labels[first] == batch.labels[second]
        pairs = torch.where(same, distances, (self.margin - distances).clamp(min=0)) / 2
        # Each code is in as many pairs as any other.
        return pairs.mean() + 2 * self.alpha * (code.abs() - 1).abs().sum(1).mean()
