"""Errors as ``application/problem+json``: a status, and a line that says what to do."""

from __future__ import annotations

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


_FOLDERS = re.compile(r"(?<![\w./:-])/(?:[^\s/'\",;:()]+/)+")  # of an absolute path; not of an address


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
        longest_first = sorted(map(re.escape, folders), key=len, reverse=True)
        known = re.compile(rf"({'|'.join(longest_first) or '(?!)'})(?![\w.-])")
        detail = known.sub(lambda found: folders[found[0]], self.detail)
        return Problem(self.status, _FOLDERS.sub("", detail), self.headers)

    def as_dict(self) -> dict[str, object]:
        return {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": self.detail,
        }
