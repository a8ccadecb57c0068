"""The ground truth of revisited Oxford and Paris, as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cbir_faiss.errors import InputError, one_line

PROTOCOLS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "easy": (("easy",), ("hard", "junk")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("easy", "junk")),
}
"""Of which lists an image is right, and of which it is ignored."""


class Asked(NamedTuple):
    """A query: the name of its image, where the building is, and the images that are right and ignored."""

    image: str
    box: tuple[float, float, float, float]
    right: frozenset[str]
    ignored: frozenset[str]


def read_revisited(file: Path, protocol: str) -> tuple[frozenset[str], list[Asked]]:
    """The names of the images of the database, and the queries that have something to find under ``protocol``.

    Raises:
        InputError: the file is missing, or of another form; the message says where.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        images = [str(name) for name in content["imlist"]]
        asked = list(zip(content["qimlist"], content["gnd"], strict=True))
        queries = [_query(str(name), truth, images, protocol) for name, truth in asked]
    except OSError as error:
        raise InputError(f"source 'oxford': cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        what = f"no '{error.args[0]}'" if isinstance(error, KeyError) else one_line(error)
        raise InputError(f"{file}: not the ground truth of revisited Oxford or Paris as JSON: {what}") from error
    return frozenset(images), [query for query in queries if query.right]


def _query(name: str, truth: Mapping[str, Any], images: list[str], protocol: str) -> Asked:
    def named(lists: tuple[str, ...]) -> frozenset[str]:
        numbers = [number for kind in lists for number in truth[kind]]
        if not all(isinstance(number, int) and 0 <= number < len(images) for number in numbers):
            raise ValueError(f"query '{name}' lists an image that is no number of imlist")
        return frozenset(images[number] for number in numbers)

    x1, y1, x2, y2 = (float(number) for number in truth["bbx"])
    if not (math.isfinite(x1 + y1 + x2 + y2) and x1 < x2 and y1 < y2):
        raise ValueError(f"the box of query '{name}' must have x1 < x2 and y1 < y2")
    return Asked(name, (x1, y1, x2, y2), *(named(lists) for lists in PROTOCOLS[protocol]))
