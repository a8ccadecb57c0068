"""Logs as one JSON object a line, for those who collect them."""

from __future__ import annotations

import json
import logging
import time
from typing import TextIO


class JsonLines(logging.Formatter):
    """``{"time", "level", "logger", "message"}`` and whatever the record carries as ``data``."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "data", {}),
        }
        return json.dumps(said, ensure_ascii=False, default=str)


def log_json(stream: TextIO, level: int = logging.INFO) -> None:
    """From now on everything is logged to ``stream`` like this."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)


class LoggedProgress:
    """A ``progress(done, total)`` that logs every few seconds how far the work is, how fast, and how long it takes."""

    def __init__(self, logger: logging.Logger, every: float = 5.0) -> None:
        self._logger, self._every = logger, every
        self._began: float | None = None
        self._first = 0
        self._logged = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._began is None:
            self._began, self._first = now, done
        if now - self._logged < self._every and done < total:
            return
        self._logged = now
        rate = (done - self._first) / (now - self._began) if now > self._began else 0.0
        left = round((total - done) / rate, 1) if rate else None
        data = {"done": done, "total": total, "per_second": round(rate, 1), "seconds_left": left}
        self._logger.info("extracting", extra={"data": data})
