"""The module of ``pairwise``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cbir_faiss.base.loss import Batch


class PairwiseModule(nn.Module):  # type: ignore[misc]
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
