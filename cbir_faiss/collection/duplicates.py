"""Pictures that are in a collection more than once: the same bytes, or codes that differ in a few bits.

A group is what lies around its first picture: what is far from it is in another, however many pictures lie between.

Near codes are found by multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012): codes within distance r, cut into m
parts, agree in some part up to floor(r / m) bits. So only codes that share such a part are compared, each once sorted:
for codes that spread, that is a few for each item, not all the others.
"""

from __future__ import annotations

import bisect
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
_MOST_PAIRS = 1 << 27
_KEY_BITS = 60
_LOOKUP = 20  # what a look-up costs, in comparisons of two codes
_SHOWN_GROUPS, _SHOWN_EACH, _THUMBNAIL = 200, 12, 128


@dataclass(frozen=True)
class Duplicate:
    """One of a group. distance: bits between its code and that of the first; same: all of the group have its bytes."""

    id: int
    path: str
    label: Any
    distance: int
    same: bool


@dataclass(frozen=True)
class Duplicates:
    """Groups of two or more, each in the order of ids, and so are the groups.

    copies: of the same bytes. alike: of nearly the same code; of copies, only the first is in such a group.
    """

    copies: list[list[Duplicate]]
    alike: list[list[Duplicate]]

    @property
    def groups(self) -> list[list[Duplicate]]:
        return [*self.copies, *self.alike]


def find_duplicates(store: Store, radius: int | None = None, most: float = math.inf) -> Duplicates:
    """Copies, and items that are at most ``radius`` bits from the first of their group.

    ``radius`` is by default a 32nd of the code. In a collection of floats only copies are found.

    Raises:
        Unsupported: a radius for a collection without binary codes. InputError: a negative one, or so wide a one that
            nearly everything is alike, or that more than ``most`` pairs of codes would be compared.
    """
    bits = store.manifest.bits
    if bits is None and radius is not None:
        raise Unsupported(f"{store.folder} holds floats: --radius is for binary codes (codec lsh or itq, for example)")
    if radius is not None and radius < 0:
        raise InputError(f"the radius is a number of bits, not {radius}")
    same = store.same_content()
    copies = [_described(store, np.array(some), np.zeros(len(some), np.int64), same=True) for some in same]
    if bits is None:
        return Duplicates(copies, [])
    ids, codes = _codes(store)
    other = ~np.isin(ids, [item for some in same for item in some[1:]])
    ids, codes = ids[other], codes[other]
    radius = bits // 32 if radius is None else min(radius, bits)
    if expected_work(bits, radius, len(codes)) > most:
        within = bisect.bisect_right(range(radius), most, key=lambda less: expected_work(bits, less, len(codes))) - 1
        raise InputError(
            f"to find what is within {radius} bits of each of {len(codes):,} takes too long: take a radius of at most "
            f"{within}"
        )
    found = map(np.array, around_firsts(codes, radius, most))
    alike = [_described(store, ids[rows], hamming(codes[rows[:1]], codes[rows]), same=False) for rows in found]
    return Duplicates(copies, alike)


def around_firsts(codes: NDArray[np.uint8], radius: int, most: float = math.inf) -> list[list[int]]:
    """Rows of ``codes`` ``(n, bytes)``, in groups of two or more that are at most ``radius`` bits from their first.

    Row by row: one that is in no group yet takes all that are near it and in none.

    Raises:
        InputError: more pairs are near each other than can be held, or more than ``most`` would be compared.
    """
    if not len(codes):
        return []
    _, first, member = np.unique(_as_one(codes), return_index=True, return_inverse=True)
    in_order = np.argsort(first)  # of the distinct codes, as they come
    rank = np.argsort(in_order)
    owner = np.arange(len(first))
    left, right = _near(codes[first[in_order]], radius, most)
    starts = np.searchsorted(left, np.arange(len(first) + 1))
    for one in np.unique(left).tolist():
        if owner[one] == one:
            near = right[starts[one] : starts[one + 1]]
            owner[near[owner[near] == near]] = one
    group = owner[rank[member.reshape(-1)]]
    rows = np.argsort(group, kind="stable")
    limits = np.flatnonzero(np.diff(group[rows])) + 1
    return [some.tolist() for some in np.split(rows, limits) if len(some) > 1]


def _near(codes: NDArray[np.uint8], radius: int, most: float) -> Pairs:
    """Every pair of rows (a, b), a < b, of distinct codes that are near each other, once; by a, then b."""
    n, pairs = len(codes), [np.empty(0, np.int64)]
    for a, b in near_pairs(codes, radius, most) if radius else ():
        pairs.append(np.unique(np.minimum(a, b) * n + np.maximum(a, b)))
        if sum(map(len, pairs)) > _MOST_PAIRS:
            pairs = [np.unique(np.concatenate(pairs))]
            if len(pairs[0]) > _MOST_PAIRS // 2:
                raise InputError(f"within {radius} bits nearly everything is alike: take a smaller radius")
    left, right = np.divmod(np.unique(np.concatenate(pairs)), n)
    return left, right


def near_pairs(codes: NDArray[np.uint8], radius: int, most: float = math.inf) -> Iterator[Pairs]:
    """Every pair of rows of distinct ``codes`` ``(n, bytes)`` at most ``radius`` bits apart, some repeatedly.

    Raises InputError where that takes more than ``most`` comparisons.
    """
    compared = 0
    parts, flips = _parts(codes.shape[1] * 8, radius, len(codes))
    for start, stop in parts:
        keys = _key(codes, start, stop)
        order = np.argsort(keys, kind="stable")
        for mask in _masks(stop - start, flips):
            for left, right in _equal_keys(keys[order], keys[order] ^ mask):
                compared += len(left)
                if compared > most:
                    raise InputError(f"within {radius} bits too many codes are to be compared: take a smaller radius")
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


def write_page(store: Store, found: Duplicates, path: Path) -> None:
    """One self-contained HTML file with the pictures of each group, as far as they can be read."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("cbir_faiss.collection"), autoescape=True)
    root = Path(store.manifest.root or ".")
    kinds = {"Copies": found.copies, "Look-alikes": found.alike}
    shown = {kind: [_shown(root, group) for group in groups[:_SHOWN_GROUPS]] for kind, groups in kinds.items()}
    page = environment.get_template("duplicates.html.j2")
    path.write_text(page.render(kinds=kinds, shown=shown, folder=store.folder.name), encoding="utf-8")


def _shown(root: Path, group: Sequence[Duplicate]) -> list[tuple[Duplicate | None, str]]:
    some: list[tuple[Duplicate | None, str]] = [(one, _picture(root / one.path)) for one in group[:_SHOWN_EACH]]
    return [*some, *[(None, "")] * (len(group) > _SHOWN_EACH)]


def expected_work(bits: int, radius: int, n: int) -> float:
    """Comparisons of two codes that ``n`` codes take, if they spread; 0 for a radius of 0."""
    return n * _work(bits, radius, n, _how_many(bits, radius, n)) if radius else 0.0


def _work(bits: int, radius: int, n: int, m: int) -> float:
    """The same for one code, cut into ``m`` parts.

    Few long parts need a look-up for every way to flip some of their bits; many short ones let many candidates through.
    """
    length = min(bits // m, _KEY_BITS)
    lookups = sum(math.comb(length, count) for count in range(radius // m + 1))
    return m * lookups * (_LOOKUP + n / float(2**length))


def _how_many(bits: int, radius: int, n: int) -> int:
    """The parts with which the least work is expected."""
    counts = dict.fromkeys(min(bits, radius // (flips + 1) + 1) for flips in range(radius + 1))
    return min(counts, key=lambda m: _work(bits, radius, n, m))


def _parts(bits: int, radius: int, n: int) -> tuple[list[tuple[int, int]], int]:
    """The limits of the parts, and how many bits may differ in one."""
    m = _how_many(bits, radius, n)
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


def _as_one(codes: NDArray[np.uint8]) -> NDArray[Any]:
    return np.ascontiguousarray(codes).view(np.dtype((np.void, codes.shape[1]))).reshape(-1)


def _codes(store: Store) -> tuple[Ids, NDArray[np.uint8]]:
    """Ids and codes of the live items."""
    parts = [(segment.live_ids, segment.column("code")[segment.live]) for segment in store.segments]
    if not parts:
        return np.empty(0, np.int64), np.empty((0, store.manifest.width // 8), np.uint8)
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([codes for _, codes in parts])


def _described(store: Store, ids: Ids, distances: NDArray[np.int64], *, same: bool) -> list[Duplicate]:
    return [
        Duplicate(i, str(document.get("path", "")), document.get("label"), int(distance), same)
        for i, document, distance in zip(ids.tolist(), store.documents(ids), distances, strict=True)
    ]


def _picture(path: Path) -> str:
    try:
        return images.data_uri(images.open_image(path, min_side=2 * _THUMBNAIL), _THUMBNAIL)
    except BadImage:  # moved since, or a collection of vectors
        return ""
