"""The module of ``greedy``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cbir_faiss.base.loss import Batch


class GreedyModule(nn.Module):  # type: ignore[misc]
    def __init__(self, mean: NDArray[np.float32], penalty: float) -> None:
        super().__init__()
        self.penalty = penalty
        self.register_buffer("mean", torch.from_numpy(mean))

    def forward(self, outputs: dict[str, Any], batch: Batch) -> Any:
        code = outputs["code"]
        signs = torch.where(code > 0, 1.0, -1.0)
        similar = cosines(passed_over(signs, code)) - cosines(batch.teacher - self.mean)
        return similar.square().mean() + self.penalty * (code - signs).abs().pow(3).mean()


def passed_over(signs: Any, x: Any) -> Any:
    """``signs`` forwards; backwards their gradient goes to x as it is (straight-through)."""
    return x + (signs - x).detach()


def cosines(x: Any) -> Any:
    """Of all pairs of rows, ``(n, n)``."""
    x = nn.functional.normalize(x)
    return x @ x.T
