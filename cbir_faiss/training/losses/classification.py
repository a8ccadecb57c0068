"""Cross-entropy of the classes."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from cbir_faiss.base.loss import Loss, Need, Task


class Classification(Loss):
    """Cross-entropy of a linear head over the features, which the extractor gives as ``probs``."""

    name: ClassVar[str] = "classification"
    needs: ClassVar[frozenset[Need]] = frozenset({"labels", "logits"})

    class Options(Loss.Options):
        """smoothing: of the labels, shared among all classes."""

        smoothing: float = Field(default=0.0, ge=0, lt=1)

    options: Options

    def _start(self, task: Task) -> Any:
        from cbir_faiss.training.losses._classification import ClassificationModule

        return ClassificationModule(self.options.smoothing)
