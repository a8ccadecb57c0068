"""The YAML of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cbir_faiss.base.options import Options, parse_options
from cbir_faiss.config import Choice, located, parse_choice, parse_queries, read_config
from cbir_faiss.errors import ConfigError
from cbir_faiss.training.augment import Augment
from cbir_faiss.training.views import Views


class Schedule(Options):
    """How the learning rate goes. ``cosine``: up over the share ``warmup`` of all steps, then down to 0. ``step``:
    times ``factor`` every so many ``steps``. ``constant``: neither."""

    name: Literal["constant", "cosine", "step"] = "cosine"
    warmup: float = Field(default=0.1, ge=0, lt=1)
    steps: int = Field(default=20_000, ge=1)
    factor: float = Field(default=0.5, gt=0, le=1)


class Fit(Options):
    """How the losses are brought down.

    validate_every: epochs between validations. held_out: one in so many items is only validated on. patience: of
    validations without a better one, after which it stops; never where left out.
    """

    epochs: int = Field(default=50, ge=1)
    batch_size: int = Field(default=100, ge=2)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Schedule = Schedule()
    validate_every: int = Field(default=1, ge=1)
    held_out: int = Field(default=10, ge=2)
    patience: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class _Sections(Options):
    source: dict[str, Any]
    queries: dict[str, Any] | None = None
    network: dict[str, Any]
    bits: int | None = Field(default=None, ge=1, le=65_536)
    losses: list[dict[str, Any]] = Field(min_length=1)
    teacher: dict[str, Any] | None = None
    views: dict[str, Any] = Field(default_factory=dict)
    augment: dict[str, Any] = Field(default_factory=dict)
    fit: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class TrainingConfig:
    """A training. Every ``every``-th item of the source, if any, is a query of later comparisons and never seen."""

    source: Choice
    every: int | None
    network: Choice
    bits: int | None
    losses: tuple[Choice, ...]
    teacher: Choice | None
    views: Views
    augment: Augment
    fit: Fit
    document: Mapping[str, Any] = field(default_factory=dict)


def load_training(file: str | Path) -> TrainingConfig:
    """The training in a YAML file; relative paths in it are relative to the file.

    Raises:
        ConfigError: ``file:line: path: what is wrong`` for the first mistake.
    """
    return read_config(Path(file), parse_training)


def parse_training(document: Any, *, folder: str = "") -> TrainingConfig:
    """The training in a plain mapping, as YAML gives it; ``folder`` is what relative paths are relative to."""
    if not isinstance(document, Mapping):
        raise ConfigError("a training is a mapping with source, network and losses")
    sections = parse_options(_Sections, document)
    choice = partial(parse_choice, folder=folder)
    losses = tuple(choice("losses", section, f"losses.{i}") for i, section in enumerate(sections.losses))
    if sections.bits and not any("code" in loss.plugin().needs for loss in losses):
        raise ConfigError("none of the losses trains a code: leave this out", path="bits")
    return TrainingConfig(
        source=choice("sources", sections.source, "source"),
        every=_unseen(sections.queries, folder),
        network=choice("networks", sections.network, "network"),
        bits=sections.bits,
        losses=losses,
        teacher=choice("extractors", sections.teacher, "teacher") if sections.teacher else None,
        views=located(lambda: parse_options(Views, sections.views), "views"),
        augment=located(lambda: parse_options(Augment, sections.augment), "augment"),
        fit=located(lambda: parse_options(Fit, sections.fit), "fit"),
        document=dict(document),
    )


def _unseen(queries: Mapping[str, Any] | None, folder: str) -> int | None:
    if queries is None:
        return None
    every, source = parse_queries(queries, folder)
    if source is not None:
        raise ConfigError("queries from another source are not seen anyway: leave this out", path="queries.source")
    return every
