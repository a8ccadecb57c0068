"""Pictures that are in a collection more than once: the same bytes, or codes that differ in a few bits.

Near codes are found by multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012): codes within distance r, cut into m
parts, agree in some part up to floor(r / m) bits. So only codes that share such a part are compared, each once sorted:
for codes that spread, that is a few for each item, not all the others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from cbir_faiss.errors import BadImage, InputError, Unsupported
from cbir_faiss.images import reading as images
from cbir_faiss.storage.store import Store
from cbir_faiss.types import Ids

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
_AT_ONCE = 1 << 21  # candidate pairs compared at once
_KEY_BITS = 60
_LOOKUP = 20  # what a look-up costs, in comparisons of two codes
_SHOWN_GROUPS, _SHOWN_EACH, _THUMBNAIL = 200, 12, 128


@dataclass(frozen=True)
class Duplicate:
    """One of a group. distance: bits between its code and that of the first; same: it has the bytes of the first."""

    id: int
    path: str
    label: Any
    distance: int
    same: bool


def find_duplicates(store: Store, radius: int | None = None) -> list[list[Duplicate]]:
    """Groups of items, connected by steps of at most ``radius`` bits; each in the order of ids, so are the groups.

    ``radius`` is by default a 32nd of the code. In a collection of floats only equal content is found.

    Raises:
        Unsupported: a radius for a collection without binary codes. InputError: a negative one.
    """
    bits = store.manifest.bits
    if bits is None and radius is not None:
        raise Unsupported(f"{store.folder} holds floats: --radius is for binary codes (codec lsh or itq, for example)")
    if radius is not None and radius < 0:
        raise InputError(f"the radius is a number of bits, not {radius}")
    same = store.same_content()
    content = {item: number for number, ids in enumerate(same) for item in ids}
    if bits is None:
        return [_described(store, np.array(ids), content, np.zeros(len(ids), np.int64)) for ids in same]
    ids, codes = _codes(store)
    found = map(np.array, connected(codes, bits // 32 if radius is None else radius))
    return [_described(store, ids[rows], content, hamming(codes[rows[:1]], codes[rows])) for rows in found]


def connected(codes: NDArray[np.uint8], radius: int) -> list[list[int]]:
    """Rows of ``codes`` ``(n, bytes)``, in groups of two or more joined by distances of at most ``radius`` bits."""
    if not len(codes):
        return []
    _, first, member = np.unique(_as_one(codes), return_index=True, return_inverse=True)
    group = _Groups(len(first))
    if radius > 0:
        for left, right in near_pairs(codes[first], radius):
            for a, b in zip(left.tolist(), right.tolist(), strict=True):
                group.join(a, b)
    rows: dict[int, list[int]] = {}
    for row, code in enumerate(member.reshape(-1).tolist()):
        rows.setdefault(group.of(code), []).append(row)
    return sorted(some for some in rows.values() if len(some) > 1)


def near_pairs(codes: NDArray[np.uint8], radius: int) -> Iterator[Pairs]:
    """Every pair of rows of distinct ``codes`` ``(n, bytes)`` at most ``radius`` bits apart, some repeatedly."""
    parts, flips = _parts(codes.shape[1] * 8, radius, len(codes))
    for start, stop in parts:
        keys = _key(codes, start, stop)
        order = np.argsort(keys, kind="stable")
        for mask in _masks(stop - start, flips):
            for left, right in _equal_keys(keys[order], keys[order] ^ mask):
                a, b = order[left], order[right]
                near = hamming(codes[a], codes[b]) <= radius
                yield a[near], b[near]


def hamming(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Bits in which rows of two arrays of packed codes differ."""
    different = a ^ b
    if different.shape[1] % 8 == 0:
        different = np.ascontiguousarray(different).view(np.uint64)
    distances: NDArray[np.int64] = np.bitwise_count(different).sum(axis=1, dtype=np.int64)
    return distances


def write_page(store: Store, groups: Sequence[Sequence[Duplicate]], path: Path) -> None:
    """One self-contained HTML file with the pictures of each group, as far as they can be read."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("cbir_faiss.collection"), autoescape=True)
    root = Path(store.manifest.root or ".")
    shown = [
        [(one, _picture(root / one.path)) for one in group[:_SHOWN_EACH]] + [(None, "")] * (len(group) > _SHOWN_EACH)
        for group in groups[:_SHOWN_GROUPS]
    ]
    page = environment.get_template("duplicates.html.j2")
    path.write_text(page.render(groups=groups, shown=shown, folder=store.folder.name), encoding="utf-8")


def _parts(bits: int, radius: int, n: int) -> tuple[list[tuple[int, int]], int]:
    """The limits of the parts, and how many bits may differ in one, so that the least work is expected.

    Few long parts need a look-up for every way to flip some of their bits; many short ones let many candidates through.
    """

    def parts_with(flips: int) -> int:
        return min(bits, radius // (flips + 1) + 1)

    def work(flips: int) -> float:
        m = parts_with(flips)
        length = min(bits // m, _KEY_BITS)
        lookups = sum(math.comb(length, count) for count in range(radius // m + 1))
        return m * lookups * (_LOOKUP + n / float(2**length))

    m = parts_with(min(range(radius + 1), key=work))
    limits = [bits * i // m for i in range(m + 1)]
    # A long part may be compared by its beginning alone: that only lets more candidates through.
    return [(start, min(stop, start + _KEY_BITS)) for start, stop in itertools.pairwise(limits)], radius // m


def _key(codes: NDArray[np.uint8], start: int, stop: int) -> NDArray[np.uint64]:
    """Bits ``start`` to ``stop`` of each code as a number."""
    first = start // 8
    bits = np.unpackbits(codes[:, first : -(-stop // 8)], axis=1)[:, start - 8 * first : stop - 8 * first]
    keys = np.zeros(len(codes), np.uint64)
    for column in bits.T:
        keys = (keys << np.uint64(1)) | column
    return keys


def _masks(bits: int, flips: int) -> Iterator[np.uint64]:
    for count in range(flips + 1):
        for places in itertools.combinations(range(bits), count):
            yield np.uint64(sum(1 << place for place in places))


def _equal_keys(keys: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> Iterator[Pairs]:
    """Pairs (i, j), i < j, with ``keys[j] == wanted[i]``, of sorted ``keys``; a bounded number at once."""
    first = np.maximum(np.searchsorted(keys, wanted, "left"), np.arange(1, len(keys) + 1))
    counts = np.maximum(0, np.searchsorted(keys, wanted, "right") - first)
    ends = np.cumsum(counts)
    start = 0
    while start < len(keys):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _AT_ONCE, "right")))
        some = counts[start:stop]
        left = np.repeat(np.arange(start, stop), some)
        offset = np.arange(len(left)) - np.repeat(np.cumsum(some) - some, some)
        yield left, first[left] + offset
        start = stop


class _Groups:
    """Disjoint sets with path halving."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def of(self, i: int) -> int:
        parent = self._parent
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    def join(self, a: int, b: int) -> None:
        a, b = self.of(a), self.of(b)
        self._parent[max(a, b)] = min(a, b)


def _as_one(codes: NDArray[np.uint8]) -> NDArray[Any]:
    return np.ascontiguousarray(codes).view(np.dtype((np.void, codes.shape[1]))).reshape(-1)


def _codes(store: Store) -> tuple[Ids, NDArray[np.uint8]]:
    """Ids and codes of the live items."""
    parts = [(segment.live_ids, segment.column("code")[segment.live]) for segment in store.segments]
    if not parts:
        return np.empty(0, np.int64), np.empty((0, store.manifest.width // 8), np.uint8)
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([codes for _, codes in parts])


def _described(store: Store, ids: Ids, content: dict[int, int], distances: NDArray[np.int64]) -> list[Duplicate]:
    documents = store.documents(ids)
    first = content.get(int(ids[0]))
    return [
        Duplicate(i, str(doc.get("path", "")), doc.get("label"), int(d), first is not None and content.get(i) == first)
        for i, doc, d in zip(ids.tolist(), documents, distances, strict=True)
    ]


def _picture(path: Path) -> str:
    try:
        return images.data_uri(images.open_image(path, min_side=2 * _THUMBNAIL), _THUMBNAIL)
    except BadImage:  # moved since, or a collection of vectors
        return ""
