"""Cross-entropy of the classes."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from cbir_faiss.training.contract import Batch, Loss, Need, Task


class Classification(Loss):
    """Cross-entropy of a linear head over the features, which the extractor gives as ``probs``."""

    name: ClassVar[str] = "classification"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels", "logits"})

    class Options(Loss.Options):
        """smoothing: of the labels, shared among all classes."""

        smoothing: float = Field(default=0.0, ge=0, lt=1)

    options: Options

    def _start(self, task: Task) -> Any:
        return _Classification(self.options.smoothing)


class _Classification(nn.Module):  # type: ignore[misc]
    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, outputs: dict[str, Any], batch: Batch) -> Any:
        return nn.functional.cross_entropy(outputs["logits"], batch.labels, label_smoothing=self.smoothing)
