"""The module of ``bihalf``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cbir_faiss.base.loss import Batch
from cbir_faiss.training.losses._greedy import cosines, passed_over


class BiHalfModule(nn.Module):  # type: ignore[misc]
    def __init__(self, mean: NDArray[np.float32], gamma: float) -> None:
        super().__init__()
        self.gamma = gamma
        self.register_buffer("mean", torch.from_numpy(mean))

    def forward(self, outputs: dict[str, Any], batch: Batch) -> Any:
        code = outputs["code"]
        signs = balanced_signs(code.detach())
        similar = cosines(passed_over(signs, code)) - cosines(batch.teacher - self.mean)
        return similar.square().mean() + self.gamma / 2 * (code - signs).square().mean()


def balanced_signs(code: Any) -> Any:
    """±1 ``(n, bits)``: in every column 1 for the greater half of ``code``; of an odd number one more is -1."""
    places = code.argsort(dim=0, stable=True).argsort(dim=0)
    return torch.where(places >= (len(code) + 1) // 2, 1.0, -1.0)
