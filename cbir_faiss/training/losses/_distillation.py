"""The module of ``distillation``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cbir_faiss.base.loss import Batch


class DistillationModule(nn.Module):  # type: ignore[misc]
    def __init__(self, mean: NDArray[np.float32], axes: NDArray[np.float32]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("axes", torch.from_numpy(axes))

    def forward(self, outputs: dict[str, Any], batch: Batch) -> Any:
        wanted = (batch.teacher - self.mean) @ self.axes
        return (1 - nn.functional.cosine_similarity(outputs["features"], wanted)).mean()
