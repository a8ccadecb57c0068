"""Typed options: what a plugin can be told, how it is checked, and how a missing library is reported."""

from __future__ import annotations

import difflib
import importlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from cbir_faiss.errors import ConfigError, MissingDependency

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


class Options(BaseModel):
    """Typed options of a plugin: unknown keys are refused, nothing is coerced, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    former: ClassVar[Mapping[str, str]] = {}
    """Names that options had in earlier versions, which are still taken, and their names of today."""


def resolve_path(value: str | Path, info: ValidationInfo) -> Path:
    """``value`` relative to the folder of the config it stands in; unchanged where it stands in none.

    An address, of which a Path has only one slash left, is refused: it would become a folder of that name.
    """
    if _ADDRESS.match(str(value)):
        raise ValueError(f"'{value}' is an address, not a folder or file of this machine")
    folder = (info.context or {}).get("folder", "")
    return Path(os.path.normpath(Path(folder, value).expanduser()))


def name_or_path(value: str, info: ValidationInfo) -> str:
    """A name as it is; what has a dot or slash is a path, relative to the folder of the config it stands in."""
    return value if value.isidentifier() else str(resolve_path(value, info))


Bits = Annotated[int, Field(ge=8, le=65_536, multiple_of=8)]
"""Length of a binary code: a multiple of 8, because codes are stored in whole bytes."""
RelativePath = Annotated[Path, AfterValidator(resolve_path)]
"""A path option; in a config it is relative to the config file."""

OptionsT = TypeVar("OptionsT", bound=BaseModel)


def parse_options(model: type[OptionsT], values: Mapping[str, Any], *, folder: str = "") -> OptionsT:
    """``values`` checked against ``model``; ``folder`` is what relative paths are relative to.

    Raises:
        ConfigError: for the first thing that is wrong; its ``path`` is the dotted name of the option.
    """
    written = {current_name(model, key): key for key in values}
    if len(written) < len(values):
        former = next(key for key in values if current_name(model, key) != key)
        raise ConfigError(f"is called '{current_name(model, former)}' now: give one of the two", path=former)
    # Strict validation of Python objects would refuse a list for a tuple and a str for a Path, JSON does not.
    text = json.dumps({name: values[key] for name, key in written.items()}, default=_to_json)
    try:
        return model.model_validate_json(text, context={"folder": folder})
    except ValidationError as error:
        # A misspelt key also leaves the right one missing: the misspelling is what to say.
        first = min(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
        path = ".".join(
            [written.get(str(part), str(part)) if i == 0 else str(part) for i, part in enumerate(first["loc"])]
        )
        raise ConfigError(_explain(first, model), path=path) from None


def current_name(model: type[BaseModel], key: str) -> str:
    """What the option ``key`` of ``model`` is called today."""
    former: Mapping[str, str] = getattr(model, "former", {})
    return former.get(key, key)


def _to_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise ConfigError(f"{value!r} is not a value that an option can have")


def _explain(error: Any, model: type[BaseModel]) -> str:
    if error["type"] == "extra_forbidden":
        keys = _keys(model, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), keys, n=1)
        known = ", ".join(sorted(keys)) or "none"
        return "unknown key; " + (f"did you mean '{near[0]}'?" if near else f"the keys are: {known}")
    if error["type"] == "missing":
        return "is required"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return str(error["msg"]).replace("Input should", "must")


def _keys(model: Any, loc: Sequence[int | str]) -> list[str]:
    """The keys that are known at ``loc``, in ``model`` or in a model or typed mapping inside it."""
    for part in loc:
        field = getattr(model, "model_fields", {}).get(part)
        model = field and field.annotation
    keys: Mapping[str, Any] = getattr(model, "model_fields", None) or getattr(model, "__annotations__", {})
    return list(keys)


def need(module: str, extra: str) -> Any:
    """The imported ``module`` of an optional dependency.

    Raises:
        MissingDependency: it is not installed; the message has the pip line with our ``extra``.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and not module.startswith(error.name):
            raise
        raise MissingDependency(
            f"'{module.split('.')[0]}' is not installed: pip install 'cbir-faiss[{extra}]'"
        ) from error
