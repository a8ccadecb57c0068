"""What all plugins share: a name and checked options."""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar

from cbir_faiss.base.options import Options, parse_options


class Plugin(ABC):
    """What all plugins share: a name, checked options, and an optional ``_setup`` once they are known."""

    name: ClassVar[str]
    Options: ClassVar[type[Options]] = Options

    def __init__(self, **options: Any) -> None:
        self.options: Any = parse_options(self.Options, options)
        self._setup()

    def _setup(self) -> None:
        """Runs once, after the options are checked."""

    def __repr__(self) -> str:
        chosen = self.options.model_dump(mode="json", exclude_defaults=True)
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in chosen.items())})"
