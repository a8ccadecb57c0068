"""Which segments become one. Sizes are told apart by tiers, each four times as wide as the one below: an item that is
written again goes to a higher tier, so that of n items each is written O(log n) times, and there are O(log n) segments.
"""

from __future__ import annotations

from collections.abc import Sequence

_BITS = 2
TIER = 1 << _BITS
"""So many neighbours of one tier become one segment, of a higher tier."""

Run = tuple[int, int]
"""Segments from one to another, excluded: neighbours, because ids ascend from segment to segment."""


def tier_of(rows: int) -> int:
    return (rows.bit_length() - 1) // _BITS


def runs_of(rows: Sequence[int]) -> list[Run]:
    """Which of segments with so many ``rows`` each, oldest first, belong together; most stay alone."""
    runs: list[Run] = []
    sizes: list[int] = []
    for number, size in enumerate(rows):
        runs.append((number, number + 1))
        sizes.append(size)
        while (first := _first_to_join(sizes)) < len(sizes) - 1:
            runs[first:] = [(runs[first][0], number + 1)]
            sizes[first:] = [sum(sizes[first:])]
    return runs


def _first_to_join(sizes: Sequence[int]) -> int:
    """From where on the last ones become one: those of a lower tier than the last, else a full tier."""
    tiers = [tier_of(size) for size in sizes]
    first = last = len(tiers) - 1
    while first and tiers[first - 1] < tiers[last]:
        first -= 1
    full = first == last and tiers[-TIER:] == [tiers[last]] * TIER
    return last - TIER + 1 if full else first
