"""From codes to an index: made, trained, filled in blocks, flushed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from cbir_faiss._lib.sampling import sample_rows
from cbir_faiss.base import Backend
from cbir_faiss.types import Codes, Ids, Kind, Payload

FILL_ROWS = 20_000
"""Rows given to an index at once. A graph depends on it, so it is the same for whoever fills one."""

Part = tuple[Ids, Codes, Sequence[Payload] | None]
"""Ids ascending ``(n,)``, codes ``(n, width)``, and a document each where the backend is to keep them."""


def fill(
    backend: Backend,
    parts: Iterable[Part],
    *,
    kind: Kind,
    width: int,
    sample: Callable[[], Codes] | None = None,
    prepared: Callable[[], None] = lambda: None,
) -> None:
    """Make ``backend``'s index for ``width`` floats or bits where there is none yet, and store ``parts`` in it.

    sample: gives what an index that learns is trained with. prepared: called before the first item is stored.

    Raises:
        Unsupported, ConfigError: the backend does not take such codes. BackendError: its engine failed.
    """
    if backend.dim is None:
        backend.create(width, kind)
        if backend.needs_training and sample is not None:
            backend.train(sample())
    prepared()
    for ids, codes, payload in parts:
        backend.upsert(ids, codes, payload)
    backend.flush()


def training_codes(codes: Codes) -> Codes:
    """The rows of ``codes`` (mapped or not) that an index learns from."""
    return np.ascontiguousarray(codes[sample_rows(len(codes))])
