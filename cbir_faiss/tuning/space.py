"""What there is to choose from: pairs of codec and backend with their rescorers, as data in ``space.yaml``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from cbir_faiss.base import Codec
from cbir_faiss.base.registry import Group
from cbir_faiss.comparison.combine import describe, digest
from cbir_faiss.config import Choice, Config, parse_choices
from cbir_faiss.errors import CbirError, ConfigError, MissingDependency, UnknownPlugin
from cbir_faiss.pipeline.rules import check_combination, same_kind
from cbir_faiss.types import Metric

SECTIONS: dict[str, Group] = {"codecs": "codecs", "backends": "backends", "rescore": "rescorers"}
_PER_LIST = 39  # vectors a list, below which FAISS calls its centroids unreliable
_BITS = (32, 64, 128, 256, 512, 1024)
_TRAINING = 100_000


@dataclass(frozen=True)
class Structure:
    """One index: it is built once, whatever options it is searched with and whoever puts its hits in order again."""

    codec: Choice
    backend: Choice
    rescore: tuple[Choice, ...]

    @property
    def title(self) -> str:
        return describe(self.codec, self.backend)

    @property
    def key(self) -> str:
        """Eight hex digits; those of what it is, however the space was written."""
        of = [[c.name, c.options, c.searches] for c in (self.codec, self.backend, *self.rescore)]
        return digest(of)


@dataclass(frozen=True)
class Facts:
    """What the data say to the space."""

    items: int
    dim: int
    metric: Metric
    by_neighbours: bool
    """Whether a target counts the exact neighbours; else pictures are put in order by centred cosine."""

    def values(self) -> dict[str, Any]:
        """By the names that ``space.yaml`` has for them."""
        d = self.dim
        return {
            "metric": self.metric,
            "normalise": self.metric == "cosine",
            "center": self.metric == "cosine" and not self.by_neighbours,
            "lengths": [bits for bits in _BITS if bits <= d] or [8 * max(1, d // 8)],
            "lists": lists_for(self.items),
            "slices": [4 * d // part for part in (8, 4, 2) if d % part == 0 and (4 * d // part) % 8 == 0],
        }


@dataclass
class Space:
    """The structures, and those that cannot be, with the reason. search, candidates: values to try of an option."""

    structures: list[Structure] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    search: Mapping[str, Sequence[int]] = field(default_factory=dict)
    candidates: Sequence[int] = ()


def lists_for(items: int) -> int:
    """Inverted lists for so many items, a power of 2: about 4 times the root of what an index learns from."""
    trained = min(items, _TRAINING)
    return int(2 ** math.floor(math.log2(max(1, min(4 * math.sqrt(trained), trained / _PER_LIST)))))


def space_of(facts: Facts, named: Config | None = None, given: Sequence[str] = ()) -> Space:
    """What goes together of the package's space, with the sections ``given`` by a config in place of its own.

    What a config leaves open of how vectors are compared is as the data are: ``metric``, ``center``, ``normalise``.

    Raises:
        ConfigError: nothing goes together, or a named backend keeps its own storage.
    """
    document, values = _document(), facts.values()
    space = Space(search=document["search"], candidates=document["candidates"])
    own: dict[str, Sequence[Choice]] = {section: getattr(named, section) for section in given}
    _check_named(own)
    for section, options in (("codecs", ("normalise",)), ("rescore", ("metric", "center"))):
        if section in own:
            own[section] = [_completed(choice, {name: values[name] for name in options}) for choice in own[section]]
    found: dict[str, Structure] = {}
    for block in document["structures"]:
        for more in _sets(block, facts):
            filled = values | more
            sections = {name: own.get(name) or _parsed(name, block[name], filled, space) for name in SECTIONS}
            for codec, backend, rescore in _together(sections, facts.metric):
                pair = digest([codec.name, codec.options, backend.name, backend.options, backend.searches])
                before = found[pair].rescore if pair in found else ()
                found[pair] = Structure(codec, backend, (*before, *(c for c in rescore if c not in before)))
    space.structures = list(found.values())
    if not space.structures:
        raise ConfigError(f"nothing that is named goes together for metric '{facts.metric}'; see docs/tuning.md")
    return space


@cache
def _document() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(files("cbir_faiss.tuning").joinpath("space.yaml").read_text("utf-8"))
    return found


def _sets(block: Mapping[str, Any], facts: Facts) -> list[dict[str, Any]]:
    """What a block gives besides the facts, one set after the other; none where it is not for these data."""
    if facts.metric not in block.get("metrics", (facts.metric,)):
        return []
    return [given for given in block.get("with", ({},)) if given.get("dim", 0) < facts.dim]


def _check_named(own: Mapping[str, Sequence[Choice]]) -> None:
    for backend in own.get("backends", ()):
        if backend.plugin().own_storage:
            raise ConfigError(
                f"'{backend.name}' keeps its own storage, and tuning builds many indexes: tune with FAISS and push, or "
                f"measure what '{backend.name}' has with 'cbir recall'",
                path="backends",
            )


def _parsed(name: str, sections: Sequence[Any], values: Mapping[str, Any], space: Space) -> list[Choice]:
    choices: list[Choice] = []
    for section in (_filled(section, values) for section in sections):
        if [] in section.values():  # the data allow no value of an option
            continue
        try:
            choices += parse_choices(SECTIONS[name], [section], name)
        except (MissingDependency, UnknownPlugin) as error:
            if (section["name"], str(error)) not in space.left_out:
                space.left_out.append((section["name"], str(error)))
    return choices


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    """``value`` with the facts in their places."""
    if isinstance(value, Mapping):
        return {key: _filled(inner, values) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, values) for inner in value]
    if isinstance(value, str):
        return values[value[1:]] if value.startswith("$") else value.format_map(values)
    return value


def _together(
    sections: Mapping[str, Sequence[Choice]], metric: Metric
) -> Iterator[tuple[Choice, Choice, list[Choice]]]:
    for codec, backend in itertools.product(sections["codecs"], sections["backends"]):
        if same_kind(codec, backend) and (rescore := [c for c in sections["rescore"] if _goes(codec, backend, c)]):
            yield codec, _comparing(backend, codec, metric), rescore


def _comparing(backend: Choice, codec: Choice, metric: Metric) -> Choice:
    """A backend that compares what the codec gives as the vectors are compared, unless it was told how to."""
    made: Codec = codec.make()
    if made.kind == "binary":
        return backend
    # What a codec has scaled, and then centred, is compared by cosine where L2 is measured.
    own = next((own for own in ("l2", metric) if made.metric_of(own) == metric), metric)
    return _completed(backend, {"metric": own})


def _completed(choice: Choice, values: Mapping[str, Any]) -> Choice:
    """With ``values`` of the options that its plugin has and that were left open."""
    known = choice.plugin().Options.model_fields
    left = {name: value for name, value in values.items() if name in known and name not in choice.options}
    return replace(choice, options={**choice.options, **left})


def _goes(codec: Choice, backend: Choice, rescore: Choice) -> bool:
    try:
        check_combination(codec, backend, rescore)
    except CbirError:
        return False
    return True
