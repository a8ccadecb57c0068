"""Rows of other people's tables as payloads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def as_payload(row: Mapping[str, Any]) -> dict[str, Any]:
    """``row`` as JSON has it: what has no form there (times, other vectors) is text; NaN and infinity are null."""
    return dict(json.loads(json.dumps(row, default=str), parse_constant=lambda _: None))
