"""The module of ``csq``."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from cbir_faiss.base.loss import Batch


class CentralSimilarityModule(nn.Module):  # type: ignore[misc]
    def __init__(self, centers: NDArray[np.int8], quantization: float) -> None:
        super().__init__()
        self.quantization = quantization
        self.register_buffer("centers", torch.from_numpy((centers > 0).astype(np.float32)))

    def forward(self, outputs: dict[str, Any], batch: Batch) -> Any:
        # A sigmoid of twice x is (tanh x + 1) / 2: the loss is taken of x, where it is stable.
        code, wanted = outputs["code"], self.centers[batch.labels]
        central = nn.functional.binary_cross_entropy_with_logits(2 * code, wanted)
        return central + self.quantization * (1 - torch.tanh(code).abs()).square().sum(1).mean()
