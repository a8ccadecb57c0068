"""YAML → typed config, with errors that name file and line.

A config names plugins; their options are checked by each plugin's own ``Options``. Where an option is a scalar and the
config gives a list, that is a sweep: one ``Choice`` for each value. A build config is the same with one of each.
"""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union

import yaml
from pydantic import BaseModel, Field

from cbir_faiss.base import Backend
from cbir_faiss.base.options import Options, current_name, parse_options
from cbir_faiss.base.registry import Group, checked_options, load, section_name
from cbir_faiss.errors import CbirError, ConfigError

DEFAULT_EXTRACTORS = {"image": {"name": "compact"}, "vector": {"name": "vectors"}}
Lines = dict[tuple[str | int, ...], int]
ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True)
class Choice:
    """One plugin with one set of checked options, and (backends only) the search options to sweep over one index."""

    group: Group
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    searches: tuple[dict[str, Any], ...] = ({},)

    def make(self, **changed: Any) -> Any:
        """The plugin."""
        return load(self.group, self.name)(**{**self.options, **changed})

    def plugin(self) -> type[Any]:
        return load(self.group, self.name)


class Truth(Options):
    """What the exact neighbours of ``knn_recall`` are: by which metric, and how many.

    metric: None is a row's own where it searches floats, and cosine for codes.
    """

    metric: Literal["l2", "cosine", "ip"] | None = None
    k: int = Field(default=10, ge=1)


class Metrics(Options):
    """Cut-offs of the measures, and the exact neighbours to compare with."""

    k: tuple[typing.Annotated[int, Field(ge=1, le=10_000)], ...] = Field(default=(1, 5, 10, 50), min_length=1)
    truth: Truth = Truth()


class Queries(Options):
    """Which items are queries: every n-th of the source, or a source of their own."""

    every: int = Field(default=5, ge=2)


class Engine(Options):
    """Who does a first build: Ray, on a cluster of its own on this machine, or at ``address``. Later ones are local.

    workers: processes that extract (None: one for each CPU that Ray has). segments: parts that are written in parallel.
    """

    name: Literal["ray"]
    address: str | None = None
    workers: int | None = Field(default=None, ge=1)
    segments: int = Field(default=4, ge=1, le=8)


@dataclass(frozen=True)
class Config:
    """A comparison: every valid combination of its choices is a row. With one of each it is also a build."""

    source: Choice
    every: int
    query_source: Choice | None
    extractors: tuple[Choice, ...]
    codecs: tuple[Choice, ...]
    backends: tuple[Choice, ...]
    rescore: tuple[Choice, ...]
    metrics: Metrics
    threads: int | None = None
    engine: Engine | None = None
    file: str = ""
    document: Mapping[str, Any] = field(default_factory=dict)

    def single(self) -> Config:
        """This config, if it describes one build.

        Raises:
            ConfigError: it has several extractors, codecs, backends, rescorers or search options.
        """
        for section in ("extractors", "codecs", "backends", "rescore"):
            choices = getattr(self, section)
            if len(choices) != 1:
                raise ConfigError(
                    f"a build needs exactly one, this gives {len(choices)} (a list of values is a sweep)",
                    path=section,
                    file=self.file,
                )
        if len(self.backends[0].searches) != 1:
            raise ConfigError("a build needs one value of each search option", path="backends.0.search", file=self.file)
        return self


class _Sections(Options):
    """The top level of a config; what is inside the plugin sections is checked by the plugins."""

    source: dict[str, Any]
    queries: dict[str, Any] = Field(default_factory=dict)
    extractors: list[dict[str, Any]] | None = Field(default=None, min_length=1)
    codecs: list[dict[str, Any]] = Field(min_length=1)
    backends: list[dict[str, Any]] = Field(min_length=1)
    rescore: list[dict[str, Any]] = Field(default_factory=lambda: [{"name": "none"}], min_length=1)
    metrics: dict[str, Any] = Field(default_factory=dict)
    threads: int | None = Field(default=None, ge=1)
    engine: str | dict[str, Any] | None = None


def load_config(file: str | Path) -> Config:
    """The config in a YAML file; relative paths in it are relative to the file.

    Raises:
        ConfigError: ``file:line: path: what is wrong`` for the first mistake.
    """
    return read_config(Path(file), partial(parse_config, file=str(file)))


def read_config(file: Path, parse: Callable[..., ConfigT]) -> ConfigT:
    """``parse(document, folder=…)`` of a YAML file; its errors name file and line."""
    document, lines = _read_yaml(file)
    try:
        return parse(document, folder=str(file.parent))
    except ConfigError as error:
        if error.file and error.line:
            raise
        line = _line_of(error.path, lines)
        raise ConfigError(error.message, path=error.path, file=str(file), line=line) from error.__cause__


def parse_config(document: Any, *, folder: str = "", file: str = "") -> Config:
    """The config in a plain mapping, as YAML gives it; ``folder`` is what relative paths are relative to."""
    if not isinstance(document, Mapping):
        raise ConfigError("a config is a mapping with source, codecs and backends")
    sections = parse_options(_Sections, document)
    every, query_source = parse_queries(sections.queries, folder)
    source = parse_choice("sources", sections.source, "source", folder)
    extractors = sections.extractors or [DEFAULT_EXTRACTORS[source.plugin().yields]]
    return Config(
        source=source,
        every=every,
        query_source=query_source,
        extractors=parse_choices("extractors", extractors, "extractors", folder),
        codecs=parse_choices("codecs", sections.codecs, "codecs", folder),
        backends=parse_choices("backends", sections.backends, "backends", folder),
        rescore=parse_choices("rescorers", sections.rescore, "rescore", folder),
        metrics=located(lambda: parse_options(Metrics, sections.metrics), "metrics"),
        threads=sections.threads,
        engine=_parse_engine(sections.engine),
        file=file,
        document=dict(document),
    )


def parse_choices(
    group: Group, sections: Sequence[Mapping[str, Any]], path: str, folder: str = ""
) -> tuple[Choice, ...]:
    """Every choice of a list of plugin sections, sweeps unrolled in the order written."""
    return tuple(
        choice
        for index, section in enumerate(sections)
        for choice in _choices(group, section, f"{path}.{index}", folder)
    )


def parse_choice(group: Group, section: Mapping[str, Any], path: str, folder: str = "") -> Choice:
    """The one choice of a plugin section in which nothing is swept."""
    choices = list(_choices(group, section, path, folder))
    if len(choices) != 1:
        raise ConfigError("takes one value of each option, not a list", path=path)
    return choices[0]


def _choices(group: Group, section: Mapping[str, Any], path: str, folder: str) -> Iterator[Choice]:
    name = located(lambda: section_name(section), path)
    plugin = located(lambda: load(group, name), f"{path}.name")
    given = {key: value for key, value in section.items() if key != "name"}
    searches: tuple[dict[str, Any], ...] = ({},)
    if issubclass(plugin, Backend) and "search" in given:
        searches = _searches(plugin, given.pop("search"), f"{path}.search")
    for options, origin in located(lambda: list(_sweep(plugin.Options, given)), path):
        checked = located(lambda o=options: checked_options(plugin, o, folder), path, origin)  # type: ignore[misc]
        yield Choice(group, name, checked, searches)


def _searches(plugin: type[Backend], given: Any, path: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(given, Mapping):
        raise ConfigError("must be a mapping of search options", path=path)
    found = []
    for options, origin in located(lambda: list(_sweep(plugin.SearchOptions, given)), path):
        located(lambda o=options: parse_options(plugin.SearchOptions, o), path, origin)  # type: ignore[misc]
        found.append(options)
    return tuple(found)


def _sweep(model: type[BaseModel], given: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, str]]]:
    """Every combination of the listed values, with the config path of each option (``bits`` → ``bits.2``)."""
    axes: list[list[tuple[str, Any, str]]] = []
    for key, value in given.items():
        option = model.model_fields.get(current_name(model, key))
        swept = isinstance(value, list) and option is not None and not _takes_list(option.annotation)
        if swept and not value:
            raise ConfigError("an empty list sweeps over nothing", path=key)
        axes.append([(key, v, f"{key}.{i}") for i, v in enumerate(value)] if swept else [(key, value, key)])
    for combination in itertools.product(*axes):
        yield {key: value for key, value, _ in combination}, {key: origin for key, _, origin in combination}


def _takes_list(annotation: Any) -> bool:
    return any(_is_list(kind) for kind in arms(annotation))


def arms(annotation: Any) -> Iterator[Any]:
    origin = typing.get_origin(annotation)
    if origin in (Union, UnionType):
        for arm in typing.get_args(annotation):
            yield from arms(arm)
    elif origin is typing.Annotated:
        yield from arms(typing.get_args(annotation)[0])
    else:
        yield annotation


def _is_list(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    return (isinstance(origin, type) and issubclass(origin, (list, tuple, set, frozenset))) or origin is Any


def parse_queries(section: Mapping[str, Any], folder: str = "") -> tuple[int, Choice | None]:
    """Every how many-th item is a query, and the source of the queries if that is another (then the first is 0)."""
    if "source" in section:
        if len(section) > 1:
            raise ConfigError("takes either 'every' or 'source', not both", path="queries")
        if not isinstance(section["source"], Mapping):
            raise ConfigError("must be a source, such as {name: folder, root: queries/}", path="queries.source")
        return 0, parse_choice("sources", section["source"], "queries.source", folder)
    return located(lambda: parse_options(Queries, section), "queries").every, None


def _parse_engine(section: str | dict[str, Any] | None) -> Engine | None:
    if section is None:
        return None
    given = {"name": section} if isinstance(section, str) else section
    engine: Engine = located(lambda: parse_options(Engine, given), "engine")
    return engine


def located(parse: Callable[[], Any], path: str, origin: Mapping[str, str] | None = None) -> Any:
    """``parse()``, its errors placed below ``path``; ``origin`` maps an option to its path in a sweep."""
    try:
        return parse()
    except ConfigError as error:
        first, _, rest = error.path.partition(".")
        below = ".".join(part for part in ((origin or {}).get(first, first), rest) if part)
        raise ConfigError(error.message, path=f"{path}.{below}" if below else path) from error.__cause__
    except CbirError as error:
        raise ConfigError(str(error), path=path) from error


# ---------------------------------------------------------------------------------------------------------------- YAML


def _read_yaml(file: Path) -> tuple[Any, Lines]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a UTF-8 text"
        raise ConfigError(f"cannot be read: {reason}", file=str(file)) from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: Lines = {}
        if node is not None:
            _walk(node, (), lines, str(file))
        return yaml.safe_load(text), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        raise ConfigError(f"not YAML: {error.problem}", file=str(file), line=line) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"not YAML: {error}", file=str(file)) from error


def _walk(node: yaml.Node, path: tuple[str | int, ...], lines: Lines, file: str) -> None:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                raise ConfigError(f"duplicate key '{key.value}'", file=file, line=line)
            seen.add(key.value)
            _walk(value, (*path, key.value), lines, file)
            lines[(*path, key.value)] = line
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), lines, file)


def _line_of(path: str, lines: Lines) -> int:
    """The line of the longest part of ``path`` that stands in the file."""
    parts: tuple[str | int, ...] = tuple(int(p) if p.isdigit() else p for p in path.split(".") if p)
    while parts and parts not in lines:
        parts = parts[:-1]
    return lines.get(parts, 1)
