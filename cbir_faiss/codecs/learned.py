"""A hash function trained on embeddings: one layer, or two, by any loss that trains the codes of a network."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from cbir_faiss.base.loss import Loss, Task
from cbir_faiss.base.options import Bits, need, parse_options
from cbir_faiss.base.registry import load
from cbir_faiss.codecs._training import Centred, TrainingOptions, TrainSize, check_varied
from cbir_faiss.errors import CbirError, InputError
from cbir_faiss.types import Floats, Kind

_ROWS = 4096  # rows at a time, so that the hidden layer of a large batch is never held whole


class Learned(Centred):
    """Bit i is the sign of wᵢ·h(x) + cᵢ, h(x) = max(0, Vx + d), or x itself without ``hidden``; learned by ``loss``.

    The losses are those of ``cbir train`` that work on codes, but ``cibhash``, which alters pictures. Where one learns
    from labels, so does this codec: int64 ``(n,)``, negative where unknown (such rows are left out). Where one learns
    from a teacher, that is the embeddings themselves. Each bit is batch-normalised in training, which w and c take in:
    the pairwise losses do not leave their start without it. Learned with torch, used without it.
    """

    name: ClassVar[str] = "learned"
    kind: ClassVar[Kind] = "binary"
    min_train: ClassVar[int] = 2

    class Options(TrainingOptions):
        """loss: its name, or a mapping of name and options. hidden: width of a layer before the code; 0 for none.
        steps: of AdamW, its rate falling from ``lr`` to nothing. dropout: share of the inputs of each layer that is
        left out at random in a step."""

        bits: Bits
        loss: str | dict[str, Any] = "orthohash"
        hidden: Annotated[int, Field(ge=0, le=65_536)] = 512
        steps: Annotated[int, Field(ge=1)] = 1_000
        batch_size: Annotated[int, Field(ge=2)] = 256
        lr: Annotated[float, Field(gt=0)] = 0.003
        weight_decay: Annotated[float, Field(ge=0)] = 0.01
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
        train_size: TrainSize = 100_000

        @field_validator("loss")
        @classmethod
        def _trains_codes(cls, loss: str | dict[str, Any]) -> str | dict[str, Any]:
            _made(loss)
            return loss

    options: Options

    def _setup(self) -> None:
        self._loss = _made(self.options.loss)

    @property
    def needs_labels(self) -> bool:
        return "labels" in self._loss.needs

    def _learn(self, x: Floats, labels: NDArray[Any] | None) -> None:
        need("torch", "torch")
        from cbir_faiss.codecs._learned import learn

        if len(x) < self.min_train:
            raise InputError(f"codec 'learned' needs at least {self.min_train} vectors to learn from: raise train_size")
        x, numbers, classes = _labelled(x, labels) if self.needs_labels else (x, None, ())
        scale = float(np.sqrt(np.square(x, dtype=np.float64).mean()))
        check_varied(self.name, int(scale > 0))
        x = x / np.float32(scale)
        task = Task(x.shape[1], self.options.bits, classes, numbers, x, self.options.seed)
        layers = learn(x, task, self._loss, self.options)
        layers[0] = (layers[0][0] / np.float32(scale), layers[0][1])
        for number, (matrix, bias) in enumerate(layers):
            self.state |= {f"matrix_{number}": matrix, f"bias_{number}": bias}

    def _project(self, x: Floats) -> Floats:
        projected = np.empty((len(x), self.options.bits), np.float32)
        for start in range(0, len(x), _ROWS):
            rows = slice(start, start + _ROWS)
            h = self._prepared(x[rows])
            if self.options.hidden:
                h = np.maximum(h @ self.state["matrix_0"] + self.state["bias_0"], 0)
            last = 1 if self.options.hidden else 0
            projected[rows] = h @ self.state[f"matrix_{last}"] + self.state[f"bias_{last}"]
        return projected


def _made(loss: str | dict[str, Any]) -> Loss:
    """Raises ValueError where there is no such loss, or none that can be had for embeddings."""
    options = {"name": loss} if isinstance(loss, str) else dict(loss)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ValueError("must be the name of a loss, or a mapping with its name")
    try:
        plugin: Any = load("losses", name)
        parse_options(plugin.Options, options)
        made: Loss = plugin(**options)
    except CbirError as error:
        raise ValueError(str(error)) from error
    if "code" not in made.needs or "logits" in made.needs:
        raise ValueError(f"loss '{name}' trains no code")
    if made.twice:
        raise ValueError(f"loss '{name}' alters pictures, and these are embeddings: train a network by it")
    return made


def _labelled(x: Floats, labels: NDArray[Any] | None) -> tuple[Floats, NDArray[np.int64], tuple[str, ...]]:
    """The rows whose class is known, its number from 0 on, and the classes."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"codec 'learned' takes one label an item, int (n,), got {labels.dtype} {labels.shape}")
    known = labels >= 0
    classes, numbers = np.unique(labels[known], return_inverse=True)
    if len(classes) < 2:
        raise InputError("codec 'learned' needs labelled items of at least two classes")
    return x[known], numbers.astype(np.int64), tuple(str(one) for one in classes.tolist())
