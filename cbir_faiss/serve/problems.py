"""Errors as ``application/problem+json``: a status, and a line that says what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from http import HTTPStatus

from cbir_faiss.errors import BackendError, CbirError, ConfigError, CorruptCollection, InputError, UnknownId
from cbir_faiss.errors import BadImage as BadImage
from cbir_faiss.errors import Unsupported as Unsupported

MEDIA_TYPE = "application/problem+json"
_STATUS: tuple[tuple[type[CbirError], int], ...] = (
    (UnknownId, 404),
    (CorruptCollection, 503),
    (BackendError, 503),
    (InputError, 422),
    (BadImage, 422),
    (Unsupported, 422),
    (ConfigError, 422),
    (CbirError, 503),
)


_PATH = re.compile(r"(?<![\w./:-])/[^\s'\",;:()]+")


class Problem(Exception):
    """An answer that is no result."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, dict(headers or {})

    @classmethod
    def of(cls, error: CbirError) -> Problem:
        """What ``error`` is to whoever asked."""
        status = next(status for kind, status in _STATUS if isinstance(error, kind))
        return cls(status, str(error))

    def without_paths(self, folders: Mapping[str, str]) -> Problem:
        """The same without a path of this machine: what is known as a folder is called by its name, of any other path
        the last part is left."""
        detail = self.detail
        for folder in sorted(folders, key=len, reverse=True):
            detail = detail.replace(folder, folders[folder])
        return Problem(self.status, _PATH.sub(_last_part, detail), self.headers)

    def as_dict(self) -> dict[str, object]:
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }


def _last_part(found: re.Match[str]) -> str:
    """What somebody has written themselves begins with no folder that there is, and stays."""
    parts = found[0].split("/")
    return next((part for part in reversed(parts) if part), "") if os.path.lexists(f"/{parts[1]}") else found[0]
