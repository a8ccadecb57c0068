"""What a loss is: a plugin that makes a module from a model's outputs and a batch to one number."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cbir_faiss.base.options import Options, need
from cbir_faiss.base.plugin import Plugin
from cbir_faiss.errors import ConfigError, InputError

Need = Literal["labels", "teacher", "code", "logits"]


@dataclass(frozen=True)
class Task:
    """What is trained: widths of the model's outputs and, where there are any, labels and a teacher's embeddings.

    labels: int64 ``(n,)``, numbers of classes. teacher: float32 ``(n, width)``, a row for each picture trained on.
    """

    dim: int
    bits: int | None
    classes: tuple[str, ...]
    labels: NDArray[np.int64] | None
    teacher: NDArray[np.float32] | None
    seed: int


@dataclass(frozen=True)
class Batch:
    """Tensors of the pictures of one step, row by row those of the model's outputs; None where the task has none."""

    labels: Any
    teacher: Any


class Loss(Plugin):
    """A loss by its options. ``needs`` says which of the task's parts and of the model's heads it works on."""

    needs: ClassVar[frozenset[Need]]
    of_pairs: ClassVar[bool] = False
    """Whether it compares the pictures of a batch with each other, so that they may not be mixed."""
    twice: ClassVar[bool] = False
    """Whether a batch has each picture twice, altered anew: the second half of the rows is that of the first again."""

    class Options(Options):
        """weight: in the sum of losses."""

        weight: float = Field(default=1.0, gt=0)

    @classmethod
    def check(cls, *, bits: bool, teacher: bool) -> None:
        """Raises ConfigError where it needs bits, or a teacher, and the config has none."""
        if "code" in cls.needs and not bits:
            raise ConfigError(f"loss '{cls.name}' trains a code: give bits", path="bits")
        if "teacher" in cls.needs and not teacher:
            raise ConfigError(f"loss '{cls.name}' learns from another's embeddings: give teacher", path="teacher")

    def start(self, task: Task) -> Any:
        """A module ``(outputs, batch) → scalar tensor`` for this task; its parameters, if any, are trained too.

        Raises:
            ConfigError: it needs bits, or a teacher, and the config has none.
            InputError: it needs labels and the items have none, or all items are of one class.
            MissingDependency: torch is not installed.
        """
        self.check(bits=task.bits is not None, teacher=task.teacher is not None)
        if "labels" in self.needs:
            if task.labels is None:
                raise InputError(f"loss '{self.name}' learns from labels, and some of these items have none")
            if len(task.classes) < 2:
                raise InputError(f"loss '{self.name}': all items are of one class, '{task.classes[0]}'")
        need("torch", "torch")
        return self._start(task)

    @abstractmethod
    def _start(self, task: Task) -> Any: ...
