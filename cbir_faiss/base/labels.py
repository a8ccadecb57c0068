"""Labels of items: a tuple of class names each, empty where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = Sequence[tuple[str, ...]]


def label_array(labels: Labels) -> NDArray[Any] | None:
    """Labels for a codec that learns from them: int64 ``(n,)``, or bool ``(n, classes)`` where items have several.

    None where an item has no label.
    """
    if not labels or not all(labels):
        return None
    names = {name: i for i, name in enumerate(sorted({name for item in labels for name in item}))}
    if all(len(item) == 1 for item in labels):
        return np.array([names[item[0]] for item in labels], np.int64)
    member = np.zeros((len(labels), len(names)), bool)
    for row, item in enumerate(labels):
        member[row, [names[name] for name in item]] = True
    return member
