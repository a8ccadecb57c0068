"""The 1,797 handwritten digits that ship with scikit-learn: labelled images without a download."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cbir_faiss import base
from cbir_faiss.base.options import need

if TYPE_CHECKING:
    from PIL import Image


class Digits(base.Source):
    """8x8 grey images as RGB, 0…16 scaled to 0…255; path and label like a folder of digits: ``7/0015``, ``7``."""

    name: ClassVar[str] = "digits"

    @cached_property
    def _data(self) -> tuple[list[base.Item], NDArray[np.uint8]]:
        digits: Any = need("sklearn.datasets", "sklearn").load_digits()
        order = np.argsort(digits.target, kind="stable")
        items = [base.Item(f"{digits.target[row]}/{row:04d}", (str(digits.target[row]),)) for row in order]
        return items, np.rint(digits.images[order] * (255 / 16)).astype(np.uint8)

    def _items(self) -> Sequence[base.Item]:
        return self._data[0]

    def _read(self, index: int) -> Image.Image:
        from PIL import Image

        return Image.fromarray(self._data[1][index]).convert("RGB")

    def _content_key(self, index: int) -> bytes:
        return hashlib.sha256(self._data[1][index].tobytes()).digest()
