"""An index that grows: learnt from once, filled with the first items, saved, and gone on with if it shows promise."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cbir_faiss._lib import threads
from cbir_faiss._lib.sampling import TRAINING_ROWS
from cbir_faiss.base import Backend, Codec
from cbir_faiss.base.labels import Labels
from cbir_faiss.config import Choice
from cbir_faiss.errors import CbirError, ConfigError
from cbir_faiss.pipeline.fill import FILL_ROWS, Part, fill
from cbir_faiss.pipeline.fit import Sample
from cbir_faiss.tuning.predict import Bytes
from cbir_faiss.tuning.sizes import folder_bytes
from cbir_faiss.types import Codes, Floats


class Encoded:
    """The codes of vectors, by a codec that was fitted once, on the first of them. Bits are kept once they were made;
    floats, which would be as large as the vectors, are made whenever they are read."""

    def __init__(self, choice: Choice, vectors: Floats, labels: Labels, learnt: int = TRAINING_ROWS) -> None:
        began = time.perf_counter()
        with threads.phase("fit"):
            sample = Sample({"embedding": vectors[:learnt]}, labels[:learnt])
            self.codec: Codec = sample.fit_codec(choice.make())
        self.fit_seconds = time.perf_counter() - began
        self.encode_seconds = 0.0
        """Of the bits that were made."""
        self._vectors, self._made = vectors, 0
        self._bits: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self._vectors)

    def __getitem__(self, rows: Any) -> Codes:
        """float32 or packed uint8 ``(n, width)`` of rows: a slice, or an array of them."""
        if self.codec.kind == "float":
            return self.codec.encode(np.ascontiguousarray(self._vectors[rows]))
        last = rows.stop if isinstance(rows, slice) else int(np.max(rows, initial=-1)) + 1
        bits: Codes = self._up_to(min(last, len(self)))[rows]
        return bits

    def _up_to(self, n: int) -> NDArray[np.uint8]:
        if self._bits is None:
            self._bits = np.empty((len(self), self.codec.width // 8), np.uint8)
        began = time.perf_counter()
        while self._made < n:
            part = slice(self._made, min(self._made + FILL_ROWS, len(self)))
            self._bits[part] = self.codec.encode(np.ascontiguousarray(self._vectors[part]))
            self._made = part.stop
        self.encode_seconds += time.perf_counter() - began
        return self._bits

    def seconds_for(self, items: int) -> float:
        """To fit it and to make the bits of so many items; those of floats are a part of filling an index."""
        return self.fit_seconds + (self.encode_seconds * items / self._made if self._made else 0.0)


@dataclass(frozen=True)
class First:
    """The first ``n`` of encoded items, as what weighs and searches an index sees them."""

    encoded: Encoded
    n: int

    @property
    def codec(self) -> Codec:
        return self.encoded.codec

    @property
    def items(self) -> First:
        return self

    @property
    def nbytes(self) -> int:
        width = self.codec.width
        return self.n * (width // 8 if self.codec.kind == "binary" else 4 * width)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: Any) -> Codes:
        return self.encoded[rows]


@dataclass(frozen=True)
class Foretold:
    """An index that is not there yet, as what weighs an index sees it."""

    coded: First
    sizes: Bytes
    own_storage = False
    code_bits = None

    @property
    def file_bytes(self) -> int:
        return round(self.sizes.per_item(len(self.coded)) * len(self.coded))

    @property
    def state_bytes(self) -> int:
        return max(0, round(self.sizes.fixed))

    @property
    def backend(self) -> Backend:
        raise NotImplementedError("it is not there to be searched")


class Grown:
    """The index of one backend over the first items, kept in a folder between the times that it is looked at.

    seconds: what making, training and filling it has taken so far.
    """

    own_storage = False

    def __init__(self, choice: Choice, encoded: Encoded, folder: Path, learnt: int = TRAINING_ROWS) -> None:
        self.choice, self.encoded, self.folder = choice, encoded, folder
        self.backend: Backend = choice.make()
        self.n, self.seconds, self.state_bytes = 0, 0.0, 0
        self.file_bytes: int | None = None
        self._learnt = learnt
        if self.backend.capabilities.persist == "refused" or self.backend.own_storage:
            raise ConfigError(f"backend '{choice.name}' keeps no files: tuning cannot go on with its index later")

    @property
    def coded(self) -> First:
        return First(self.encoded, self.n)

    @property
    def code_bits(self) -> int | None:
        return self.backend.code_bits

    def grow(self, n: int) -> None:
        """Store what is missing of the first ``n`` items, and save all of it."""
        began, encoding = time.perf_counter(), self.encoded.encode_seconds
        with threads.phase("fit"):
            codec = self.encoded.codec
            fill(
                self.backend,
                self._parts(n),
                kind=codec.kind,
                width=codec.width,
                sample=lambda: np.ascontiguousarray(self.encoded[0 : min(self._learnt, len(self.encoded))]),
                prepared=self._measure_empty,
            )
        # Several indexes share the bits: making them is counted with the codec.
        self.seconds += time.perf_counter() - began - (self.encoded.encode_seconds - encoding)
        self.n = n
        self.file_bytes = self._save("full")

    def keep_aside(self) -> None:
        """Keep what was saved now beside what will be, for ``aside``."""
        shutil.rmtree(self.folder / "aside", ignore_errors=True)  # of a run that was stopped
        (self.folder / "full").rename(self.folder / "aside")

    def aside(self) -> Backend | None:
        """What was kept aside, open for reading; None where nothing is."""
        backend: Backend = self.choice.make()
        try:
            backend.restore(self.folder / "aside")
        except CbirError:
            return None
        return backend

    def resume(self, n: int, seconds: float, state_bytes: int) -> bool:
        """Take what was saved of ``n`` items; False where that is not there."""
        try:
            self.backend.restore(self.folder / "full")
        except CbirError:
            self._begin_again()
            return False
        if self.backend.count() != n:
            self._begin_again()
            return False
        self.n, self.seconds, self.state_bytes = n, seconds, state_bytes
        self.file_bytes = folder_bytes(self.folder / "full")
        return True

    def rest(self) -> None:
        """Give back its memory; ``resume`` takes it up again."""
        self.backend.close()

    def remove(self) -> None:
        """Leave nothing."""
        self.backend.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _begin_again(self) -> None:
        self.remove()
        self.backend = self.choice.make()

    def _parts(self, n: int) -> Iterator[Part]:
        for start in range(self.n, n, FILL_ROWS):
            stop = min(start + FILL_ROWS, n)
            yield np.arange(start, stop), self.encoded[start:stop], None

    def _measure_empty(self) -> None:
        if self.n == 0:
            try:
                self.state_bytes = self._save("empty")
            except CbirError:  # some index types cannot be saved without an item
                self.state_bytes = 0

    def _save(self, name: str) -> int:
        self.backend.save(self.folder / name)
        return folder_bytes(self.folder / name)
