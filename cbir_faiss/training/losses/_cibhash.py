"""The module of ``cibhash``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cbir_faiss.base.loss import Batch
from cbir_faiss.training.losses._greedy import cosines, passed_over, signs_of


class CIBHashModule(nn.Module):  # type: ignore[misc]
    def __init__(self, temperature: float, bottleneck: float) -> None:
        super().__init__()
        self.temperature, self.bottleneck = temperature, bottleneck

    def forward(self, outputs: dict[str, Any], batch: Batch) -> Any:
        code = outputs["code"]
        p = torch.sigmoid(code)
        signs = signs_of(code)
        similar = cosines(passed_over(signs, p)) / self.temperature
        itself = torch.eye(len(code), dtype=torch.bool, device=code.device)
        other = torch.arange(len(code), device=code.device).roll(len(code) // 2)
        contrast = nn.functional.cross_entropy(similar.masked_fill(itself, -torch.inf), other)
        return contrast + self.bottleneck * divergence(code, code[other].detach()).mean()


def divergence(code: Any, other: Any) -> Any:
    """KL(p, p′) ``(n,)`` of the probabilities that bits are set, by the logarithms of which they are made."""
    p, log = torch.sigmoid(code), nn.functional.logsigmoid
    return (p * (log(code) - log(other)) + (1 - p) * (log(-code) - log(-other))).sum(1)
