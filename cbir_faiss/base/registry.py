"""Names to plugins. Ours and strangers' are found the same way: by entry points, imported when asked for."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from functools import cache, lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from pydantic import AfterValidator, ValidationError, ValidationInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from cbir_faiss.base import Plugin
from cbir_faiss.base.options import current_name, parse_options
from cbir_faiss.errors import CbirError, ConfigError, MissingDependency, UnknownPlugin, one_line

Group = Literal["sources", "extractors", "codecs", "backends", "rescorers", "networks", "losses"]
GROUPS: tuple[Group, ...] = ("sources", "extractors", "codecs", "backends", "rescorers", "networks", "losses")
_OUR_PACKAGES = ("cbir_faiss", "cbir_connectors")


@lru_cache(maxsize=1)
def _installed(path: tuple[str, ...]) -> Any:
    """Every entry point on ``path``, the ``sys.path`` of now: one reading of it serves all groups."""
    return entry_points()


@cache
def _entries(group: Group) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in sorted(_installed(tuple(sys.path)).select(group=f"cbir_faiss.{group}"))}


def names(group: Group) -> list[str]:
    """The names of every installed plugin of a group, sorted. Imports none of them."""
    return list(_entries(group))


def load(group: Group, name: str) -> type[Plugin]:
    """The plugin class registered as ``name``.

    Raises:
        UnknownPlugin: nothing is registered under that name; the message suggests the nearest and lists all.
        MissingDependency: the plugin's module needs a library that is not installed.
        CbirError: the entry point is broken: it cannot be imported, whatever the reason, or is not a plugin.
    """
    entries = _entries(group)
    if name not in entries:
        near = difflib.get_close_matches(name, entries, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UnknownPlugin(f"no {_one_of(group)} named '{name}'; {hint}there are: {', '.join(entries) or 'none'}")
    try:
        plugin = entries[name].load()
    except CbirError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's module may do anything while it is imported
        raise _unusable(f"{_one_of(group)} '{name}'", error) from error
    if not isinstance(plugin, type) or not issubclass(plugin, Plugin):
        raise CbirError(f"{_one_of(group)} '{name}': its entry point is broken: {entries[name].value} is not a plugin")
    return plugin


def _unusable(what: str, error: BaseException) -> CbirError:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and missing.split(".")[0] not in _OUR_PACKAGES:
        return MissingDependency(f"{what} needs the Python package '{missing}': pip install {missing}")
    return CbirError(f"{what}: its entry point is broken: {type(error).__name__}: {one_line(error)}")


def _one_of(group: Group) -> str:
    return "loss" if group == "losses" else group[:-1]


def make(group: Group, name: str, **options: Any) -> Any:
    """A plugin of that name with these options, checked against its ``Options``."""
    return load(group, name)(**options)


def section(group: Group) -> AfterValidator:
    """What makes a plugin section an option of another plugin: ``of: Annotated[dict[str, Any], section("sources")]``.

    The section, ``{name: folder, root: photos/}``, is checked against the options of the plugin it names, with the
    config path of what is wrong, and its relative paths are resolved. ``make_section`` makes the plugin.
    """

    def check(given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        try:
            return _checked_section(group, given, (info.context or {}).get("folder", ""))
        except CbirError as error:
            path, message = (error.path, error.message) if isinstance(error, ConfigError) else ("name", str(error))
            # Brackets are kept from being taken for fields of pydantic's template.
            problem = PydanticCustomError("section", "{message}", {"message": message})
            where = tuple(part for part in path.split(".") if part)
            raise ValidationError.from_exception_data(
                group, [InitErrorDetails(type=problem, loc=where, input=given)]
            ) from None

    return AfterValidator(check)


def make_section(group: Group, section: Mapping[str, Any]) -> Any:
    """The plugin of a section that was checked."""
    return make(group, section["name"], **{key: value for key, value in section.items() if key != "name"})


def section_name(given: Mapping[str, Any]) -> str:
    """The plugin that a section names.

    Raises:
        ConfigError: it names none.
    """
    name = given.get("name")
    if not isinstance(name, str):
        raise ConfigError("is required: which plugin" if name is None else f"must be text, not {name!r}", path="name")
    return name


def checked_options(plugin: type[Plugin], given: Mapping[str, Any], folder: str = "") -> dict[str, Any]:
    """The given options as JSON would hold them, checked, their paths relative to ``folder``; no defaults added.

    Raises:
        ConfigError: an option that the plugin does not have, or a wrong value.
    """
    checked = parse_options(plugin.Options, given, folder=folder).model_dump(mode="json")
    return {key: checked[current_name(plugin.Options, key)] for key in given}


def _checked_section(group: Group, given: Mapping[str, Any], folder: str) -> dict[str, Any]:
    name = section_name(given)
    options = {key: value for key, value in given.items() if key != "name"}
    return {"name": name, **checked_options(load(group, name), options, folder)}
