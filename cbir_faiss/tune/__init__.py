"""From what is needed to the index that gives it, and what an index is, or will be, worth."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """``cbir_faiss.tune`` is this room and, for users, the function: importing a module of a room sets the name."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from cbir_faiss.tune.tune import tune

        return tune(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
