"""What all contracts share: the guard that keeps them whole, and seeded data."""

from __future__ import annotations

from typing import Any

import numpy as np

from cbir_faiss.types import Codes, Floats, Kind

_HOME = __name__.rpartition(".")[0]


class Contract:
    """A set of tests that a subclass inherits whole."""

    def __init_subclass__(cls) -> None:
        """Raises TypeError where a subclass replaces or removes a contract test without ``xfail(reason=…)``."""
        super().__init_subclass__()
        if cls.__module__.startswith(_HOME):
            return
        for home in (c for c in cls.__mro__ if c.__module__.startswith(_HOME)):
            for name, test in vars(home).items():
                if name.startswith("test_") and not _same_or_excused(test, getattr(cls, name, None)):
                    raise TypeError(
                        f"{cls.__name__} overrides the contract test '{name}': let it run as it is, "
                        "or mark your version with @pytest.mark.xfail(reason=...)"
                    )


def _same_or_excused(test: Any, found: Any) -> bool:
    marks = getattr(found, "pytestmark", [])
    return found is test or any(mark.name == "xfail" and mark.kwargs.get("reason") for mark in marks)


def floats(n: int, dim: int, seed: int = 0) -> Floats:
    """Seeded float32 ``(n, dim)``, standard normal."""
    return np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)


def sample(kind: Kind, n: int, width: int, seed: int = 0) -> Codes:
    """Seeded vectors: float32 ``(n, width)``, or packed random codes of ``width`` bits."""
    if kind == "float":
        return floats(n, width, seed)
    return np.random.default_rng(seed).integers(0, 256, (n, width // 8), dtype=np.uint8)
