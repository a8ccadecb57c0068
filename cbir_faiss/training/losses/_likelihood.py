"""The module of ``likelihood``."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cbir_faiss.base.loss import Batch
from cbir_faiss.training.losses._greedy import signs_of


class LikelihoodModule(nn.Module):  # type: ignore[misc]
    def __init__(self, scale: float, balanced: bool, quantization: float, continuation: float) -> None:
        super().__init__()
        self.scale, self.balanced, self.quantization, self.continuation = scale, balanced, quantization, continuation
        if continuation:
            self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, outputs: dict[str, Any], batch: Batch) -> Any:
        code = self._sharpened(outputs["code"]) if self.continuation else outputs["code"]
        first, second = torch.triu_indices(len(code), len(code), 1, device=code.device)
        theta = self.scale * (code @ code.T)[first, second]
        same = (batch.labels[first] == batch.labels[second]).float()
        pairs = nn.functional.softplus(theta) - same * theta
        if self.balanced:
            share = same.mean()
            # Both kinds weigh a half, where there are both.
            pairs = pairs * torch.where(same > 0, 0.5 / share.clamp(min=1e-6), 0.5 / (1 - share).clamp(min=1e-6))
        signs = signs_of(code)
        return pairs.mean() + self.quantization * (code - signs).square().mean()

    def _sharpened(self, code: Any) -> Any:
        beta = (1 + self.continuation * self.step).sqrt()
        if torch.is_grad_enabled():  # held-out pictures are no step
            self.step += 1
        return torch.tanh(beta * code)
