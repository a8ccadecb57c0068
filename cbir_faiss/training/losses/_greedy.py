"""The modules of ``greedy`` and ``greedy-supervised``."""

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
        signs = signs_of(code)
        similar = cosines(passed_over(signs, code)) - cosines(batch.teacher - self.mean)
        return similar.square().mean() + self.penalty * (code - signs).abs().pow(3).mean()


class GreedySupervisedModule(nn.Module):  # type: ignore[misc]
    def __init__(self, bits: int, classes: int, penalty: float, seed: int) -> None:
        super().__init__()
        self.penalty = penalty
        self.classes = nn.Linear(bits, classes, bias=False)
        # As torch begins it, but the same again.
        nn.init.uniform_(self.classes.weight, -(bits**-0.5), bits**-0.5, torch.Generator().manual_seed(seed))

    def forward(self, outputs: dict[str, Any], batch: Batch) -> Any:
        code = outputs["code"]
        signs = signs_of(code)
        logits = self.classes(passed_over(signs, code))
        return nn.functional.cross_entropy(logits, batch.labels) + self.penalty * (code - signs).abs().pow(3).mean()


def signs_of(x: Any) -> Any:
    """±1 of each; 0 is -1, as in stored codes."""
    return torch.where(x > 0, 1.0, -1.0)


def passed_over(signs: Any, x: Any) -> Any:
    """``signs`` forwards; backwards their gradient goes to x as it is (straight-through)."""
    return x + (signs - x).detach()


def cosines(x: Any) -> Any:
    """Of all pairs of rows, ``(n, n)``."""
    x = nn.functional.normalize(x)
    return x @ x.T
