"""How many of the items that a filter matches have which value under which key."""

from __future__ import annotations

from collections import Counter
from typing import Any

from cbir_faiss.base.filters import Where
from cbir_faiss.storage.fields import PATH
from cbir_faiss.storage.segment import Segment
from cbir_faiss.storage.store import Store

Facets = dict[str, list[tuple[Any, int]]]


def facets(store: Store, where: Where | None = None, most: int = 100) -> Facets:
    """By key its values and their counts, the ``most`` frequent first; not of keys whose values tell items apart."""
    found: dict[str, Counter[Any]] = {}
    apart: set[str] = set()
    for segment in store.segments:
        rows = segment.live if where is None else segment.live & segment.matching(where)
        for key in _keys(segment):
            field = segment.grouping(key)
            if field is None:
                apart.add(key)
                continue
            counts = found.setdefault(key, Counter())
            for value, count in field.counts(rows):
                if count:
                    counts[type(value), value] += count  # True is not 1 here
    kept = {key: counts for key, counts in found.items() if counts and key not in apart}
    return {
        key: [(value, count) for (_, value), count in counts.most_common(most)]
        for key, counts in sorted(kept.items())
        if len(counts) <= max(most, len(store) // 2)
    }


def _keys(segment: Segment) -> list[str]:
    """The keys of a segment's documents; the path is none."""
    if segment.fields is not None:
        return [key for key in segment.fields.names() if key != PATH]
    keys: set[str] = set()
    for _, record in segment.catalogue.records():
        keys |= record.document.keys()
    return sorted(keys - {PATH})
