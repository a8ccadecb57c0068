"""The module of ``orthohash``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cbir_faiss.base.loss import Batch


class OrthoHashModule(nn.Module):  # type: ignore[misc]
    def __init__(self, centers: NDArray[np.int8], temperature: float, margin: float) -> None:
        super().__init__()
        self.temperature, self.margin = temperature, margin
        self.register_buffer("centers", nn.functional.normalize(torch.from_numpy(centers.astype(np.float32))))

    def forward(self, outputs: dict[str, Any], batch: Batch) -> Any:
        cosines = nn.functional.normalize(outputs["code"]) @ self.centers.T
        own = nn.functional.one_hot(batch.labels, len(self.centers))
        return nn.functional.cross_entropy((cosines - self.margin * own) / self.temperature, batch.labels)
