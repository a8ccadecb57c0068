"""Backends: where codes and vectors are stored and searched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from cbir_faiss.base.registry import make

if TYPE_CHECKING:
    from cbir_faiss.base import Backend
    from cbir_faiss.types import Metric


def load_backend(name: str, **options: Any) -> Backend:
    """The backend ``name``, opened on what its options point at: a server, a folder, a file.

    Raises:
        UnknownPlugin, ConfigError, MissingDependency: no such backend, wrong options, its library is not installed.
    """
    return cast("Backend", make("backends", name, **options))


def wrap(index: Any, metric: Metric | None = None) -> Backend:
    """An existing FAISS index (float or binary, any type, with or without IDMap) as a Backend; nothing is copied.

    Ids are the index's own: an IDMap's or IVF's ids, else row numbers. ``metric`` is needed only for an inner product
    index of normalised vectors that is meant as ``"cosine"``. What is upserted through the backend goes into the index;
    what is deleted is only hidden. While it is wrapped, change the index through the backend alone.

    Raises:
        InputError: not a FAISS index, or one with negative ids.
        Unsupported: a metric of FAISS that the package does not have.
    """
    from cbir_faiss.backends.faiss.index import Wrapped

    return Wrapped(index, metric)
