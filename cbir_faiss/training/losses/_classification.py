"""The module of ``classification``."""

from __future__ import annotations

from typing import Any

from torch import nn

from cbir_faiss.base.loss import Batch


class ClassificationModule(nn.Module):  # type: ignore[misc]
    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, outputs: dict[str, Any], batch: Batch) -> Any:
        return nn.functional.cross_entropy(outputs["logits"], batch.labels, label_smoothing=self.smoothing)
