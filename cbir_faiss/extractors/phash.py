"""A perceptual hash: what a picture looks like in 64 bits, with no network and nothing to download."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from cbir_faiss import base
from cbir_faiss.base.options import need
from cbir_faiss.types import Columns

_SIDE = 8


class PHash(base.Extractor):
    """The 64-bit hash of ``imagehash.phash``: which of the 8 x 8 lowest frequencies of a picture, in 32 x 32 grey
    pixels and transformed by the DCT, are above their median.

    Column ``embedding`` is -1 or 1 by bit, float32 ``(n, 64)``, of which codec ``sign`` makes the hash again; column
    ``phash`` is the hash itself, packed uint8 ``(n, 8)``, bits in the order of ``imagehash``'s hexadecimal text.
    Every pixel counts (pictures are not decoded smaller), so that the hash is the one that others compute.
    """

    name: ClassVar[str] = "phash"

    @property
    def outputs(self) -> Mapping[str, tuple[int, str]]:
        return {"embedding": (_SIDE**2, "float32"), "phash": (_SIDE**2 // 8, "uint8")}

    def _load(self) -> None:
        need("imagehash", "phash")

    def _prepare(self, item: Any) -> NDArray[np.uint8]:
        # Made here, in the decoding threads: the picture shrinks to 8 bytes, so nothing is left for a batch to do.
        bits = need("imagehash", "phash").phash(item, hash_size=_SIDE).hash
        return np.packbits(bits.reshape(-1))

    def _extract(self, batch: NDArray[Any]) -> Columns:
        bits = np.unpackbits(batch, axis=1).astype(np.float32)
        return {"embedding": 2 * bits - 1, "phash": batch}
