"""The YAML of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cbir_faiss.base.options import Options, parse_options
from cbir_faiss.config import Choice, located, parse_choice, parse_queries, read_config
from cbir_faiss.errors import ConfigError
from cbir_faiss.nets.card import Head
from cbir_faiss.training.augment import Augment
from cbir_faiss.training.schedule import Schedule
from cbir_faiss.training.views import Views

EPOCHS = 50
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


class Group(Options):
    """Parameters that are trained otherwise: those whose names begin with ``of`` (``network.maps.features.0`` or
    ``code``) and that no group before this one has. lr, weight_decay: instead of those of the rest. frozen: they are
    not trained, and their batch normalisation is as in evaluation."""

    of: str = Field(min_length=1)
    lr: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    frozen: bool = False

    @model_validator(mode="after")
    def _goes_together(self) -> Group:
        ignored = self.frozen and self.model_fields_set & {"lr", "weight_decay"}
        if ignored:
            raise ValueError(f"what is frozen takes no {min(ignored)}: leave it out")
        return self


class Small(Options):
    """The first ``share`` of the epochs sees pictures scaled down to ``scale`` of their sides, of whose square the time
    of a step is. A network that takes any size learns most of what it will know from these."""

    scale: float = Field(default=0.75, gt=0, lt=1)
    share: float = Field(default=0.6, gt=0, lt=1)


class Fit(Options):
    """How the losses are brought down.

    momentum, nesterov: of the optimizer ``sgd``. groups: of parameters that are trained otherwise, or not. ema: how
    much the running mean of the weights keeps in a step; it is then what is validated and stored. small: the first
    epochs on smaller pictures, for networks that take any size. precision: of the computations; ``auto`` is bfloat16
    where the device is fast at it. validate_every: epochs between validations. held_out: one in so many items is only
    validated on. patience: of validations without a better one, after which it stops; never where left out; it counts
    anew from where epochs were raised. memory: megabytes of prepared pictures that are held in memory; more are read
    from a file while training.
    """

    epochs: int = Field(default=EPOCHS, ge=1)
    batch_size: int = Field(default=100, ge=2)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(default=1e-4, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0)
    groups: tuple[Group, ...] = ()
    schedule: Schedule = Schedule()
    ema: float | None = Field(default=None, gt=0, lt=1)
    small: Small | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    validate_every: int = Field(default=1, ge=1)
    held_out: int = Field(default=10, ge=2)
    patience: int | None = Field(default=None, ge=1)
    seed: Seed = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    memory: int = Field(default=4096, ge=1)

    @model_validator(mode="after")
    def _goes_together(self) -> Fit:
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError("nesterov is a momentum of the optimizer sgd")
        if "momentum" in self.model_fields_set and self.optimizer != "sgd":
            raise ValueError("momentum is of the optimizer sgd: leave it out")
        return self


class _Sections(Options):
    source: dict[str, Any]
    queries: dict[str, Any] | None = None
    network: dict[str, Any]
    bits: int | None = Field(default=None, ge=1, le=65_536)
    head: dict[str, Any] = Field(default_factory=dict)
    losses: list[dict[str, Any]] = Field(min_length=1)
    teacher: dict[str, Any] | None = None
    views: dict[str, Any] = Field(default_factory=dict)
    augment: dict[str, Any] = Field(default_factory=dict)
    fit: dict[str, Any] = Field(default_factory=dict)
    seeds: list[Seed] | None = None


@dataclass(frozen=True)
class TrainingConfig:
    """A training. Every ``every``-th item of the source, if any, is a query of later comparisons and never seen.

    seeds: trained once with each of them instead of with that of ``fit``; empty for a single training.
    """

    source: Choice
    every: int | None
    network: Choice
    bits: int | None
    head: Head
    losses: tuple[Choice, ...]
    teacher: Choice | None
    views: Views
    augment: Augment
    fit: Fit
    seeds: tuple[int, ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict)

    def with_seed(self, seed: int) -> TrainingConfig:
        """The training of one of several seeds, as if its config had this one alone."""
        document = {key: value for key, value in self.document.items() if key != "seeds"}
        document["fit"] = {**document.get("fit", {}), "seed": seed}
        return replace(self, seeds=(), fit=self.fit.model_copy(update={"seed": seed}), document=document)


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
    teacher = choice("extractors", sections.teacher, "teacher") if sections.teacher else None
    augment = located(lambda: parse_options(Augment, sections.augment), "augment")
    head = located(lambda: parse_options(Head, sections.head), "head")
    _check_losses(sections, head, losses, augment)
    _check_seeds(sections)
    return TrainingConfig(
        source=choice("sources", sections.source, "source"),
        every=_unseen(sections.queries, folder),
        network=choice("networks", sections.network, "network"),
        bits=sections.bits,
        head=head,
        losses=losses,
        teacher=teacher,
        views=located(lambda: parse_options(Views, sections.views), "views"),
        augment=augment,
        fit=located(lambda: parse_options(Fit, sections.fit), "fit"),
        seeds=tuple(sections.seeds or ()),
        document=dict(document),
    )


def _check_losses(sections: _Sections, head: Head, losses: Sequence[Choice], augment: Augment) -> None:
    """Raises ConfigError where a loss lacks something, or something is asked for that none learns from or trains, or
    that may not be done to what one compares."""
    bits, teacher = sections.bits, sections.teacher
    for loss in losses:
        loss.plugin().check(bits=bits is not None, teacher=teacher is not None)
    needs = frozenset().union(*(loss.plugin().needs for loss in losses))
    if teacher and "teacher" not in needs:
        raise ConfigError("none of the losses learns from a teacher: leave this out", path="teacher")
    if bits and "code" not in needs:
        raise ConfigError("none of the losses trains a code: leave this out", path="bits")
    if head.norm and not bits:
        raise ConfigError("it is of a code: give bits", path="head.norm")
    for key in ("temperature", "calibrate"):
        if getattr(head, key) and "logits" not in needs:
            raise ConfigError("none of the losses tells classes apart: leave this out", path=f"head.{key}")
    pairs = next((loss.name for loss in losses if loss.plugin().of_pairs), None)
    if augment.mixup and pairs:
        what = f"loss '{pairs}' compares pictures, which may not be mixed: leave this out"
        raise ConfigError(what, path="augment.mixup")
    twice = next((loss.name for loss in losses if loss.plugin().twice), None)
    if twice and augment == Augment():
        raise ConfigError(f"loss '{twice}' compares alterations of a picture: say how it is altered", path="augment")


def _check_seeds(sections: _Sections) -> None:
    if sections.seeds is None:
        return
    if len(set(sections.seeds)) != max(2, len(sections.seeds)):
        raise ConfigError("a deviation over seeds takes at least two, all different; one is fit.seed", path="seeds")
    if "seed" in sections.fit:
        raise ConfigError("give seeds or fit.seed, not both", path="seeds")


def _unseen(queries: Mapping[str, Any] | None, folder: str) -> int | None:
    if queries is None:
        return None
    every, source = parse_queries(queries, folder)
    if source is not None:
        raise ConfigError("queries from another source are not seen anyway: leave this out", path="queries.source")
    return every
