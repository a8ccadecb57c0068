"""How the learning rate goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from cbir_faiss.base.options import Options

_OWN: Mapping[str, tuple[str, ...]] = {
    "constant": (),
    "cosine": ("last",),
    "step": ("steps", "factor"),
    "triangular": ("last",),
}
"""What each has beside a warmup."""


class Schedule(Options):
    """How the learning rate goes: up over the share ``warmup`` of all steps (0.1 for ``cosine`` and ``triangular``,
    else none, where left out), then as ``name`` says. ``cosine``: along half a cosine down to the share ``last``.
    ``triangular``: in a straight line down to it. ``step``: times ``factor`` every so many ``steps``. ``constant``: it
    stays.
    """

    name: Literal["constant", "cosine", "step", "triangular"] = "cosine"
    warmup: float | None = Field(default=None, ge=0, lt=1)
    last: float = Field(default=0.0, ge=0, le=1)
    steps: int = Field(default=20_000, ge=1)
    factor: float = Field(default=0.5, gt=0, le=1)

    @model_validator(mode="after")
    def _goes_together(self) -> Schedule:
        ignored = self.model_fields_set - {"name", "warmup", *_OWN[self.name]}
        if ignored:
            raise ValueError(f"{self.name} has no {min(ignored)}: leave it out")
        return self

    def share(self, step: int, total: int) -> float:
        """Of the learning rate, at ``step`` 0, 1, … of ``total``."""
        falls = self.name in ("cosine", "triangular")
        rising = total * ((0.1 if falls else 0.0) if self.warmup is None else self.warmup)
        if step < rising:
            return (step + 1) / (rising + 1)
        if not falls:
            return 1.0 if self.name == "constant" else float(self.factor ** (step // self.steps))
        done = (step - rising) / max(1.0, total - rising)
        left = 0.5 * (1 + math.cos(math.pi * done)) if self.name == "cosine" else 1 - done
        return self.last + (1 - self.last) * left
