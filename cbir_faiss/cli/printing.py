"""The only place that prints: results to stdout; progress, notes and failures to stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


def say(text: object) -> None:
    """A line of results, to stdout."""
    click.echo(text)


def say_json(value: Any) -> None:
    """Results as one line of JSON, to stdout."""
    import json

    say(json.dumps(value, ensure_ascii=False))


def aside(text: object) -> None:
    """A line that is no result, to stderr."""
    click.echo(text, err=True)


def say_failures(failed: list[dict[str, str]], most: int = 5) -> None:
    for failure in failed[:most]:
        aside(f"left out: {failure['path']}: {failure['reason']}")
    if len(failed) > most:
        aside(f"left out: {len(failed) - most} more, listed in the results")


@contextmanager
def progress_of(log_json: bool, what: str = "extracting") -> Iterator[Callable[[int, int], None] | None]:
    """A bar on a terminal, or lines of JSON on request."""
    if log_json:
        import logging

        from cbir_faiss._lib.logs import LoggedProgress
        from cbir_faiss._lib.logs import log_json as to_json

        to_json(sys.stderr)
        yield LoggedProgress(logging.getLogger("cbir_faiss.collection.build"))
        return
    with Bar(what) as bar:
        yield bar.progress


class Bar:
    """Progress on stderr, on a terminal only."""

    def __init__(self, what: str, unit: str = "img") -> None:
        self._what, self._unit = what, unit
        self._bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def progress(self) -> Callable[[int, int], None] | None:
        return self._progress if sys.stderr.isatty() else None

    @property
    def note(self) -> Callable[[str], None] | None:
        return self._note if sys.stderr.isatty() else None

    def line(self, text_of: Callable[[Any], str]) -> Callable[[Any], None] | None:
        """Prints a line of its own for whatever it is called with."""

        def say(what: Any) -> None:
            self._end()
            aside(text_of(what))

        return say if sys.stderr.isatty() else None

    def _progress(self, done: int, total: int) -> None:
        from tqdm import tqdm

        if self._bar is None or self._bar.total != total:
            self._end()
            self._bar = tqdm(total=total, desc=self._what, unit=self._unit, file=sys.stderr)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._end()

    def _note(self, text: str) -> None:
        self._end()
        click.echo(f"\r\x1b[K{text[:100]}", err=True, nl=False)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def fact(key: str, value: Any) -> str:
    if key == "bytes":
        return f"{sum(value.values()):,} in {len(value)} files"
    if key == "labels":
        shown = ", ".join(f"{label} ({count})" for label, count in list(value.items())[:8])
        return f"{len(value)}: {shown}{', …' if len(value) > 8 else ''}"
    if key == "recall":
        return "not measured yet: cbir recall does" if value is None else _recall(value)
    if isinstance(value, dict):
        return " ".join([value["name"], *(f"{k}={v}" for k, v in value["options"].items())])
    return f"{value:,}" if isinstance(value, int) else str(value)


def _recall(last: dict[str, Any]) -> str:
    low, high = last["ci95"]
    of = "" if last["current"] else f", of generation {last['generation']:,}: the collection has changed since"
    return f"{last['recall']:.4f} at {last['k']} ({low:.4f} to {high:.4f}, {last['queries']:,} queries{of})"


def stages(seconds: dict[str, float], items: int) -> str:
    """Each stage with its time and, where it goes item by item, its rate."""
    rates = {name: f" ({items / seconds[name]:,.0f}/s)" for name in ("extract", "encode", "store") if seconds[name]}
    return ", ".join(f"{name} {spent:.1f} s{rates.get(name, '')}" for name, spent in seconds.items() if name != "total")
