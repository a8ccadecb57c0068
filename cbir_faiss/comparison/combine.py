"""What is to be measured: the combinations of codec, backend and rescorer that go together, and names for them."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cbir_faiss.comparison.split import Split
from cbir_faiss.config import Choice, Metrics
from cbir_faiss.errors import ConfigError, InputError, MissingDependency, Unsupported
from cbir_faiss.pipeline.rules import check_combination, same_kind


@dataclass(frozen=True)
class Plan:
    """What to run on a split."""

    codecs: Sequence[Choice]
    backends: Sequence[Choice]
    rescore: Sequence[Choice]
    metrics: Metrics
    threads: int | None = None
    raw: Path | None = None
    """Folder for neighbours, histograms and times; None stores none."""


@dataclass(frozen=True)
class Skipped:
    """A combination that cannot be measured (more bits than dimensions, say), and why."""

    title: str
    combination: str
    reason: str


def pairs(plan: Plan) -> list[tuple[Choice, Choice]]:
    """The pairs of codec and backend of one kind, in the order of the config.

    Raises:
        ConfigError: a codec or a backend has no partner, or none of the rescorers goes with any pair.
    """
    found = [pair for pair in itertools.product(plan.codecs, plan.backends) if same_kind(*pair)]
    for section, place, choices in (("codecs", 0, plan.codecs), ("backends", 1, plan.backends)):
        for choice in choices:
            if choice not in [pair[place] for pair in found]:
                other = "backend" if place == 0 else "codec"
                raise ConfigError(
                    f"'{choice.name}' has no {other} to go with: one takes floats, the other codes", path=section
                )
    _check_some(plan, found)
    return found


def _check_some(plan: Plan, found: Sequence[tuple[Choice, Choice]]) -> None:
    """Raises the first reason where there is one against every combination."""
    reasons = []
    for (codec, backend), rescore in itertools.product(found, plan.rescore):
        try:
            check_combination(codec, backend, rescore)
        except ConfigError as error:
            reasons.append(error)
        else:
            return
    raise reasons[0]


@contextmanager
def skipping(skipped: list[Skipped] | None, split: Split, combination: str) -> Iterator[None]:
    """Within the block, a combination that cannot be is added to ``skipped``; where that is None, it raises."""
    try:
        yield
    except (InputError, ConfigError, Unsupported, MissingDependency) as error:
        if skipped is None:
            raise
        skipped.append(Skipped(split.title, combination, str(error)))


def describe(*choices: Choice) -> str:
    """Names and chosen options, short: ``lsh bits=64 in faiss-binary-flat with float candidates=100``."""
    words = [
        " ".join([choice.name, *(f"{key}={value}" for key, value in choice.options.items())]) for choice in choices
    ]
    return words[0] + "".join(f" {word} {name}" for word, name in zip(("in", "with"), words[1:], strict=False))


def slug(split: Split, codec: Choice, backend: Choice) -> str:
    """A name for files and for places in an engine, of its own for each pair."""
    bits = str(codec.options.get("bits", ""))
    words = "-".join([split.title, codec.name + bits, backend.name])
    return (
        re.sub(r"[^\w]+", "-", words)
        + "-"
        + digest([split.extractor, split.extractor_options, codec.options, backend.options])
    )


def digest(value: Any) -> str:
    """Eight hex digits of what ``value`` is."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]
