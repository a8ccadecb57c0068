"""What ``cbir recall`` said last of a collection: a small file beside its data, which belongs to no generation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field

FILE = "recall.json"
_Share = Annotated[float, Field(ge=0, le=1)]
_Count = Annotated[int, Field(ge=1)]


class Answer(BaseModel):
    """The share of the ``k`` nearest that was found over so many queries, and of which generation."""

    recall: _Share
    ci95: Annotated[list[_Share], Field(min_length=2, max_length=2)]
    k: _Count
    queries: _Count
    generation: _Count


def keep(folder: Path, told: Mapping[str, Any], generation: int) -> None:
    """Keep an answer about ``generation`` in place of the one before; where it cannot be written, that is no error."""
    aside = folder / f"{FILE}.{os.getpid()}"  # two who ask at once write apart, and the later one stays
    with suppress(OSError):
        try:
            aside.write_text(json.dumps({**told, "generation": generation}), encoding="utf-8")
            aside.replace(folder / FILE)
        finally:
            aside.unlink(missing_ok=True)


def last(folder: Path, generation: int) -> dict[str, Any] | None:
    """The last ``Answer``, and whether ``generation``, which is asked about, is the one it is of (``current``); None
    where there is none that can be read."""
    try:
        found = Answer.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return {**found.model_dump(), "current": found.generation == generation}
