"""From embeddings to what is stored."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from cbir_faiss.base.checks import check_floats
from cbir_faiss.base.plugin import Plugin
from cbir_faiss.base.state import read_state, write_state
from cbir_faiss.errors import CorruptCollection, InputError
from cbir_faiss.types import Codes, Floats, Kind, Metric


class Codec(Plugin):
    """Turns float embeddings into what is stored: packed bits (``binary``) or other floats (``float``).

    A binary codec gives ``_project``; a bit is 1 where the projection is > 0, packed here and nowhere else.
    What ``_fit`` learns is kept in ``self.state``, a flat dict of arrays, and that is all that is saved.
    """

    kind: ClassVar[Kind]
    min_train: ClassVar[int] = 1

    def __init__(self, **options: Any) -> None:
        self.dim: int | None = None
        self.state: dict[str, NDArray[Any]] = {}
        super().__init__(**options)

    @property
    def needs_labels(self) -> bool:
        """Whether it learns from labels."""
        return False

    @property
    def bits(self) -> int | None:
        """True length of the code in bits; None for a float codec."""
        return cast("int", self.options.bits) if self.kind == "binary" else None

    @property
    def width(self) -> int:
        """What an index of these codes is made for: bits rounded up to whole bytes, or floats."""
        return -(-self.bits // 8) * 8 if self.bits is not None else self._float_width()

    def fit(self, x: Floats, labels: NDArray[Any] | None = None) -> Codec:
        """Learn from database embeddings float32 ``(n, dim)`` (never from queries); ``labels`` int64 ``(n,)``.

        Raises:
            InputError: NaN or infinity, too few rows, labels missing where they are needed.
            ConfigError: more bits than this codec can give for this dimension.
        """
        x = check_floats(x, f"codec '{self.name}'")
        if len(x) < self.min_train:
            raise InputError(f"codec '{self.name}' needs at least {self.min_train} training vectors, got {len(x)}")
        if self.needs_labels and labels is None:
            raise InputError(f"codec '{self.name}' learns from labels, and this source has none")
        if labels is not None and len(labels) != len(x):
            raise InputError(f"codec '{self.name}': {len(labels)} labels for {len(x)} vectors")
        self.dim = x.shape[1]
        self._fit(x, labels)
        self._ready()
        return self

    def project(self, x: Floats) -> Floats:
        """float32 ``(n, bits)`` (binary) or ``(n, width)`` (float): what the bits are the signs of."""
        return self._project(self._checked(x))

    def encode(self, x: Floats) -> Codes:
        """Packed uint8 ``(n, width / 8)``, or float32 ``(n, width)``, of embeddings float32 ``(n, dim)``.

        Raises:
            InputError: the codec is not fitted, or x holds NaN or infinity.
            DimensionMismatch: x is of another width than the codec was fitted on.
        """
        x = self._checked(x)
        return self.pack(self._project(x)) if self.kind == "float" else self._encode_bits(x)

    def metric_of(self, metric: Metric) -> Metric:
        """By what metric embeddings are ranked when an index ranks the floats of this codec by ``metric``."""
        return metric

    def pack(self, projection: Floats) -> Codes:
        """What ``encode`` gives for embeddings whose ``project`` is ``projection``."""
        if self.kind == "float":
            return np.ascontiguousarray(projection, dtype=np.float32)
        return np.packbits(projection > 0, axis=1)

    def save(self, path: Path) -> None:
        """Write name, options and state to one file; no pickle."""
        write_state(
            path,
            {"plugin": self.name, "options": self.options.model_dump(mode="json"), "dim": self.dim},
            self.state,
        )

    def restore(self, path: Path) -> Codec:
        """Take the state that ``save`` wrote for a codec of the same name and options.

        Raises:
            CorruptCollection: the file is missing, cut short, altered, or of another codec.
        """
        meta, state = read_state(path)
        mine = {"plugin": self.name, "options": self.options.model_dump(mode="json")}
        theirs = {key: meta.get(key) for key in mine}
        if theirs != mine:
            raise CorruptCollection(f"{path}: state of {theirs}, but the codec here is {mine}")
        self.dim, self.state = int(meta["dim"]), state
        self._ready()
        return self

    def _checked(self, x: Floats) -> Floats:
        if self.dim is None:
            raise InputError(f"codec '{self.name}' is not fitted: call fit(x) with database embeddings first")
        return check_floats(x, f"codec '{self.name}'", self.dim)

    def _encode_bits(self, x: Floats) -> NDArray[np.uint8]:
        """Signs of the projection, packed. A codec with a faster way to the same bits may override it."""
        packed: NDArray[np.uint8] = self.pack(self._project(x))
        return packed

    def _float_width(self) -> int:
        if self.dim is None:
            raise InputError(f"codec '{self.name}' is not fitted, so its width is not known")
        return self.dim

    def _ready(self) -> None:
        """Runs when ``dim`` and ``state`` are there, fitted or restored: derive what is not worth storing."""

    @abstractmethod
    def _fit(self, x: Floats, labels: NDArray[Any] | None) -> None: ...
    @abstractmethod
    def _project(self, x: Floats) -> Floats: ...
